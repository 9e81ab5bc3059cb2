"""Memory of a device, by part, from a formula that is right to about a quarter; `halfstep fit-batch` measures it.

Counted are the tensors, not what CUDA, torch and the slack of an allocator take (about a gigabyte on a GPU).
"""

from dataclasses import dataclass, fields

from halfstep.settings import Params
from halfstep.settings.training import TrainingSettings, num_parts
from halfstep.tools.planning.networks import Network, count_parameters

FLOAT = 4
"""Bytes of a float32: weights, gradients, moments and averages."""

MAX_LOGITS = {"cpu": 6 * 2**20, "cuda": 2**27}
"""Logits of a denoiser held at once, as in `halfstep.diffusion.projection`."""

NUMBERS_PER_LOGIT = {"pretrain": 4, "distill": 7, "baseline": 3, "sample": 3, "evaluate": 3}
"""Float32 numbers held at once for each logit: log-probabilities, targets, what a loss keeps for its gradient."""

KEPT_BY_DENOISER = {"fp32": 84, "bf16": 50}
KEPT_BY_GPT2 = {"fp32": 112, "bf16": 84}
"""Bytes that a block keeps for the backward pass, for each token and unit of its width: the inputs of both norms in
float32; in the precision of the products those of every matrix, q, k and v (a denoiser's q and k before and after they
are rotated), what attention gives, and four widths each before and after the activation function, which GPT-2 makes
from five products."""

PASSING = 12 * FLOAT
"""The same of a forward pass that keeps nothing, whatever the depth."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a device's memory, by what they are for; all of it is there at the fullest moment of a step.

    Attributes:
        weights: of the network, with the copies in bf16 that autocast keeps.
        average: of the weights.
        gradients: where they outlive the backward pass's activations, or are kept from part to part of a batch.
        optimizer: both moments of AdamW.
        teacher: of a round, or the scorer of an evaluation.
        activations: what the blocks keep for the backward pass, or hold in passing; a cache of keys and values.
        logits: everything with a vocabulary axis but weights and gradients.
    """

    weights: float = 0
    average: float = 0
    gradients: float = 0
    optimizer: float = 0
    teacher: float = 0
    activations: float = 0
    logits: float = 0

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


def training_memory(params: Params, network: Network, stage: str, num_accumulation_steps: int) -> Memory:
    """What a step of pretrain, baseline or distill takes on a device.

    Args:
        params: all parameters.
        network: that is trained; its teacher, if there is one, has the same sizes.
        stage: which.
        num_accumulation_steps: parts of a batch, in place of the stage's own.
    """
    settings: TrainingSettings = getattr(params, stage)
    launch, (kind, precision) = params.launch, device_of(params)
    num_devices = launch.num_processes
    parts = num_parts(num_accumulation_steps, num_devices)
    num_tokens = settings.batch_size // parts * params.data.context_length
    model = count_parameters(network)
    is_spread = launch.strategy == "fsdp" and num_devices > 1
    outer, two_blocks = model.total - model.blocks, 2 * model.block
    own = FLOAT * (model.total / num_devices if is_spread else model.total)
    weights = own + (FLOAT * (outer + two_blocks) if is_spread else 0)
    if precision == "bf16":
        weights += 2 * (model.blocks + (model.projection or model.embedding))
    teacher: float = FLOAT * model.total if stage == "distill" else 0
    if teacher and is_spread and launch.shard_teacher:
        teacher = FLOAT * (outer + two_blocks + model.blocks / num_devices)
    # A device that computes several parts keeps gradients between them, and DDP has a place for them all the time.
    keeps_gradients = parts > num_devices or (num_devices > 1 and not is_spread)
    activations = _kept(network, num_tokens, precision, launch.gradient_checkpointing)
    # GPT-2's logits are made for all tokens, a denoiser's for those that are masked, half of them, in chunks.
    rows = min(num_tokens / 2, _rows_per_chunk(network, kind)) if network.is_denoiser else num_tokens
    logits = FLOAT * NUMBERS_PER_LOGIT[stage] * network.vocab_size * rows
    # Otherwise gradients come as activations go: the larger of both is what counts.
    if not keeps_gradients and own > activations + logits:
        activations, logits, keeps_gradients = 0, 0, True
    return Memory(weights, own, own if keeps_gradients else 0, 2 * own, teacher, activations, logits)


def sampling_memory(params: Params, network: Network, batch_size: int) -> Memory:
    """What drawing a batch of samples takes, in the fewest denoising steps, or with a cache of keys and values."""
    kind, precision = device_of(params)
    num_tokens = batch_size * params.data.context_length
    weights = FLOAT * count_parameters(network).total
    per_row = FLOAT * NUMBERS_PER_LOGIT["sample"] * network.vocab_size
    if not network.is_denoiser:
        width = 2 if precision == "bf16" else FLOAT
        cache = 2 * network.num_blocks * network.hidden_size * width * num_tokens
        return Memory(weights=weights, activations=cache, logits=per_row * batch_size)
    # Blocks and projection come one after the other.
    blocks = PASSING * network.hidden_size * num_tokens
    logits = per_row * min(num_tokens / min(params.sample.num_steps), _rows_per_chunk(network, kind))
    return Memory(
        weights=weights, activations=blocks if blocks > logits else 0, logits=logits if logits >= blocks else 0
    )


def evaluation_memory(params: Params, network: Network, scorer: Network | None, batch_size: int) -> Memory:
    """What a batch takes of the likelihood of held-out text, or of the scorer's reading, which is beside the model."""
    num_tokens = batch_size * params.data.context_length
    width = 2 if device_of(params)[1] == "bf16" else FLOAT
    own = FLOAT * NUMBERS_PER_LOGIT["evaluate"] / 2 if network.is_denoiser else width
    logits = max(own * network.vocab_size, width * scorer.vocab_size if scorer else 0) * num_tokens
    weights, beside = (FLOAT * count_parameters(one).total if one else 0 for one in (network, scorer))
    return Memory(weights=weights, teacher=beside, logits=logits)


def _kept(network: Network, num_tokens: float, precision: str, is_checkpointed: bool) -> float:
    kept = (KEPT_BY_DENOISER if network.is_denoiser else KEPT_BY_GPT2)[precision]
    width = network.hidden_size * num_tokens
    # With gradient checkpointing the input of each block, and all of the one that is computed again.
    return (FLOAT * network.num_blocks + kept) * width if is_checkpointed else kept * network.num_blocks * width


def _rows_per_chunk(network: Network, kind: str) -> int:
    return max(1, MAX_LOGITS[kind] // network.vocab_size)
