"""Measure what this machine reaches, in a process of its own: `python -m halfstep.tools.speed`, see `measure_here`.

What runs is the stages' own code on made-up tokens, with random weights. A rate is the plan's own count of floating-
point operations over the seconds that they took, so that whatever else the code does is in it.
"""

import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import psutil
import torch
from torch import Tensor

from halfstep.data.tokenizer import train_word_tokenizer, with_mask_token
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.evaluation.frontier import SELF_BLEU_GROUP
from halfstep.evaluation.latency import synchronizer
from halfstep.evaluation.likelihood import autoregressive_likelihood, denoiser_likelihood
from halfstep.evaluation.metrics.distinct import distinct_ngrams
from halfstep.evaluation.metrics.generative_perplexity import quality
from halfstep.evaluation.metrics.mauve import mauve_score
from halfstep.evaluation.metrics.self_bleu import self_bleu
from halfstep.model.base import MaskedModel, logits_at
from halfstep.model.gpt2 import new_gpt2
from halfstep.model.opening import open_with_tokenizer
from halfstep.run.device import autocast, select_device, select_precision, set_num_threads
from halfstep.run.faults import lacks_memory
from halfstep.run.work import batched
from halfstep.samplers.base import Uniforms
from halfstep.samplers.sampler import Sampler
from halfstep.samples.draw import AUTOREGRESSIVE, draw
from halfstep.settings import Params
from halfstep.settings.graph import depth_of
from halfstep.tools.planning.here import METRICS, START, TEXT
from halfstep.tools.planning.networks import HubNetwork, Network, forward_flops
from halfstep.tools.planning.scorer import new_scorer
from halfstep.tools.planning.teacher import new_teacher
from halfstep.tools.planning.works import (
    BOUND,
    CHOOSE,
    DENOISE,
    DRAW,
    READ,
    WRITE,
    Networks,
    bounding,
    denoising,
    reading,
    training_flops,
)
from halfstep.tools.trial import EXIT_TOO_MUCH, train_few_steps

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SECONDS = 3.0
"""For which each kind of work is repeated, and twice at least, but for what takes longer once."""
NUM_WRITTEN = 16
"""Tokens that an autoregressive model writes, around the middle of a text."""

SAMPLERS = (
    Sampler("ancestral", {"num_steps": 2}),
    Sampler("ordered", {"num_steps": 2, "score": "entropy", "noise": 1.0, "counts": "cosine"}),
)
"""One that does not choose which positions it writes, and one that does."""


def main(params: Params, *, vocab_size: int, kinds: Sequence[str]) -> None:
    """Print JSON lines: [`START`, seconds], [`METRICS`, seconds], [`TEXT`, seconds], [kind, FLOPs per second], ..."""
    set_num_threads(params.runtime.num_threads)
    speed = Speed(params, vocab_size, select_device(params.runtime.device))
    _open_something()
    print(json.dumps([START, time.time() - psutil.Process().create_time()]), flush=True)
    try:
        for measured in chain(speed.of_metrics(), speed.rates(kinds)):
            print(json.dumps(measured), flush=True)
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        sys.exit(EXIT_TOO_MUCH)


def _open_something() -> None:
    """As a stage does: what opens models and tokenizers is imported when one is opened."""
    tokenizer = with_mask_token(train_word_tokenizer(["a b"], vocab_size=5))
    sizes: dict[str, Any] = {"length": 2, "hidden_size": 4, "num_blocks": 1, "num_heads": 1, "dropout": 0.0}
    with tempfile.TemporaryDirectory(prefix="halfstep-") as folder:
        tokenizer.save_pretrained(folder)
        new_gpt2(vocab_size=len(tokenizer), **sizes).save_pretrained(folder)
        open_with_tokenizer(Path(folder))


class _Enough(Exception):
    """A stage's loop is to end."""


class _Timed:
    """A `MaskedModel` that notes for how many `seconds` its body computes."""

    def __init__(self, model: MaskedModel, synchronize: Callable[[], None]) -> None:
        self.config, self.projection = model.config, model.projection
        self._model, self._synchronize, self.seconds = model, synchronize, 0.0

    def to(self, device: torch.device) -> Self:
        """See `MaskedModel`."""
        self._model.to(device)
        return self

    def hidden_at(self, *args: Any, **options: Any) -> Tensor:
        """See `MaskedModel`."""
        self._synchronize()
        started = time.perf_counter()
        hidden = self._model.hidden_at(*args, **options)
        self._synchronize()
        self.seconds += time.perf_counter() - started
        return hidden


