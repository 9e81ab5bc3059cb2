"""A plan: what each stage computes, holds and writes, from the parameters alone."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.objectives.masked import masked_share
from halfstep.settings import Params
from halfstep.settings.graph import BASELINE
from halfstep.settings.training import TrainingSettings, num_parts
from halfstep.tools.planning.corpus import Known
from halfstep.tools.planning.memory import FLOAT, Lora, Memory, device_of, distillation_costs, training_memory
from halfstep.tools.planning.networks import (
    GPT2_SIZES,
    GPT2_VOCAB_SIZE,
    HubNetwork,
    Network,
    Parameters,
    body_flops,
    count_parameters,
    forward_flops,
)
from halfstep.tools.planning.teacher import lora_of, teacher_network
from halfstep.training.checkpoint import NUM_KEPT

STATE = 4
"""Numbers in a training state for each parameter: the weight, its average, and both moments."""

TEXT_BYTES_PER_TOKEN = 4.5
"""English under GPT-2's tokenizer, about; in a table of samples the text is beside its tokens."""

USABLE_SHARE = 0.9
"""Of a GPU's memory: CUDA, torch and what an allocator cannot reuse take the rest."""

FORWARD_AND_BACKWARD = 3
"""A backward pass makes two products for each one of the forward pass: by the inputs and by the weights."""

LEFT_OUT = (
    "distill: the layers of a joint head, the memory of mmd's features",
    "evaluate: cloze passages, downstream tasks and other texts, whose lengths are known when they are read",
    "frontier: how many evaluations a sampler makes depends on what is predicted",
    "rival, prepare, latency, report and track",
    "validation during training",
)


@dataclass(frozen=True)
class Gpu:
    """What a data sheet says: operations per second are in bf16, dense; memory is as sold, and a driver keeps some."""

    name: str
    flops_per_second: float
    bytes_per_second: float
    memory_bytes: int


GPUS = (
    Gpu("A100-40GB", 312e12, 1.555e12, 40 * 10**9),
    Gpu("A100-80GB", 312e12, 2.039e12, 80 * 10**9),
    Gpu("H100-SXM", 989e12, 3.35e12, 80 * 10**9),
    Gpu("H200-SXM", 989e12, 4.8e12, 141 * 10**9),
    Gpu("L40S", 362e12, 0.864e12, 48 * 10**9),
    Gpu("RTX-4090", 165e12, 1.008e12, 24 * 10**9),
)
"""Source: NVIDIA's data sheets of A100 (SXM), H100 (SXM), H200 (SXM) and L40S, tensor-core bf16 without sparsity; RTX
4090: NVIDIA Ada GPU Architecture, Appendix A, bf16 with float32 accumulation."""


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
    """

    stage: str
    num_models: int
    num_steps: int | None
    num_tokens: float
    flops: float
    bytes_read: float = 0

    @property
    def flops_per_step(self) -> float | None:
        """Of an optimizer step."""
        return self.flops / self.num_steps if self.num_steps else None

    def seconds(self, gpu: Gpu, mfu: float, num_devices: int) -> float:
        """For one model: at a share of the GPU's peak, or at the speed of its memory where that is less."""
        arithmetic = self.flops / (gpu.flops_per_second * mfu)
        return max(arithmetic, self.bytes_read / gpu.bytes_per_second) / num_devices


@dataclass(frozen=True)
class Load:
    """What a device holds in a stage that trains.

    Attributes:
        stage: its name.
        num_sequences: computed at once.
        num_accumulation_steps: of the parameters.
        memory: at the fullest moment.
        fits: for each GPU, by name: the fewest accumulation steps with which it fits; None where none do.
    """

    stage: str
    num_sequences: int
    num_accumulation_steps: int
    memory: Memory
    fits: dict[str, int | None]


@dataclass(frozen=True)
class Plan:
    """All of it; `num_tokens` is None where nothing says how large the corpus is, `disk` is bytes by what they are."""

    preset: str
    vocab_size: Known
    num_tokens: Known | None
    denoiser: Parameters
    autoregressive: Parameters
    precision: str
    num_devices: int
    strategy: str
    works: list[Work]
    loads: list[Load]
    disk: dict[str, float | None]
    left_out: list[str]

    def as_dict(self, mfu: float) -> dict[str, Any]:
        """Plain values for a file: bytes, seconds, floating-point operations."""
        values = asdict(self)
        for work, planned in zip(self.works, values["works"], strict=True):
            planned["flops_per_step"] = work.flops_per_step
            planned["seconds"] = {gpu.name: work.seconds(gpu, mfu, self.num_devices) for gpu in GPUS}
        for load, planned in zip(self.loads, values["loads"], strict=True):
            planned["memory"]["total"] = load.memory.total
        return {**values, "mfu": mfu, "gpus": [asdict(gpu) for gpu in GPUS]}


