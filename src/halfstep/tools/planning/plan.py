"""A plan: what each stage computes, holds and writes, from the parameters alone."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from halfstep.run.files import read_json, resolve_user_path
from halfstep.settings import Params
from halfstep.settings.graph import BASELINE
from halfstep.settings.training import TrainingSettings, num_parts
from halfstep.tools.planning.corpus import HUB_TOKENIZERS, Known
from halfstep.tools.planning.devices import GPUS, Gpu
from halfstep.tools.planning.disk import Disk, disk_of
from halfstep.tools.planning.expectations import (
    expected_evaluations,
    highest_masked_share,
    masked_share,
    teacher_shares,
)
from halfstep.tools.planning.memory import Device, Peak, Sharing, evaluation_peak, sampling_peak, training_peak
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


@dataclass(frozen=True)
class Work:
    """What a stage computes.

    Attributes:
        stage: its name, as DVC has it.
        num_models: so many models go through the stage, each at this cost.
        num_steps: optimizer steps; None where nothing is trained.
        num_tokens: of all sequences that pass through the stage, once each.
        flops: floating-point operations of the matrix products, in all.
        bytes_read: of weights and cache, where a stage makes more network evaluations than arithmetic fills: that
            often the memory is read at least.
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
        peak: the most memory.
        fits: for each GPU, by name: an empty text if it fits; the override with which it does; None where none helps.
    """

    stage: str
    num_sequences: int
    peak: Peak
    fits: dict[str, str | None]


@dataclass(frozen=True)
class Plan:
    """All of it, see the fields' types.

    Attributes:
        preset: of the parameters.
        vocab_size, num_tokens: of the corpus, and where they are from; no number of tokens where nothing says it.
        denoiser, baseline: parameters.
        precision: of the matrix products, bf16 or fp32.
        num_devices, strategy: of `launch`.
        works, loads: by stage.
        disk: what is written.
        left_out: what is not in it, one sentence each.
    """

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
            planned["peak"]["total"] = load.peak.total
        values["disk"]["total"] = self.disk.total
        return {**values, "mfu": mfu, "gpus": [asdict(gpu) for gpu in GPUS]}


def make_plan(params: Params, vocab_size: Known, num_tokens: Known | None) -> Plan:
    """Plan a run of the whole pipeline.

    Args:
        params: all parameters.
        vocab_size: tokens, the mask token included.
        num_tokens: of the corpus; None where it is not known.
    """
    denoiser, baseline = networks(params, vocab_size.value)
    scorer, left_out = _scorer(params, baseline)
    launch = params.launch
    return Plan(
        preset=params.preset,
        vocab_size=vocab_size,
        num_tokens=num_tokens,
        denoiser=count_parameters(denoiser),
        baseline=count_parameters(baseline),
        precision="bf16" if device_of(params).is_bf16 else "fp32",
        num_devices=launch.num_processes,
        strategy=launch.strategy,
        works=list(_works(params, denoiser, baseline, scorer)),
        loads=list(_loads(params, denoiser, baseline, scorer)),
        disk=disk_of(
            params,
            denoiser=count_parameters(denoiser).total,
            baseline=count_parameters(baseline).total,
            vocab_size=vocab_size.value,
            num_tokens=num_tokens.value if num_tokens else None,
        ),
        left_out=left_out,
    )


def networks(params: Params, vocab_size: int) -> tuple[Network, Network]:
    """(the denoiser, the baseline) that the parameters describe."""
    model = params.model
    denoiser = Network(
        vocab_size, model.hidden_size, model.num_blocks, model.num_heads, params.data.context_length, model.cond_dim
    )
    return denoiser, replace(denoiser, cond_dim=None)


def device_of(params: Params) -> Device:
    """Where a run computes: `auto` is taken for a GPU that computes in bf16."""
    runtime = params.runtime
    kind = "cpu" if runtime.device == "cpu" else "cuda"
    return Device(kind, runtime.precision == "bf16" or (runtime.precision == "auto" and kind == "cuda"))


def sequences_at_once(params: Params, stage: str) -> tuple[int, int]:
    """(equal parts a batch of a training stage is computed in, sequences of a part)."""
    settings: TrainingSettings = getattr(params, stage)
    parts = num_parts(settings.num_accumulation_steps, params.launch.num_processes)
    return parts, settings.batch_size // parts


def training_flops(params: Params, network: Network, stage: str, round_index: int = 1) -> float:
    """Floating-point operations of an optimizer step, on average over the noise.

    Args:
        params: all parameters.
        network: that is trained.
        stage: pretrain, baseline or distill.
        round_index: of distill, from 1: in later rounds more unmasks in a teacher's first step.
    """
    settings: TrainingSettings = getattr(params, stage)
    length = params.data.context_length - (stage == BASELINE_STAGE)
    num_tokens = settings.batch_size * length
    passes = FORWARD_AND_BACKWARD
    if stage == BASELINE_STAGE:
        flops = passes * forward_flops(network, num_tokens, num_tokens, length)
        recomputed = body_flops(network, num_tokens, num_tokens, length)
    else:
        min_time = params.distill.min_time if stage == "distill" else params.pretrain.min_time
        num_masked = num_tokens * masked_share(params.noise.epsilon, min_time)
        flops = passes * forward_flops(network, num_tokens, num_masked, length)
        recomputed = body_flops(network, num_tokens, num_masked, length)
    if params.launch.gradient_checkpointing:
        flops += recomputed
    if stage == "distill":
        distill = params.distill
        shares = teacher_shares(
            dt=distill.num_teacher_steps ** (round_index - 1) / distill.base_num_steps,
            num_teacher_steps=distill.num_teacher_steps,
            length=length,
            epsilon=params.noise.epsilon,
            min_time=distill.min_time,
        )
        for evaluated, unmasking in shares:
            flops += forward_flops(network, num_tokens * evaluated, num_tokens * unmasking, length)
    return flops


def _works(params: Params, denoiser: Network, baseline: Network, scorer: Network | None) -> Iterator[Work]:
    num_devices = params.launch.num_processes
    length = params.data.context_length

    def training(stage: str, name: str, network: Network, round_index: int = 1) -> Work:
        settings: TrainingSettings = getattr(params, stage)
        steps = settings.num_train_steps
        flops = steps * training_flops(params, network, stage, round_index)
        return Work(name, 1, steps, steps * settings.batch_size * length, flops, 0, 1 / num_devices)

    yield training("pretrain", "pretrain", denoiser)
    yield training(BASELINE_STAGE, BASELINE_STAGE, baseline)
    for round_index in range(1, params.rounds + 1):
        yield training("distill", f"distill@{round_index}", denoiser, round_index)
    for network, names, count in ((denoiser, _denoisers(params), params.rounds + 1), (baseline, BASELINE, 1)):
        yield _sampling(params, network, f"sample@{names}", count)
        yield _evaluating(params, network, scorer, f"evaluate@{names}", count)


def _denoisers(params: Params) -> str:
    return "0" if params.rounds == 0 else f"0..{params.rounds}"


def _sampling(params: Params, network: Network, name: str, num_models: int) -> Work:
    settings = params.sample
    # (samples, tokens of each, tokens of them given)
    kinds = [
        (settings.num_samples, params.data.context_length, 0 if network.is_denoiser else 1),
        (
            settings.num_prefixes * settings.continuations_per_prefix,
            settings.continuation_length,
            settings.prefix_length,
        ),
    ]
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
    num_devices = params.launch.num_processes
    return math.ceil(num_batches / num_devices) / num_batches


def _evaluating(params: Params, network: Network, scorer: Network | None, name: str, num_models: int) -> Work:
    """Likelihood of the held-out text, and the scorer's reading of it and of all samples."""
    settings, length = params.evaluate, params.data.context_length
    held_out = settings.num_valid_sequences
    if network.is_denoiser:
        num_tokens = held_out * settings.num_nelbo_draws * length
        wanted = num_tokens * masked_share(params.noise.epsilon, params.pretrain.min_time)
    else:
        num_tokens = wanted = held_out * length

    def busiest(num_sequences: int) -> float:
        return _busiest_share(params, math.ceil(num_sequences / settings.batch_size))

    flops = forward_flops(network, num_tokens, wanted, length)
    of_busiest = flops * busiest(round(num_tokens / length))
    read: float = num_tokens
    if scorer is not None:
        sets = len(settings_of_samples(params)) if network.is_denoiser else 1
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