@dataclass(frozen=True)
class Speed:
    """Measures the kinds of work of a run; `vocab_size` counts the mask token."""

    params: Params
    vocab_size: int
    device: torch.device

    @cached_property
    def networks(self) -> Networks:
        """Their sizes."""
        return Networks.of(self.params, self.vocab_size)

    def rates(self, kinds: Sequence[str]) -> Iterator[tuple[str, float]]:
        """(kind, floating-point operations per second) of each."""
        known: dict[str, float] = {}
        for kind in kinds:
            if kind not in known:
                known |= self._measured(kind)
            yield kind, known[kind]

    def autoregressive(self, depth: int | None) -> "PreTrainedModel":
        """A new one of so many blocks; None: the baseline."""
        sizes = self.params.model.of_baseline
        sizes["num_blocks"] = depth or sizes["num_blocks"]
        fills_in = bool(self.params.baseline.num_givens)
        model = new_gpt2(vocab_size=self.vocab_size, length=self._length, fills_in=fills_in, **sizes)
        return model.eval().to(self.device)

    def of_metrics(self) -> Iterator[tuple[str, float]]:
        """(`METRICS`, seconds that their libraries take), (`TEXT`, seconds for each text): those of a frontier."""
        settings, num_texts = self.params.evaluate, self.params.frontier.num_samples
        tokens = self._tokens(num_texts, self._length).tolist()
        texts = [" ".join(map(str, ids)) for ids in tokens]
        hidden_size = (self.networks.scorer or self.networks.autoregressive).hidden_size
        features = np.random.default_rng(0).normal(size=(2, num_texts, hidden_size)).astype(np.float32)
        read: Any = SimpleNamespace(nlls=[1.0] * num_texts, num_tokens=[self._length] * num_texts)

        def measure() -> None:
            quality(tokens, read, num_resamples=settings.num_bootstrap_resamples, seed=0)
            buckets, scaling = settings.mauve_num_buckets, settings.mauve_scaling_factor
            mauve_score(*features, scaling_factor=scaling, num_buckets=buckets, seeds=[0])
            self_bleu(batched(texts, SELF_BLEU_GROUP))
            distinct_ngrams(tokens, 2)

        started = time.perf_counter()
        measure()
        first, seconds = time.perf_counter() - started, self._seconds(measure)
        yield METRICS, max(first - seconds, 0.0)
        yield TEXT, seconds / num_texts

    def _measured(self, kind: str) -> dict[str, float]:
        section, _, name = kind.partition("@")
        if section in ("pretrain", "baseline", "distill"):
            return {kind: self._training(section)}
        if section == "rival":
            return {kind: self._training("baseline", int(name))}
        with autocast(self.device, select_precision(self.params.runtime.precision, self.device)):
            if kind in (DENOISE, CHOOSE, DRAW):
                return self._denoising()
            if section == WRITE:
                return {kind: self._writing(depth_of(name))}
            return {kind: self._bounding() if kind == BOUND else self._reading(kind)}

    def _training(self, section: str, depth: int | None = None) -> float:
        params, moments = self.params, []
        if depth:
            params = params.model_copy(update={"model": params.model.model_copy(update={"num_blocks": depth})})

        def note(step: int, loss: float) -> None:
            moments.append(time.perf_counter())
            # The first step warms up.
            if step > 2 and moments[-1] - moments[0] > SECONDS:
                raise _Enough

        with suppress(_Enough):
            train_few_steps(params, section, self.vocab_size, num_steps=sys.maxsize, masks_most=False, progress=note)
        network = self.networks.of_depth(depth) if section == "baseline" else self.networks.denoiser
        return training_flops(params, network, section) / _median_step(moments)

    def _denoising(self) -> dict[str, float]:
        """A batch from nothing but its ends, by both samplers."""
        batch_size, new = self._num_samples, self._length - (2 if self.params.sample.give_ends else 0)
        model = _Timed(new_teacher(self.params, self.vocab_size).eval().to(self.device), self._synchronize)
        mask, uniforms = model.config.mask_token_id, Uniforms(0, range(batch_size), self._length)
        x_init = torch.full((batch_size, self._length), mask, device=self.device)
        x_init[:, : self._length - new] = self._tokens(1, self._length - new)

        def seconds_of(sampler: Sampler) -> list[float]:
            """[of the network's body, of all else]."""

            def call() -> list[float]:
                model.seconds = 0.0
                started = time.perf_counter()
                sampler.sample(model, x_init, mask_token_id=mask, uniforms=uniforms)
                self._synchronize()
                return [model.seconds, time.perf_counter() - started - model.seconds]

            return _repeated(call)

        some, more = (denoising(self.networks.denoiser, each, batch_size, self._length, new) for each in SAMPLERS)
        (body, drawing), (_, choosing) = map(seconds_of, SAMPLERS)
        rate = some[DRAW] / drawing
        # A machine that was busy in between might leave nothing.
        left = max(choosing - more[DRAW] / rate, choosing / 10)
        return {DENOISE: some[DENOISE] / body, DRAW: rate, CHOOSE: more[CHOOSE] / left}

    def _writing(self, depth: int | None) -> float:
        model, mask = self.autoregressive(depth), self.vocab_size - 1
        num_new = min(NUM_WRITTEN, self._length // 2)
        stop = (self._length + num_new) // 2
        x_init = torch.full((self._num_samples, stop), mask, device=self.device)
        x_init[:, : stop - num_new] = self._tokens(1, stop - num_new)
        moments: list[float] = []

        def note(step: int, tokens: Tensor) -> None:
            self._synchronize()
            moments.append(time.perf_counter())

        def call() -> list[float]:
            moments.clear()
            uniforms = Uniforms(0, range(len(x_init)), stop)
            draw(model, AUTOREGRESSIVE, x_init, mask_token_id=mask, uniforms=uniforms, on_step=note)
            return [_median_step(moments)]

        (seconds,) = _repeated(call)
        return len(x_init) * forward_flops(self.networks.of_depth(depth), 1, 1, self._length / 2) / seconds

    def _bounding(self) -> float:
        params, settings = self.params, self.params.evaluate
        model = new_teacher(params, self.vocab_size).eval().to(self.device)
        rows = math.ceil(settings.batch_size / settings.num_nelbo_draws)
        mask = model.config.mask_token_id
        tokens = self._tokens(rows, self._length)
        tokens += tokens == mask
        parts = bounding(params, self.networks.denoiser, rows * settings.num_nelbo_draws)
        return parts[BOUND] / self._seconds(
            lambda: denoiser_likelihood(
                partial(logits_at, model),
                tokens.numpy(),
                schedule=LogLinearSchedule(params.noise.epsilon),
                min_time=settings.min_time,
                mask_token_id=mask,
                num_draws=settings.num_nelbo_draws,
                batch_size=settings.batch_size,
                seed=0,
                device=self.device,
            )
        )

    def _reading(self, kind: str) -> float:
        network: Network | HubNetwork | None
        if kind == READ:
            model, network = self.autoregressive(None), self.networks.autoregressive
            precision = self.params.runtime.precision
        else:
            model, network = new_scorer(self.params).to(self.device), self.networks.scorer
            precision = self.params.evaluate.scorer_precision
        assert network is not None, "a scorer of unknown size has no part in a plan"
        length = min(self._length, getattr(model.config, "max_position_embeddings", self._length))
        batch_size = self.params.evaluate.batch_size
        # The scorer may know fewer tokens than we.
        tokens = (self._tokens(batch_size, length) % model.config.vocab_size).numpy()
        with autocast(self.device, select_precision(precision, self.device)):
            seconds = self._seconds(lambda: autoregressive_likelihood(model, tokens, batch_size=batch_size))
        return reading(network, kind, batch_size, length)[kind] / seconds

    @property
    def _length(self) -> int:
        return self.params.data.context_length

    @property
    def _num_samples(self) -> int:
        """Drawn together."""
        return min(self.params.sample.batch_size, self.params.sample.num_samples)

    def _tokens(self, rows: int, length: int) -> Tensor:
        return torch.randint(self.vocab_size - 1, (rows, length))

    def _synchronize(self) -> None:
        synchronizer(self.device)()

    def _seconds(self, call: Callable[[], object]) -> float:
        def timed() -> list[float]:
            started = time.perf_counter()
            call()
            self._synchronize()
            return [time.perf_counter() - started]

        return _repeated(timed)[0]


def _repeated(call: Callable[[], list[float]]) -> list[float]:
    """Medians of what calls return, for `SECONDS`, without the first one, which warms up; or of one that takes long."""
    started = time.perf_counter()
    found = [call()]
    while time.perf_counter() - started < SECONDS:
        found.append(call())
    return [statistics.median(column) for column in zip(*(found[1:] or found), strict=True)]


def _median_step(moments: Sequence[float]) -> float:
    return statistics.median(after - before for before, after in pairwise(moments))


if __name__ == "__main__":
    main(Params.model_validate_json(sys.stdin.read()), **json.loads(sys.argv[1]))