def make_plan(params: Params, vocab_size: Known, num_tokens: Known | None) -> Plan:
    """Plan a run of the whole pipeline.

    Args:
        params: all parameters.
        vocab_size: tokens, the mask token included.
        num_tokens: of the corpus; None where it is not known.
    """
    denoiser = teacher_network(params, vocab_size.value)
    sizes = params.model.model_dump(include={"hidden_size", "num_blocks", "num_heads"})
    autoregressive = Network(vocab_size.value, length=params.data.context_length, cond_dim=None, **sizes)
    scorer = _scorer(params, autoregressive)
    lora = lora_of(params, vocab_size.value)
    return Plan(
        preset=params.preset,
        vocab_size=vocab_size,
        num_tokens=num_tokens,
        denoiser=count_parameters(denoiser),
        autoregressive=count_parameters(autoregressive),
        precision=device_of(params)[1],
        num_devices=params.launch.num_processes,
        strategy=params.launch.strategy,
        works=list(_works(params, denoiser, autoregressive, scorer)),
        loads=list(_loads(params, denoiser, autoregressive, lora)),
        disk=_disk(params, denoiser, autoregressive, lora, num_tokens),
        left_out=list(_left_out(params, scorer)),
    )


def _left_out(params: Params, scorer: Network | None) -> Iterator[str]:
    if scorer is None:
        yield f"evaluate.scorer {params.evaluate.scorer}, of unknown size"
    if params.distill.lora.rank is not None:
        yield "distill: that what is frozen has no gradient, which saves a part of the FLOPs"
    yield from LEFT_OUT


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
    length = params.data.context_length
    if stage == "baseline":
        length -= 1
        share_wanted = 1.0
    else:
        times = params.distill if stage == "distill" else params.pretrain
        share_wanted = masked_share(times.min_time, LogLinearSchedule(params.noise.epsilon))
    num_tokens = settings.batch_size * length
    flops = FORWARD_AND_BACKWARD * forward_flops(network, num_tokens, num_tokens * share_wanted, length)
    if params.launch.gradient_checkpointing:
        flops += body_flops(network, num_tokens, num_tokens * share_wanted, length)
    if stage == "distill":
        for evaluated, wanted in distillation_costs(params, round_index, network.num_blocks).passes:
            flops += forward_flops(network, num_tokens * evaluated, num_tokens * wanted, length)
    return flops


def _works(
    params: Params, denoiser: Network | HubNetwork, autoregressive: Network, scorer: Network | None
) -> Iterator[Work]:
    trained = [("pretrain", denoiser, 1), ("baseline", autoregressive, 1)]
    trained += [("distill", denoiser, round_index) for round_index in range(1, params.rounds + 1)]
    for stage, network, round_index in trained:
        settings: TrainingSettings = getattr(params, stage)
        steps = settings.num_train_steps
        name = f"distill@{round_index}" if stage == "distill" else stage
        num_tokens = steps * settings.batch_size * params.data.context_length
        yield Work(name, 1, steps, num_tokens, steps * training_flops(params, network, stage, round_index))
    denoisers = "0" if params.rounds == 0 else f"0..{params.rounds}"
    for network, names, count in ((denoiser, denoisers, params.rounds + 1), (autoregressive, BASELINE, 1)):
        yield _sampling(params, network, f"sample@{names}", count)
        yield _evaluating(params, network, scorer, f"evaluate@{names}", count)


def expected_evaluations(num_steps: int, num_masked: int) -> float:
    """Network evaluations of one sample: the denoising steps in which at least one of its positions unmasks.

    Args:
        num_steps: denoising steps, each equally likely for each position.
        num_masked: positions to fill.
    """
    return num_steps * (1 - (1 - 1 / num_steps) ** num_masked)


def _sampling(params: Params, network: Network | HubNetwork, name: str, num_models: int) -> Work:
    settings = params.sample
    num_continuations = settings.num_prefixes * settings.continuations_per_prefix
    # (samples, tokens of each, tokens of them given)
    kinds = (
        (settings.num_samples, params.data.context_length, 0 if network.is_denoiser else 1),
        (num_continuations, settings.continuation_length, settings.prefix_length),
    )
    weights = FLOAT * count_parameters(network).total
    num_tokens = flops = bytes_read = 0.0
    for num_samples, length, given in kinds:
        new = length - given
        if network.is_denoiser:
            for num_steps in settings.num_steps:
                evaluations = expected_evaluations(num_steps, new)
                flops += num_samples * forward_flops(network, evaluations * length, new, length)
                bytes_read += num_samples / settings.batch_size * num_steps * weights
                num_tokens += num_samples * new
        else:
            flops += num_samples * forward_flops(network, length - 1, new, length / 2)
            cache = 2 * network.num_blocks * network.hidden_size * 2 * length / 2
            bytes_read += num_samples * new * (weights / settings.batch_size + cache)
            num_tokens += num_samples * new
    return Work(name, num_models, None, num_tokens, flops, bytes_read)


