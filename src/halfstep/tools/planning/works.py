"""What the stages of a run compute, by kind of work: a machine does more of one kind in a second than of another."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.objectives.masked import masked_share
from halfstep.samplers.sampler import Sampler, samplers_of
from halfstep.settings import Params
from halfstep.settings.graph import BASELINE, FIRST_TEACHER, depth_of, rivals_of, scores_by_baseline
from halfstep.settings.training import TrainingSettings
from halfstep.tools.planning.drawing import count_drawing
from halfstep.tools.planning.gpus import Gpu
from halfstep.tools.planning.memory import FLOAT, distillation_costs
from halfstep.tools.planning.networks import (
    HubNetwork,
    Network,
    body_flops,
    count_parameters,
    forward_flops,
    head_flops,
)
from halfstep.tools.planning.scorer import scorer_network
from halfstep.tools.planning.teacher import teacher_network

FORWARD_AND_BACKWARD = 3
"""A backward pass makes two products for each one of the forward pass: by the inputs and by the weights."""

DENOISE, CHOOSE, DRAW = "denoise", "choose", "draw"
"""A denoiser that writes: evaluations without the projection; projecting positions, to choose which are written;
projecting positions, and drawing their tokens."""
WRITE = "write"
"""An autoregressive model writes; its name comes behind it."""
BOUND, READ, SCORE = "bound", f"read@{BASELINE}", "score"
"""Held-out text under a denoiser; text that the baseline reads; text that the scorer reads, if it is another."""

Parts = dict[str, float]
"""Floating-point operations by kind of work."""


@dataclass(frozen=True)
class Work:
    """What a stage computes.

    Attributes:
        stage: its name, as DVC has it.
        num_models: so many models go through the stage, each at this cost.
        num_steps: optimizer steps; None where nothing is trained.
        num_tokens: of all sequences that pass through the stage, once each.
        parts: floating-point operations of the matrix products, in all, by kind of work.
        flops_per_step: of an optimizer step.
        bytes_read: of weights and cache, at least, where a stage makes more network evaluations than arithmetic fills.
        num_texts: that are compared and resampled, beside being read.
    """

    stage: str
    num_models: int
    num_steps: int | None
    num_tokens: float
    parts: Parts
    flops_per_step: float | None = None
    bytes_read: float = 0
    num_texts: int = 0

    @property
    def flops(self) -> float:
        """Of all parts."""
        return sum(self.parts.values())

    def seconds(self, gpu: Gpu, mfu: float, num_devices: int) -> float:
        """For one model: at a share of the GPU's peak, or at the speed of its memory where that is less."""
        arithmetic = self.flops / (gpu.flops_per_second * mfu)
        return max(arithmetic, self.bytes_read / gpu.bytes_per_second) / num_devices


@dataclass(frozen=True)
class Networks:
    """Sizes of the networks of a run; `scorer` is None where they are not known."""

    denoiser: Network | HubNetwork
    autoregressive: Network
    scorer: Network | HubNetwork | None

    @classmethod
    def of(cls, params: Params, vocab_size: int) -> "Networks":
        """Those of a run; `vocab_size` counts the mask token."""
        sizes = params.model.model_dump(include={"hidden_size", "num_blocks", "num_heads"})
        autoregressive = Network(vocab_size, length=params.data.context_length, cond_dim=None, **sizes)
        return cls(teacher_network(params, vocab_size), autoregressive, scorer_network(params, autoregressive))

    def of_depth(self, depth: int | None) -> Network:
        """The autoregressive model of so many blocks; None: the baseline."""
        return replace(self.autoregressive, num_blocks=depth or self.autoregressive.num_blocks)


def works_of(params: Params, networks: Networks) -> Iterator[Work]:
    """What each stage computes that is counted."""
    denoiser, rivals = networks.denoiser, rivals_of(params.rivals)
    yield _training(params, denoiser, "pretrain", "pretrain")
    yield _training(params, networks.autoregressive, "baseline", "baseline")
    for rival in rivals:
        yield _training(params, networks.of_depth(depth_of(rival)), "baseline", f"rival@{depth_of(rival)}")
    for round_index in range(1, params.rounds + 1):
        yield _training(params, denoiser, "distill", f"distill@{round_index}", round_index)
    denoisers = "0" if params.rounds == 0 else f"0..{params.rounds}"
    for is_denoiser, names, count in ((True, denoisers, params.rounds + 1), (False, BASELINE, 1)):
        yield _sampling(params, networks, is_denoiser, f"sample@{names}", count)
        yield _evaluating(params, networks, is_denoiser, f"evaluate@{names}", count)
    first, others = (samplers_of(some) for some in (params.frontier.samplers, params.frontier.student_samplers))
    yield _frontier(params, networks, FIRST_TEACHER, first, 1)
    if params.rounds:
        yield _frontier(params, networks, "1" if params.rounds == 1 else f"1..{params.rounds}", others, params.rounds)
    for name in (BASELINE, *rivals):
        yield _frontier(params, networks, name, None, 1)


