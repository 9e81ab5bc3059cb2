"""A plan: what each stage computes, holds and writes, from the parameters alone."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from halfstep.run.files import read_json, resolve_user_path
from halfstep.settings import Params
from halfstep.settings.graph import BASELINE
from halfstep.settings.training import TrainingSettings, num_parts
from halfstep.tools.planning.corpus import HUB_TOKENIZERS, Known
from halfstep.tools.planning.devices import GPUS, Gpu
from halfstep.tools.planning.disk import Disk, disk_of
from halfstep.tools.planning.expectations import expected_evaluations, masked_share, teacher_shares
from halfstep.tools.planning.memory import Memory, device_of, evaluation_memory, sampling_memory, training_memory
from halfstep.tools.planning.networks import (
    Network,
    Parameters,
    body_flops,
    count_parameters,
    forward_flops,
    head_flops,
)

BASELINE_STAGE = "baseline"

USABLE_SHARE = 0.9
"""Of a GPU's memory: CUDA, torch and what an allocator cannot reuse take the rest."""

FORWARD_AND_BACKWARD = 3
"""A backward pass makes two products for each one of the forward pass: by the inputs and by the weights."""

SCORERS = {
    "gpt2": (768, 12, 12),
    "gpt2-medium": (1024, 24, 16),
    "gpt2-large": (1280, 36, 20),
    "gpt2-xl": (1600, 48, 25),
}
"""Width, blocks and heads of public causal models, by hub id."""

LEFT_OUT = (
    "evaluate: cloze passages, downstream tasks and other texts, whose lengths are known when they are read",
    "prepare, latency, report and track",
    "validation during training",
)


@dataclass(frozen=True)
class Work:
    """What a stage computes.

    Attributes:
        stage: its name, as DVC has it.
        num_models: so many models go through the stage, each at this cost.
        num_steps: optimizer steps; None where nothing is trained.
        num_tokens: of all sequences that pass through the stage, once each.
        flops: floating-point operations of the matrix products, in all.
        bytes_read: of weights and cache, at least, where a stage makes more network evaluations than arithmetic fills.
        busiest_share: of the work that falls to the device that has most of it: batches are not divided further.
    """

    stage: str
    num_models: int
    num_steps: int | None
    num_tokens: float
    flops: float
    bytes_read: float
    busiest_share: float

    @property
    def flops_per_step(self) -> float | None:
        """Of an optimizer step."""
        return self.flops / self.num_steps if self.num_steps else None

    def seconds(self, gpu: Gpu, mfu: float) -> float:
        """For one model: at a share of the GPU's peak, or at the speed of its memory where that is less."""
        arithmetic = self.flops / (gpu.flops_per_second * mfu)
        return max(arithmetic, self.bytes_read / gpu.bytes_per_second) * self.busiest_share


@dataclass(frozen=True)
class Load:
    """What a device holds in a stage.

    Attributes:
        stage: its name.
        num_sequences: computed at once.
        memory: at the fullest moment.
        fits: for each GPU, by name: an empty text if it fits; the override with which it does; None where none helps.
    """

    stage: str
    num_sequences: int
    memory: Memory
    fits: dict[str, str | None]


@dataclass(frozen=True)
class Plan:
    """All of it, see the fields' types; `num_tokens` is None where nothing says how large the corpus is."""

    preset: str
    vocab_size: Known
    num_tokens: Known | None
    denoiser: Parameters
    baseline: Parameters
    precision: str
    num_devices: int
    strategy: str
    works: list[Work]
    loads: list[Load]
    disk: Disk
    left_out: list[str]

    def as_dict(self, mfu: float) -> dict[str, Any]:
        """Plain values for a file: bytes, seconds, floating-point operations."""
        values = asdict(self)
        for name in ("denoiser", "baseline"):
            values[name]["total"] = getattr(self, name).total
        for work, planned in zip(self.works, values["works"], strict=True):
            planned["flops_per_step"] = work.flops_per_step
            planned["seconds"] = {gpu.name: work.seconds(gpu, mfu) for gpu in GPUS}
        for load, planned in zip(self.loads, values["loads"], strict=True):
            planned["memory"]["total"] = load.memory.total
        values["disk"]["total"] = self.disk.total
        return {**values, "mfu": mfu, "gpus": [asdict(gpu) for gpu in GPUS]}


