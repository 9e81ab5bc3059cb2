"""A plan: what each stage computes, holds and writes, from the parameters alone."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from halfstep.samplers.sampler import samplers_of
from halfstep.settings import Params
from halfstep.settings.training import TrainingSettings, num_parts
from halfstep.tools.planning.corpus import Known
from halfstep.tools.planning.gpus import GPUS, Gpu
from halfstep.tools.planning.here import Here
from halfstep.tools.planning.memory import FLOAT, Lora, Memory, device_of, training_memory
from halfstep.tools.planning.networks import HubNetwork, Network, Parameters, count_parameters
from halfstep.tools.planning.teacher import lora_of
from halfstep.tools.planning.works import Networks, Work, works_of
from halfstep.training.checkpoint import NUM_KEPT

STATE = 4
"""Numbers in a training state for each parameter: the weight, its average, and both moments."""

TEXT_BYTES_PER_TOKEN = 4.5
"""English under GPT-2's tokenizer, about; in a table of samples the text is beside its tokens."""

USABLE_SHARE = 0.9
"""Of a GPU's memory: CUDA, torch and what an allocator cannot reuse take the rest."""

LEFT_OUT = (
    "the layers of a joint head, the memory of mmd's features",
    "evaluate: cloze passages, downstream tasks and other texts, whose lengths are known when they are read, and the"
    " bound in steps",
    "prepare, latency, report and track",
)


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
    """All of it.

    `num_tokens` is None where nothing says how large the corpus is, `disk` is bytes by what they are, and `here` what
    this machine reaches, if it was measured.
    """

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
    here: Here | None = None

    def as_dict(self, mfu: float) -> dict[str, Any]:
        """Plain values for a file: bytes, seconds, floating-point operations."""
        values = asdict(self)
        for work, planned in zip(self.works, values["works"], strict=True):
            planned["flops"] = work.flops
            planned["seconds"] = {gpu.name: work.seconds(gpu, mfu, self.num_devices) for gpu in GPUS}
            if self.here is not None:
                planned["seconds"]["here"] = self.here.seconds(work)
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
    networks = Networks.of(params, vocab_size.value)
    denoiser, autoregressive = networks.denoiser, networks.autoregressive
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
        works=list(works_of(params, networks)),
        loads=list(_loads(params, denoiser, autoregressive, lora)),
        disk=_disk(params, denoiser, autoregressive, lora, num_tokens),
        left_out=list(_left_out(params, networks)),
    )


def _left_out(params: Params, networks: Networks) -> Iterator[str]:
    if networks.scorer is None:
        yield f"evaluate.scorer {params.evaluate.scorer}, of unknown size"
    if params.distill.lora.rank is not None:
        yield "distill: that what is frozen has no gradient, which saves a part of the FLOPs"
    settings = params.frontier
    if any(sampler.num_steps is None for sampler in samplers_of([*settings.samplers, *settings.student_samplers])):
        yield "samplers that take as many evaluations as it takes, but with one for every two tokens"
    yield from LEFT_OUT


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