def training_flops(params: Params, network: Network | HubNetwork, stage: str, round_index: int = 1) -> float:
    """Floating-point operations of an optimizer step, on average over the noise.

    An objective of distillation says itself what it computes beside the student, see `Costs`.

    Args:
        params: all parameters.
        network: that is trained.
        stage: pretrain, baseline or distill.
        round_index: of distill, from 1: in later rounds more unmasks in a teacher's first step.
    """
    settings: TrainingSettings = getattr(params, stage)
    length, share_wanted = _asked(params, stage)
    num_tokens = settings.batch_size * length
    flops = FORWARD_AND_BACKWARD * forward_flops(network, num_tokens, num_tokens * share_wanted, length)
    if params.launch.gradient_checkpointing:
        flops += body_flops(network, num_tokens, num_tokens * share_wanted, length)
    if stage == "distill":
        for evaluated, wanted in distillation_costs(params, round_index, network.num_blocks).passes:
            flops += head_flops(network, num_tokens * wanted)
            if evaluated:
                flops += body_flops(network, num_tokens * evaluated, num_tokens * wanted, length)
    return flops


def validation_flops(params: Params, network: Network | HubNetwork, stage: str) -> float:
    """Floating-point operations of all validations of a stage that trains."""
    settings: TrainingSettings = getattr(params, stage)
    length, share_wanted = _asked(params, stage)
    # The last step is followed by one, too.
    num_validations = math.ceil(settings.num_train_steps / settings.validate_every_steps)
    num_tokens = num_validations * settings.num_valid_sequences * length
    return forward_flops(network, num_tokens, num_tokens * share_wanted, length)


def _asked(params: Params, stage: str) -> tuple[int, float]:
    """(positions of a sequence that pass through what a stage trains, share of them that is projected)."""
    length = params.data.context_length
    if stage == "baseline":
        return length - 1, 1.0
    times = params.distill if stage == "distill" else params.pretrain
    return length, masked_share(times.min_time, LogLinearSchedule(params.noise.epsilon))


def _training(params: Params, network: Network | HubNetwork, section: str, stage: str, round_index: int = 1) -> Work:
    settings: TrainingSettings = getattr(params, section)
    steps = settings.num_train_steps
    per_step = training_flops(params, network, section, round_index)
    # Rounds differ by what a teacher's steps write, and by nothing else.
    kind = section if section == "distill" else stage
    parts = added([{kind: steps * per_step + validation_flops(params, network, section)}])
    return Work(stage, 1, steps, steps * settings.batch_size * params.data.context_length, parts, per_step)


def added(parts: Iterable[Parts]) -> Parts:
    """The sum of some parts, without those that are nothing."""
    total: Parts = {}
    for kind, flops in chain.from_iterable(some.items() for some in parts):
        if flops:
            total[kind] = total.get(kind, 0) + flops
    return total


def denoising(network: Network | HubNetwork, sampler: Sampler, num_samples: int, length: int, new: int) -> Parts:
    """What samples of a denoiser take, of which each has `new` of `length` tokens to write."""
    drawing = count_drawing(sampler, length, new)
    # Where a sampler chooses, what it draws is among what it asked for.
    wanted = drawing.chosen_from or drawing.drawn
    return {
        DENOISE: num_samples * body_flops(network, drawing.evaluations * length, wanted, length),
        CHOOSE: num_samples * head_flops(network, drawing.chosen_from),
        DRAW: num_samples * head_flops(network, drawing.drawn),
    }


def writing(network: Network, model: str, num_samples: int, length: int, new: int) -> Parts:
    """What samples of an autoregressive model take, of which each has `new` of `length` tokens to write."""
    return {f"{WRITE}@{model}": num_samples * forward_flops(network, length - 1, new, length / 2)}


def bounding(params: Params, network: Network | HubNetwork, num_looks: int) -> Parts:
    """What a denoiser's likelihood of held-out text takes, in so many looks at a sequence."""
    length, share_wanted = _asked(params, "pretrain")
    return {BOUND: forward_flops(network, num_looks * length, num_looks * length * share_wanted, length)}


