"""Memory of a device, by part, from a formula that is right to about a quarter; `halfstep fit-batch` measures it.

Counted are the tensors, not what CUDA, torch and the slack of an allocator take (about a gigabyte on a GPU).
"""

from dataclasses import dataclass, fields

from halfstep.diffusion.projection import MAX_LOGITS
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.model.hub import HubModel
from halfstep.objectives import OBJECTIVES
from halfstep.objectives.distillation import Costs
from halfstep.settings import Params
from halfstep.settings.plugins import plugin_module
from halfstep.settings.training import TrainingSettings, num_parts
from halfstep.tools.planning.networks import HubNetwork, Network, count_parameters
from halfstep.training.parallel import frozen_matrices, trained

FLOAT = 4
"""Bytes of a float32: weights, gradients, moments and averages."""

NUMBERS_PER_LOGIT = {"pretrain": 4, "distill": 7, "baseline": 3}
"""Float32 numbers held at once for each logit: log-probabilities, targets, what a loss keeps for its gradient."""

KEPT_BY_DENOISER = {"fp32": 84, "bf16": 50}
KEPT_BY_GPT2 = {"fp32": 112, "bf16": 84}
"""Bytes that a block keeps for the backward pass, for each token and unit of its width: the inputs of both norms in
float32; in the precision of the products those of every matrix, q, k and v (a denoiser's q and k before and after they
are rotated), what attention gives, and four widths each before and after the activation function, which GPT-2 makes
from five products."""


@dataclass(frozen=True)
class Lora:
    """Parameters of a network that learns an adapter.

    Attributes:
        base: frozen, which teacher and student have in common.
        matrices: of those, what autocast multiplies in bf16 and is held so.
        projection: of those, what is cast at every use.
        adapter: of one of its copies.
    """

    base: int
    matrices: int
    projection: int
    adapter: int

    @classmethod
    def of(cls, model: HubModel) -> "Lora":
        """Those of a model that has an adapter; it may be on the meta device."""
        total, adapter = (sum(p.numel() for p in some) for some in (model.parameters(), trained(model).values()))
        matrices = sum(matrix.numel() for matrix in frozen_matrices(model))
        return cls(total - adapter, matrices, model.projection()[0].numel(), adapter)


@dataclass(frozen=True)
class Memory:
    """Bytes of a device's memory, by what they are for; all of it is there at the fullest moment of a step.

    Attributes:
        weights: of the network, with the copies in bf16 that autocast keeps.
        average: of the weights.
        gradients: where they outlive the backward pass's activations, or are kept from part to part of a batch.
        optimizer: both moments of AdamW.
        teacher: of a round, with what its student has in common with it.
        activations: what the blocks keep for the backward pass.
        logits: everything with a vocabulary axis but weights and gradients.
    """

    weights: float
    average: float
    gradients: float
    optimizer: float
    teacher: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """Of all parts."""
        return sum(getattr(self, field.name) for field in fields(self))


def device_of(params: Params) -> tuple[str, str]:
    """(cpu or cuda, fp32 or bf16) of a run; `auto` is taken for a GPU that computes in bf16."""
    runtime = params.runtime
    kind = "cpu" if runtime.device == "cpu" else "cuda"
    auto = "bf16" if kind == "cuda" else "fp32"
    return kind, auto if runtime.precision == "auto" else runtime.precision


def distillation_costs(params: Params, round_index: int, num_blocks: int) -> Costs:
    """What `distill.objective` says that it takes, by the function `costs` in its file."""
    of = getattr(plugin_module(OBJECTIVES, params.distill.objective), "costs", None)
    schedule, length = LogLinearSchedule(params.noise.epsilon), params.data.context_length
    return of(params.distill, round_index, schedule, length, num_blocks) if of else Costs()


def training_memory(
    params: Params, network: Network | HubNetwork, stage: str, num_accumulation_steps: int, lora: Lora | None = None
) -> Memory:
    """What a step of pretrain, baseline or distill takes on a device.

    Args:
        params: all parameters.
        network: that is trained; its teacher, if there is one, has the same sizes.
        stage: which.
        num_accumulation_steps: parts of a batch, in place of the stage's own.
        lora: of a round that learns adapters; then nothing but activations and logits goes by the network's sizes.
    """
    settings: TrainingSettings = getattr(params, stage)
    launch, (kind, precision) = params.launch, device_of(params)
    num_devices = launch.num_processes
    parts = num_parts(num_accumulation_steps, num_devices)
    num_tokens = settings.batch_size // parts * params.data.context_length
    model = count_parameters(network)
    is_spread = launch.strategy == "fsdp" and num_devices > 1
    # While FSDP computes, what is in no block and two of the blocks are whole.
    whole = model.total - model.blocks + 2 * model.blocks / network.num_blocks
    own = FLOAT * (lora.adapter if lora else model.total / num_devices if is_spread else model.total)
    weights = own + (FLOAT * whole if is_spread else 0)
    if precision == "bf16":
        weights += 2 * (lora.adapter if lora else model.blocks + (model.projection or model.embedding))
    costs = distillation_costs(params, 1, network.num_blocks) if stage == "distill" else Costs()
    teacher: float = FLOAT * model.total if stage == "distill" else 0
    if teacher and is_spread and launch.shard_teacher:
        teacher = FLOAT * (whole + model.blocks / num_devices)
    if lora:
        teacher = FLOAT * (lora.base + lora.adapter)
        teacher += 2 * (lora.projection - lora.matrices) if precision == "bf16" else 0

    if isinstance(network, HubNetwork):
        kept = network.kept[precision] / network.num_blocks
    else:
        kept = (KEPT_BY_DENOISER if network.is_denoiser else KEPT_BY_GPT2)[precision] * network.hidden_size
    # With gradient checkpointing the input of each block, and all of the one that is computed again.
    residuals = FLOAT * network.hidden_size * network.num_blocks
    per_token = residuals + kept if launch.gradient_checkpointing else kept * network.num_blocks
    activations = per_token * num_tokens * costs.num_at_once
    # GPT-2's logits are made for all tokens, a denoiser's for those that are masked, half of them, in chunks.
    rows = (
        min(costs.num_at_once * num_tokens / 2, MAX_LOGITS[kind] // network.vocab_size)
        if network.is_denoiser
        else num_tokens
    )
    logits = FLOAT * NUMBERS_PER_LOGIT[stage] * network.vocab_size * rows

    # A device that computes several parts keeps gradients between them, and DDP has a place for them all the time.
    # Otherwise they come as activations go, and the larger of both counts.
    gradients: float = own if parts > num_devices or (num_devices > 1 and not is_spread) else 0
    if not gradients and own > activations + logits:
        gradients, activations, logits = own, 0, 0
    # Networks are updated one after the other, so that they share the place for gradients and activations.
    n = costs.num_trained
    return Memory(n * weights, n * own, gradients, n * 2 * own, teacher, activations, logits)