def settings_of_samples(params: Params) -> tuple[int, ...]:
    """The numbers of denoising steps in which samples are drawn, each once."""
    return tuple(sorted(set(params.sample.num_steps)))


def _loads(params: Params, denoiser: Network, baseline: Network, scorer: Network | None) -> Iterator[Load]:
    for stage, network in (("pretrain", denoiser), (BASELINE_STAGE, baseline), ("distill", denoiser)):
        # What is taken as it is, from init_from, or not at all needs no memory to train.
        if not getattr(params, stage).num_train_steps or (stage == "distill" and not params.rounds):
            continue
        _, num_sequences = sequences_at_once(params, stage)
        yield Load(stage, num_sequences, training_load(params, network, stage), _training_fits(params, network, stage))
    device, length = device_of(params), params.data.context_length
    share = masked_share(params.noise.epsilon, params.pretrain.min_time)
    for network, name in ((denoiser, _denoisers(params)), (baseline, BASELINE)):
        for stage, section in (("sample", params.sample), ("evaluate", params.evaluate)):

            def peak(batch_size: int, network: Network = network, stage: str = stage) -> Peak:
                if stage == "sample":
                    steps = min(params.sample.num_steps)
                    return sampling_peak(network, device, num_sequences=batch_size, length=length, num_steps=steps)
                return evaluation_peak(
                    network, scorer, device, num_sequences=batch_size, length=length, masked_share=share
                )

            fits = {}
            for gpu in GPUS:
                largest = next((n for n in _halved(section.batch_size) if _is_held(peak(n), gpu)), None)
                fits[gpu.name] = _override(f"{stage}.batch_size", largest, section.batch_size)
            yield Load(f"{stage}@{name}", section.batch_size, peak(section.batch_size), fits)