def reading(network: Network | HubNetwork, kind: str, num_texts: int, length: int) -> Parts:
    """What a causal model takes to read texts."""
    return {kind: forward_flops(network, num_texts * length, num_texts * length, length)}


def _scoring(params: Params, networks: Networks, num_texts: int, length: int) -> Parts:
    """What the scorer takes to read texts, of as many of its tokens as of ours; nothing if its size is not known."""
    if networks.scorer is None:
        return {}
    return reading(networks.scorer, READ if scores_by_baseline(params.evaluate.scorer) else SCORE, num_texts, length)


def _sampling(params: Params, networks: Networks, is_denoiser: bool, stage: str, num_models: int) -> Work:
    settings = params.sample
    network = networks.denoiser if is_denoiser else networks.autoregressive
    samplers = samplers_of(settings.samplers)
    weights = FLOAT * count_parameters(network).total
    num_continuations = settings.num_prefixes * settings.continuations_per_prefix
    num_tokens = bytes_read = 0.0
    parts = []
    for num_samples, length, given in (
        (settings.num_samples, params.data.context_length, _num_ends(params) if is_denoiser else 1),
        (num_continuations, settings.continuation_length, settings.prefix_length),
    ):
        new = length - given
        if is_denoiser:
            parts += [denoising(network, sampler, num_samples, length, new) for sampler in samplers]
            calls = sum(count_drawing(sampler, length, new).calls for sampler in samplers)
            bytes_read += num_samples / settings.batch_size * calls * weights
            num_tokens += len(samplers) * num_samples * new
        else:
            parts.append(writing(networks.autoregressive, BASELINE, num_samples, length, new))
            cache = 2 * network.num_blocks * network.hidden_size * 2 * length / 2
            bytes_read += num_samples * new * (weights / settings.batch_size + cache)
            num_tokens += num_samples * new
    return Work(stage, num_models, None, num_tokens, added(parts), bytes_read=bytes_read)


def _num_ends(params: Params) -> int:
    """Tokens of a sample that are given because every text has them."""
    return 2 if params.sample.give_ends else 0


def _evaluating(params: Params, networks: Networks, is_denoiser: bool, stage: str, num_models: int) -> Work:
    """Likelihood of the held-out text, and the scorer's reading of it and of all samples."""
    sample, settings, length = params.sample, params.evaluate, params.data.context_length
    num_looks = settings.num_valid_sequences * (settings.num_nelbo_draws if is_denoiser else 1)
    num_sets = len(samplers_of(sample.samplers)) if is_denoiser else 1
    likelihood = (
        bounding(params, networks.denoiser, num_looks)
        if is_denoiser
        else reading(networks.autoregressive, READ, num_looks, length)
    )
    num_texts = settings.num_valid_sequences + num_sets * sample.num_samples
    num_short = sample.num_prefixes * (1 + num_sets * sample.continuations_per_prefix)
    scored = [
        _scoring(params, networks, num_texts, length),
        _scoring(params, networks, num_short, sample.continuation_length),
    ]
    num_tokens = num_looks * length
    if networks.scorer is not None:
        num_tokens += num_texts * length + num_short * sample.continuation_length
    parts = added([likelihood, *scored])
    return Work(stage, num_models, None, num_tokens, parts, num_texts=num_sets * sample.num_samples)


def _frontier(
    params: Params, networks: Networks, names: str, samplers: Sequence[Sampler] | None, num_models: int
) -> Work:
    """Samples drawn in every way, and read by the scorer where they are texts; without samplers, of a causal model."""
    settings, length = params.frontier, params.data.context_length
    num_samples, num_temperatures = settings.num_samples, len(settings.temperatures)
    # A puzzle has its cells between BOS and two EOS.
    news = [length - 3 - givens for givens in settings.num_givens] or [length - _num_ends(params)]
    if samplers is None:
        drawn = [writing(networks.of_depth(depth_of(names)), names, num_samples, length, new) for new in news]
    else:
        drawn = [
            denoising(networks.denoiser, sampler, num_samples, length, new) for new in news for sampler in samplers
        ]
    num_sets = num_temperatures * len(drawn)
    # The references are read once.
    num_texts = 0 if settings.num_givens else (1 + num_sets) * num_samples
    scored = _scoring(params, networks, num_texts, length)
    num_tokens = num_temperatures * num_samples * sum(news) * len(drawn) // len(news)
    num_tokens += num_texts * length if scored else 0
    parts = added([*drawn * num_temperatures, scored])
    num_measured = max(num_texts - num_samples, 0)
    return Work(f"frontier@{names}", num_models, None, num_tokens, parts, num_texts=num_measured)
