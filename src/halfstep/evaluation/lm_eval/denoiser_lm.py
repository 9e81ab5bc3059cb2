"""A denoiser as a model of lm-eval: all tokens of the target at once, and its likelihood over orders."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from halfstep.data.texts.chat_template import answer_length, rendered
from halfstep.data.texts.encoding import encode_pair
from halfstep.data.tokens.seeds import derive_seed
from halfstep.diffusion.subs import masked_log_probs
from halfstep.evaluation.lm_eval.harness import digest
from halfstep.evaluation.lm_eval.order_agnostic import LogLikelihood, Maskings, draw_maskings, log_likelihood
from halfstep.metrics.estimate import Estimate
from halfstep.run import console
from halfstep.run.errors import UserError
from halfstep.run.work import Arrays, batched, cached
from halfstep.samplers.base import LogitsAt, Uniforms
from halfstep.samplers.sampler import Sampler

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedTokenizerBase


class _Target(NamedTuple):
    """Tokens to be judged after others, and the name of their randomness."""

    name: tuple[str, ...]
    context: list[int]
    target: list[int]


_Query = tuple[int, list[int], list[bool]]
"""One network evaluation: (number of the target, tokens, which of them are masked)."""


class DenoiserLM(LM):
    """Answers lm-eval's requests with a denoiser.

    The input is `BOS context target EOS` with masks in the target. Greedy decoding takes all target tokens in one pass
    from a fully masked target; the log-likelihood is the bound of `halfstep.evaluation.lm_eval.order_agnostic`. A text
    generated is drawn by a sampler, not decoded greedily. With lm-eval's --apply_chat_template a context is what the
    tokenizer's chat template writes, without another BOS, and any special token ends a generated answer.

    Attributes:
        num_truncated: contexts that lost tokens on the left to fit.
        standard_errors: of each log-likelihood answered so far over its draws, nats; None where there was one draw
            only.
    """

    def __init__(
        self,
        logits_at: LogitsAt,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        max_length: int,
        mask_token_id: int,
        num_draws: int,
        batch_size: int,
        seed: int,
        device: torch.device,
        sampler: Sampler | None = None,
        folder: Path | None = None,
    ) -> None:
        """
        Args:
            logits_at: the denoiser in evaluation mode, see `LogitsAt`.
            tokenizer: with BOS and EOS.
            max_length: tokens of the longest input, BOS and EOS included.
            mask_token_id: id of the absorbing state.
            num_draws: see `draw_maskings`.
            batch_size: inputs per forward pass; inputs of one length go together, so there is no padding.
            seed: each request's draws depend on it and the request alone.
            device: where the denoiser computes.
            sampler: of generated text; None refuses to generate.
            folder: for the batches, see `cached`.
        """
        super().__init__()
        self.tokenizer = tokenizer
        self.num_truncated = 0
        self.standard_errors: list[float | None] = []
        self.max_length = max_length
        self._device = device
        self._logits_at = logits_at
        self._mask_token_id = mask_token_id
        self._num_draws = num_draws
        self._batch_size = batch_size
        self._seed = seed
        self._sampler = sampler
        self._folder = folder
        self._is_chat = False

    @property
    def tokenizer_name(self) -> str:
        """Of the folder or the hub, which is in the names of the requests that lm-eval keeps."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template by which contexts are written from here on, if one is asked for.

        Raises:
            UserError: the tokenizer has none, or one is asked for by name.
        """
        if not chat_template:
            return None
        if self.tokenizer.chat_template is None:
            raise UserError(
                f"tokenizer {self.tokenizer.name_or_path} has no chat template: leave --apply_chat_template out"
            )
        if chat_template is not True:
            raise UserError(f"--apply_chat_template is {chat_template!r}: give it without a name")
        self._is_chat = True
        return self.tokenizer.chat_template

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as the template writes them, up to where the answer begins, or within the last message.

        Raises:
            UserError: as `chat_template`; the template refuses the messages.
        """
        self.chat_template(True)
        options = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        return rendered(chat_history, self.tokenizer, **options)

    @property
    def eot_token_id(self) -> int:
        """EOS."""
        return self.tokenizer.eos_token_id

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes beside its results, after the requests: how the log-likelihoods were drawn."""
        return {"monte_carlo": self.monte_carlo(), "num_truncated": self.num_truncated}

    @property
    def mean_standard_error(self) -> Estimate | None:
        """Mean over all log-likelihoods answered so far of their error over draws, nats; None where it is not known.

        A metric's own standard error over documents holds this noise already, since documents are drawn
        independently: this says how much more draws would take away.
        """
        known = [error for error in self.standard_errors if error is not None]
        count = len(self.standard_errors)
        return Estimate(math.fsum(known) / count, None, count, "nats") if count and len(known) == count else None

    def monte_carlo(self) -> dict[str, Any]:
        """How far the log-likelihoods answered so far depend on the draws; `num_exact` of them needed none."""
        mean = self.mean_standard_error
        return {
            "num_draws": self._num_draws,
            "seed": self._seed,
            "num_log_likelihoods": len(self.standard_errors),
            "num_exact": self.standard_errors.count(0),
            "mean_standard_error": mean and mean.value,
        }

    def loglikelihood(self, requests: "Sequence[Instance]", disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood of the continuation, whether greedy decoding gives it) of each (context, continuation).

        Raises:
            UserError: a continuation has no tokens or does not fit, or the network gives NaN.
        """
        targets = []
        for context, continuation in (request.args for request in requests):
            # EOS takes a place at the end.
            context_ids, target_ids, is_cut = encode_pair(
                self.tokenizer, context, continuation, self.max_length - 1, is_chat=self._is_chat
            )
            self.num_truncated += is_cut
            targets.append(_Target((context, continuation), context_ids, target_ids))
        answers = self._judge(targets, disable_tqdm)
        self.standard_errors += [bound.standard_error for bound, _ in answers]
        return [(bound.value, is_greedy) for bound, is_greedy in answers]

    def loglikelihood_rolling(self, requests: "Sequence[Instance]", disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, a text without tokens being certain.

        A text longer than the model is judged window by window, each token once: a window is given the token before
        it, and the last one as much as fits.

        Raises:
            UserError: the network gives NaN.
        """
        targets, texts = [], []
        # The BOS that every input begins with, one token of context, and the EOS.
        room = self.max_length - 3
        for number, (text,) in enumerate(request.args for request in requests):
            ids = self.tokenizer.encode(text, add_special_tokens=False)
            bos = self.tokenizer.bos_token_id
            windows = get_rolling_token_windows(ids, prefix_token=bos, max_seq_len=room, context_len=1)
            for window, (before, target) in enumerate(map(make_disjoint_window, windows)):
                context = before if window == 0 else [bos, *before]
                targets.append(_Target((text, str(window)), context, target))
                texts.append(number)
        bounds: list[list[LogLikelihood]] = [[] for _ in requests]
        for number, (bound, _) in zip(texts, self._judge(targets, disable_tqdm), strict=True):
            bounds[number].append(bound)
        self.standard_errors += map(_error_of_sum, bounds)
        return [math.fsum(bound.value for bound in of_text) for of_text in bounds]

    def generate_until(self, requests: "Sequence[Instance]", disable_tqdm: bool = False) -> list[str]:
        """A continuation of each (context, settings), up to the first stop string or EOS.

        All max_gen_toks tokens are drawn together by the sampler; a temperature is refused.

        Raises:
            UserError: no sampler was given, max_gen_toks does not fit, or a setting cannot be followed.
        """
        if self._sampler is None:
            raise UserError("this task generates text, in a number of denoising steps: add num_steps=8 to --model_args")
        texts = []
        with _progress("texts", len(requests), disable_tqdm) as update:
            for context, settings in (request.args for request in requests):
                texts.append(self._generate(context, settings, self._sampler))
                update(len(texts), "")
        return texts

    @torch.inference_mode()
    def _generate(self, context: str, settings: dict[str, Any], sampler: Sampler) -> str:
        stops, num_tokens = _generation_limits(settings, self.max_length)
        ids = self.tokenizer.encode(context, add_special_tokens=False)
        begin = [] if self._is_chat else [self.tokenizer.bos_token_id]
        kept = ids[max(len(ids) - (self.max_length - len(begin) - num_tokens), 0) :]
        self.num_truncated += len(kept) < len(ids)
        given = [*begin, *kept]
        x_init = torch.tensor([given + [self._mask_token_id] * num_tokens], device=self._device)
        uniforms = Uniforms(derive_seed(self._seed, "generate", context), [0], x_init.shape[1])
        drawn = sampler.sample(self._logits_at, x_init, mask_token_id=self._mask_token_id, uniforms=uniforms)
        new = drawn.tokens[0, len(given) :].tolist()
        eos = self.eot_token_id
        end = answer_length(new, self.tokenizer) if self._is_chat else [*new, eos].index(eos)
        return postprocess_generated_text(self.tokenizer.decode(new[:end], skip_special_tokens=True), stops, None)

    @torch.inference_mode()
    def _judge(self, targets: Sequence[_Target], disable_tqdm: bool) -> list[tuple[LogLikelihood, bool]]:
        """(log-likelihood, whether a fully masked target is decoded greedily to it) of each target."""
        answers: dict[int, tuple[LogLikelihood, bool]] = {}
        folder = self._folder and self._folder / digest(targets)

        def length(index: int) -> int:
            return len(targets[index].context) + len(targets[index].target)

        with _progress("log-likelihoods", len(targets), disable_tqdm) as update:
            # The sort is stable and by length alone: no padding, and an order that depends on the requests only.
            for num_tokens, same_length in groupby(sorted(range(len(targets)), key=length), key=length):
                maskings: dict[int, Maskings] = {}
                rows: dict[int, list[np.ndarray]] = {}
                is_greedy: dict[int, bool] = {}
                queries = (query for i in same_length for query in self._queries(i, targets[i], maskings))
                batches = batched(queries, self._batch_size)
                for batch, kept in cached(folder and folder / str(num_tokens), batches, self._evaluate):
                    for (i, _, _), log_p, is_best in zip(batch, kept["log_p"], kept["is_best"], strict=True):
                        rows.setdefault(i, []).append(log_p[len(targets[i].context) : -1])
                        # The first masking hides everything.
                        is_greedy.setdefault(i, bool(is_best))
                        if len(rows[i]) == len(maskings[i].is_masked):
                            answers[i] = _bound(maskings.pop(i), rows.pop(i), targets[i]), is_greedy[i]
                            update(len(answers), "")
        return [answers[i] for i in range(len(targets))]

    def _queries(self, index: int, target: _Target, maskings: dict[int, Maskings]) -> Iterator[_Query]:
        """The network evaluations for one target, fully masked first; its maskings are put into `maskings`."""
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "log-likelihood", *target.name))
        maskings[index] = draw_maskings(len(target.target), self._num_draws, generator)
        x0 = [*target.context, *target.target, self.eot_token_id]
        for mask in maskings[index].is_masked.tolist():
            yield index, x0, [False] * len(target.context) + mask + [False]

    def _evaluate(self, batch: Sequence[_Query]) -> Arrays:
        """log_p: of each masked token, 0 at others, float64 [batch, length]; is_best: whether all are most likely."""
        x0 = torch.tensor([x0 for _, x0, _ in batch], device=self._device)
        is_masked = torch.tensor([mask for _, _, mask in batch], device=self._device)
        xt = torch.where(is_masked, self._mask_token_id, x0)
        predicted = masked_log_probs(self._logits_at(xt, is_masked), self._mask_token_id)
        targets = x0[is_masked]
        is_masked = is_masked.cpu()
        log_p, is_best = torch.zeros(x0.shape, dtype=torch.float64), torch.ones_like(is_masked)
        log_p[is_masked] = predicted.gather(-1, targets[:, None])[:, 0].cpu().double()
        is_best[is_masked] = (predicted.argmax(dim=-1) == targets).cpu()
        return {"log_p": log_p.numpy(), "is_best": is_best.all(dim=1).numpy()}


def _bound(maskings: Maskings, rows: Sequence[np.ndarray], target: _Target) -> LogLikelihood:
    log_p = torch.from_numpy(np.stack(rows))
    if log_p.isnan().any():
        raise UserError(
            f"the model gives NaN for {target.name[-1][:60]!r} after {target.name[0][-60:]!r}: its weights are"
            " broken, train it again with a lower learning rate"
        )
    return log_likelihood(maskings, log_p)


def _progress(
    description: str, total: int, is_disabled: bool
) -> contextlib.AbstractContextManager[Callable[[int, str], None]]:
    if is_disabled:
        return contextlib.nullcontext(lambda done, note: None)
    return console.progress(description, total, unit="request")


def _generation_limits(settings: dict[str, Any], max_length: int) -> tuple[list[str], int]:
    """(stop strings, tokens to generate) of a task's settings; `max_length` tokens fit into an input, BOS included."""
    limits = normalize_gen_kwargs(settings)
    num_tokens = limits["max_gen_toks"]
    if not 1 <= num_tokens < max_length:
        raise UserError(
            f"max_gen_toks is {num_tokens}, but the model's length {max_length} must hold BOS and it: give"
            f" --gen_kwargs max_gen_toks={max_length // 2}"
        )
    if limits["do_sample"] and float(limits.get("temperature", 1)) not in (0, 1):
        raise UserError(
            f"temperature is {limits['temperature']}, but a denoiser draws at temperature 1: give"
            " --gen_kwargs temperature=1"
        )
    return [stop for stop in limits["until"] if stop], num_tokens


def _error_of_sum(bounds: Sequence[LogLikelihood]) -> float | None:
    errors = [bound.standard_error for bound in bounds]
    return math.hypot(*(error for error in errors if error is not None)) if None not in errors else None