def _evaluating(
    params: Params, network: Network | HubNetwork, scorer: Network | None, name: str, num_models: int
) -> Work:
    """Likelihood of the held-out text, and the scorer's reading of it and of all samples."""
    sample, length = params.sample, params.data.context_length
    held_out = params.evaluate.num_valid_sequences * length
    num_tokens, share_wanted = held_out, 1.0
    if network.is_denoiser:
        num_tokens *= params.evaluate.num_nelbo_draws
        share_wanted = masked_share(params.pretrain.min_time, LogLinearSchedule(params.noise.epsilon))
    flops = forward_flops(network, num_tokens, num_tokens * share_wanted, length)
    if scorer is not None:
        num_sets = len(set(sample.num_steps)) if network.is_denoiser else 1
        # Of texts and samples the scorer's logits are wanted, of prefixes and continuations a feature.
        scored = held_out + num_sets * sample.num_samples * length
        short = sample.continuation_length
        featured = sample.num_prefixes * (1 + num_sets * sample.continuations_per_prefix) * short
        flops += forward_flops(scorer, scored, scored, length) + body_flops(scorer, featured, featured, short)
        num_tokens += scored + featured
    return Work(name, num_models, None, num_tokens, flops)


def _scorer(params: Params, autoregressive: Network) -> Network | None:
    """The scorer's sizes; None where they are not known."""
    source = params.evaluate.scorer.removeprefix("openai-community/")
    if source in GPT2_SIZES:
        return Network(GPT2_VOCAB_SIZE, *GPT2_SIZES[source], length=1024, cond_dim=None)
    return autoregressive if source == f"models/{BASELINE}" else None


def _loads(
    params: Params, denoiser: Network | HubNetwork, autoregressive: Network, lora: Lora | None
) -> Iterator[Load]:
    num_devices = params.launch.num_processes
    stages = [("pretrain", denoiser), ("baseline", autoregressive), *([("distill", denoiser)] if params.rounds else [])]
    for stage, network in stages:
        settings: TrainingSettings = getattr(params, stage)
        # What is taken as it is, from init_from, needs no memory to train.
        if settings.num_train_steps:
            size, now = settings.batch_size, settings.num_accumulation_steps
            finer = [n for n in range(now, size + 1) if not size % num_parts(n, num_devices)]
            own = lora if stage == "distill" else None
            tried = {n: training_memory(params, network, stage, n, own) for n in finer}
            fits = {gpu.name: _fewest(tried, gpu) for gpu in GPUS}
            yield Load(stage, size // num_parts(now, num_devices), now, tried[now], fits)


def _fewest(tried: dict[int, Memory], gpu: Gpu) -> int | None:
    return next((n for n, memory in tried.items() if memory.total <= USABLE_SHARE * gpu.memory_bytes), None)


def _disk(
    params: Params,
    denoiser: Network | HubNetwork,
    autoregressive: Network,
    lora: Lora | None,
    num_tokens: Known | None,
) -> dict[str, float | None]:
    """Bytes that a run of the whole pipeline writes, by what they are; None where the corpus's size is not known."""
    sizes: Sequence[int] = [count_parameters(network).total for network in (denoiser, autoregressive)]
    length, sample = params.data.context_length, params.sample
    # Every row has BOS and EOS around its tokens.
    id_bytes = 2 if denoiser.vocab_size <= 2**16 else 4
    tokens = None if num_tokens is None else num_tokens.value * length / (length - 2) * id_bytes
    student = lora.adapter if lora else sizes[0]
    models = FLOAT * (sizes[0] + student * params.rounds + sizes[1])
    states = FLOAT * STATE * student * params.rounds
    trained = [student, sizes[1], sizes[0] if params.pretrain.num_train_steps else 0]
    drawn = sample.num_samples * length
    drawn += sample.num_prefixes * sample.continuations_per_prefix * sample.continuation_length
    # An id in four bytes, its step in two, its text; the baseline's are drawn once.
    num_sets = len(sample.num_steps) * (params.rounds + 1) + 1
    samples = num_sets * drawn * (4 + 2 + TEXT_BYTES_PER_TOKEN)
    return {
        "data/tokens": tokens,
        "models": models,
        "states": states,
        "samples": samples,
        "checkpoints": (NUM_KEPT + 1) * FLOAT * STATE * max(trained),
        "DVC's cache": (tokens or 0) + models + states + samples,
        "MLflow": models if params.tracking.log_models else 0,
    }