def make_plan(params: Params, vocab_size: Known, num_tokens: Known | None) -> Plan:
    """Plan a run of the whole pipeline.

    Args:
        params: all parameters.
        vocab_size: tokens, the mask token included.
        num_tokens: of the corpus; None where it is not known.
    """
    model = params.model
    denoiser = Network(
        vocab_size.value,
        model.hidden_size,
        model.num_blocks,
        model.num_heads,
        params.data.context_length,
        model.cond_dim,
    )
    baseline = replace(denoiser, cond_dim=None)
    scorer = _scorer(params, baseline)
    sizes = count_parameters(denoiser), count_parameters(baseline)
    tokens = num_tokens.value if num_tokens else None
    return Plan(
        preset=params.preset,
        vocab_size=vocab_size,
        num_tokens=num_tokens,
        denoiser=sizes[0],
        baseline=sizes[1],
        precision=device_of(params)[1],
        num_devices=params.launch.num_processes,
        strategy=params.launch.strategy,
        works=list(_works(params, denoiser, baseline, scorer)),
        loads=list(_loads(params, denoiser, baseline, scorer)),
        disk=disk_of(
            params, denoiser=sizes[0].total, baseline=sizes[1].total, vocab_size=vocab_size.value, num_tokens=tokens
        ),
        left_out=[*(() if scorer else (f"evaluate.scorer {params.evaluate.scorer}, of unknown size",)), *LEFT_OUT],
    )


def training_flops(params: Params, network: Network, stage: str, round_index: int = 1) -> float:
    """Floating-point operations of an optimizer step, on average over the noise.

    Args:
        params: all parameters.
        network: that is trained.
        stage: pretrain, baseline or distill.
        round_index: of distill, from 1: in later rounds more unmasks in a teacher's first step. An objective other than
            nelbo is taken to ask the teacher as SDTT's does.
    """
    settings: TrainingSettings = getattr(params, stage)
    length, epsilon = params.data.context_length, params.noise.epsilon
    if stage == BASELINE_STAGE:
        length -= 1
        num_tokens = num_wanted = float(settings.batch_size * length)
    else:
        min_time = (params.distill if stage == "distill" else params.pretrain).min_time
        num_tokens = settings.batch_size * length
        num_wanted = num_tokens * masked_share(epsilon, min_time)
    flops = FORWARD_AND_BACKWARD * forward_flops(network, num_tokens, num_wanted, length)
    if params.launch.gradient_checkpointing:
        flops += body_flops(network, num_tokens, num_wanted, length)
    if stage == "distill" and params.distill.objective != "nelbo":
        distill = params.distill
        shares = teacher_shares(
            dt=distill.num_teacher_steps ** (round_index - 1) / distill.base_num_steps,
            num_teacher_steps=distill.num_teacher_steps,
            length=length,
            epsilon=epsilon,
            min_time=distill.min_time,
        )
        for evaluated, unmasking in shares:
            flops += forward_flops(network, num_tokens * evaluated, num_tokens * unmasking, length)
    return flops


def _works(params: Params, denoiser: Network, baseline: Network, scorer: Network | None) -> Iterator[Work]:
    def training(stage: str, name: str, network: Network, round_index: int = 1) -> Work:
        settings: TrainingSettings = getattr(params, stage)
        steps = settings.num_train_steps
        flops = steps * training_flops(params, network, stage, round_index)
        num_tokens = steps * settings.batch_size * params.data.context_length
        return Work(name, 1, steps, num_tokens, flops, 0, 1 / params.launch.num_processes)

    yield training("pretrain", "pretrain", denoiser)
    yield training(BASELINE_STAGE, BASELINE_STAGE, baseline)
    for round_index in range(1, params.rounds + 1):
        yield training("distill", f"distill@{round_index}", denoiser, round_index)
    for network, names, count in _models(params, denoiser, baseline):
        yield _sampling(params, network, f"sample@{names}", count)
        yield _evaluating(params, network, scorer, f"evaluate@{names}", count)


def _models(params: Params, denoiser: Network, baseline: Network) -> Iterable[tuple[Network, str, int]]:
    """(network, names, number) of the models that are sampled and measured."""
    names = "0" if params.rounds == 0 else f"0..{params.rounds}"
    return (denoiser, names, params.rounds + 1), (baseline, BASELINE, 1)


def _sampling(params: Params, network: Network, name: str, num_models: int) -> Work:
    settings = params.sample
    # (samples, tokens of each, tokens of them given)
    kinds = (
        (settings.num_samples, params.data.context_length, 0 if network.is_denoiser else 1),
        (
            settings.num_prefixes * settings.continuations_per_prefix,
            settings.continuation_length,
            settings.prefix_length,
        ),
    )
    weights = 4 * count_parameters(network).total
    num_tokens = flops = bytes_read = busiest = 0.0
    for num_samples, length, given in kinds:
        num_batches = math.ceil(num_samples / settings.batch_size)
        new = length - given
        flops_before = flops
        if network.is_denoiser:
            for num_steps in settings.num_steps:
                evaluations = expected_evaluations(num_steps, new)
                flops += num_samples * forward_flops(network, evaluations * length, new, length)
                bytes_read += num_batches * weights * min(num_steps, new * settings.batch_size)
                num_tokens += num_samples * new
        else:
            flops += num_samples * body_flops(network, length - 1, length - 1, length / 2)
            flops += num_samples * head_flops(network, new)
            cache = 2 * network.num_blocks * network.hidden_size * 2 * length / 2 * settings.batch_size
            bytes_read += num_batches * new * (weights + cache)
            num_tokens += num_samples * new
        # Batches of every number of steps are handed out in one sequence.
        num_sets = len(settings.num_steps) if network.is_denoiser else 1
        busiest += (flops - flops_before) * _busiest_share(params, num_sets * num_batches)
    return Work(name, num_models, None, num_tokens, flops, bytes_read, busiest / flops)