def training_load(params: Params, network: Network, stage: str) -> Peak:
    """The most memory that a training stage takes on a device."""
    settings: TrainingSettings = getattr(params, stage)
    launch = params.launch
    num_devices = launch.num_processes
    parts, num_sequences = sequences_at_once(params, stage)
    losses = {"pretrain": "nelbo", "distill": params.distill.distance, BASELINE_STAGE: "autoregressive"}
    min_time = params.distill.min_time if stage == "distill" else params.pretrain.min_time
    return training_peak(
        network,
        device_of(params),
        loss=losses[stage],
        num_sequences=num_sequences,
        sequence_length=params.data.context_length - (stage == BASELINE_STAGE),
        is_accumulated=parts > num_devices,
        num_valid_sequences=math.ceil(min(settings.batch_size, settings.num_valid_sequences) / parts),
        masked_share=highest_masked_share(params.noise.epsilon, min_time, settings.batch_size, parts),
        dropout=params.model.dropout,
        has_teacher=stage == "distill",
        sharing=Sharing(
            num_devices=num_devices,
            is_sharded=launch.strategy == "fsdp",
            shards_teacher=launch.strategy == "fsdp" and launch.shard_teacher,
            is_checkpointed=launch.gradient_checkpointing,
        ),
    )


def _training_fits(params: Params, network: Network, stage: str) -> dict[str, str | None]:
    """For each GPU what makes a training stage fit: accumulation steps, or else a smaller batch, one at a time."""
    settings: TrainingSettings = getattr(params, stage)
    num_devices = params.launch.num_processes

    def peak(batch_size: int, num_accumulation_steps: int) -> Peak:
        changed = {"batch_size": batch_size, "num_accumulation_steps": num_accumulation_steps}
        return training_load(params.model_copy(update={stage: settings.model_copy(update=changed)}), network, stage)

    size, now = settings.batch_size, settings.num_accumulation_steps
    finer = [n for n in range(now, size + 1) if not size % num_parts(n, num_devices)]
    tried = [(f"{stage}.num_accumulation_steps={n}" if n != now else "", peak(size, n)) for n in finer]
    tried += [(f"{stage}.batch_size={n}", peak(n, n)) for n in _halved(size // 2) if not n % num_devices]
    return {gpu.name: next((answer for answer, held in tried if _is_held(held, gpu)), None) for gpu in GPUS}


def _override(key: str, value: int | None, now: int) -> str | None:
    return None if value is None else "" if value == now else f"{key}={value}"


def _is_held(peak: Peak, gpu: Gpu) -> bool:
    return peak.total <= USABLE_SHARE * gpu.memory_bytes


def _halved(number: int) -> Iterator[int]:
    while number:
        yield number
        number //= 2


def _scorer(params: Params, baseline: Network) -> tuple[Network | None, list[str]]:
    """The scorer's sizes, None where they are not known; and what is left out of a plan."""
    source = params.evaluate.scorer
    left_out = [
        "evaluate: cloze passages, downstream tasks and other texts, whose lengths are known when they are read",
        "prepare, latency, report and track",
        "validation during training",
    ]
    if source == f"models/{BASELINE}":
        return baseline, left_out
    hub_id = source.removeprefix("openai-community/")
    if hub_id in SCORERS:
        hidden_size, num_blocks, num_heads = SCORERS[hub_id]
        return Network(HUB_TOKENIZERS[hub_id], hidden_size, num_blocks, num_heads, 1024, None), left_out
    try:
        values = read_json(resolve_user_path(source) / "config.json")
        names = ("vocab_size", "n_embd", "n_layer", "n_head", "n_positions")
        vocab_size, hidden_size, num_blocks, num_heads, length = (int(values[name]) for name in names)
        return Network(vocab_size, hidden_size, num_blocks, num_heads, length, None), left_out
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, TypeError):
        return None, [f"evaluate.scorer {source}, whose sizes are not known here", *left_out]