def _busiest_share(params: Params, num_batches: int) -> float:
    """Of equal batches, as the devices take one each in turn, the share of the device that takes most."""
    return math.ceil(num_batches / params.launch.num_processes) / num_batches


def _evaluating(params: Params, network: Network, scorer: Network | None, name: str, num_models: int) -> Work:
    """Likelihood of the held-out text, and the scorer's reading of it and of all samples."""
    settings, length = params.evaluate, params.data.context_length
    held_out = settings.num_valid_sequences
    num_tokens = num_wanted = float(held_out * length)
    if network.is_denoiser:
        num_tokens *= settings.num_nelbo_draws
        num_wanted = num_tokens * masked_share(params.noise.epsilon, params.pretrain.min_time)

    def busiest(num_sequences: int) -> float:
        return _busiest_share(params, math.ceil(num_sequences / settings.batch_size))

    flops = forward_flops(network, num_tokens, num_wanted, length)
    of_busiest = flops * busiest(round(num_tokens / length))
    read = num_tokens
    if scorer is not None:
        sets = len(set(params.sample.num_steps)) if network.is_denoiser else 1
        short = params.sample.continuation_length
        prefixes = params.sample.num_prefixes
        # (times that the scorer is asked, sequences, their tokens, whether for their logits or for a feature)
        for times, count, of, is_scored in (
            (1, held_out, length, True),
            (sets, params.sample.num_samples, length, True),
            (1, prefixes, short, False),
            (sets, prefixes * params.sample.continuations_per_prefix, short, False),
        ):
            asked = times * count * of
            part = forward_flops(scorer, asked, asked, of) if is_scored else body_flops(scorer, asked, asked, of)
            flops += part
            of_busiest += part * busiest(count)
            read += asked
    return Work(name, num_models, None, read, flops, 0, of_busiest / flops)


def _loads(params: Params, denoiser: Network, baseline: Network, scorer: Network | None) -> Iterator[Load]:
    num_devices = params.launch.num_processes
    for stage, network in (("pretrain", denoiser), (BASELINE_STAGE, baseline), ("distill", denoiser)):
        settings: TrainingSettings = getattr(params, stage)
        # What is taken as it is, from init_from, or not at all needs no memory to train.
        if settings.num_train_steps and (stage != "distill" or params.rounds):
            size, now = settings.batch_size, settings.num_accumulation_steps
            finer = [n for n in range(now, size + 1) if not size % num_parts(n, num_devices)]
            tried = {n: training_memory(params, network, stage, n) for n in finer}
            yield _load(stage, size // num_parts(now, num_devices), f"{stage}.num_accumulation_steps", tried)
    for network, names, _ in _models(params, denoiser, baseline):
        size = params.sample.batch_size
        tried = {n: sampling_memory(params, network, n) for n in _halved(size)}
        yield _load(f"sample@{names}", size, "sample.batch_size", tried)
        size = params.evaluate.batch_size
        tried = {n: evaluation_memory(params, network, scorer, n) for n in _halved(size)}
        yield _load(f"evaluate@{names}", size, "evaluate.batch_size", tried)


def _load(stage: str, num_sequences: int, key: str, tried: dict[int, Memory]) -> Load:
    """A load, where memory is known for the value that a parameter has, the first, and for others that need less."""
    now, memory = next(iter(tried.items()))
    fits = {
        gpu.name: next(
            (
                "" if value == now else f"{key}={value}"
                for value, needed in tried.items()
                if needed.total <= USABLE_SHARE * gpu.memory_bytes
            ),
            None,
        )
        for gpu in GPUS
    }
    return Load(stage, num_sequences, memory, fits)


def _halved(number: int) -> Iterator[int]:
    while number:
        yield number
        number //= 2


def _scorer(params: Params, baseline: Network) -> Network | None:
    """The scorer's sizes; None where they are not known."""
    source = params.evaluate.scorer
    if source == f"models/{BASELINE}":
        return baseline
    hub_id = source.removeprefix("openai-community/")
    if hub_id in SCORERS:
        return Network(HUB_TOKENIZERS[hub_id], *SCORERS[hub_id], length=1024, cond_dim=None)
    try:
        values = read_json(resolve_user_path(source) / "config.json")
        names = ("vocab_size", "n_embd", "n_layer", "n_head", "n_positions")
        vocab_size, hidden_size, num_blocks, num_heads, length = (int(values[name]) for name in names)
        return Network(vocab_size, hidden_size, num_blocks, num_heads, length, None)
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, TypeError):
        return None
