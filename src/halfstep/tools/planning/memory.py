"""Memory of a device, by part: what the code holds at the moment at which it holds most.

Counted are the tensors: what torch's allocator hands out, not the slack of an allocator nor what CUDA and torch
themselves take (about a gigabyte on a GPU). `halfstep plan --check` measures the same on the CPU.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from halfstep.tools.planning.networks import Network, count_parameters

FLOAT = 4
"""Bytes of a float32: weights, gradients, moments, averages, and the residual stream."""

MAX_LOGITS = {"cpu": 6 * 2**20, "cuda": 2**27}
"""Logits held at once, as in `halfstep.diffusion.projection`."""

BLOCK_IN_PASSING = 12
"""Widths per token that a block holds beside what is kept for a backward pass: two residuals, what attention gave,
the norm of it, and four each before and after the activation function."""

LOGIT_BYTES = {
    # Loss: (in float32, in bf16), each where there are several chunks, and where one chunk is all there is.
    "nelbo": ((20, 16), (16, 14)),
    "kl_student_teacher": ((36, 28), (24, 20)),
    "kl_teacher_student": ((36, 28), (24, 20)),
    "mse": ((37, 31), (25, 22)),
    "log_l1": ((37, 29), (25, 21)),
    "total_variation": ((36, 30), (25, 21)),
    "sample": ((8, 12), (8, 10)),
    "likelihood": ((8, 8), (8, 8)),
}
"""Bytes held at once for each logit of a chunk: logits, log-probabilities, targets, what the loss keeps for its
gradient, the gradient, and of the chunk before what is not dropped yet."""

DRAW_BYTES = 41 * 256
"""Bytes held for each position of a chunk while its token is found in its block of 256 probabilities: five numbers in
float64 for each of these, as `halfstep.diffusion.categorical` has it."""


@dataclass(frozen=True)
class Device:
    """How numbers are kept where it computes.

    Attributes:
        kind: cpu or cuda.
        is_bf16: matrix products are computed in bf16, by autocast.
    """

    kind: str
    is_bf16: bool

    @property
    def width(self) -> int:
        """Bytes of a number that a matrix product takes or gives."""
        return 2 if self.is_bf16 else FLOAT

    @property
    def mask_width(self) -> int:
        """Bytes of an entry of a dropout mask, which the CPU keeps as a factor."""
        return 1 if self.kind == "cuda" else self.width

    @property
    def branch_width(self) -> int:
        """Bytes of an entry of what a branch adds to the residual stream; CUDA's autocast adds in float32."""
        return FLOAT if self.kind == "cuda" else self.width


@dataclass(frozen=True)
class Parts:
    """Bytes of a device's memory at one moment, by what they are for.

    Attributes:
        weights: of the network trained or asked, with their copies in bf16.
        average: of the weights; in a validation also the weights it stands in for.
        gradients: those that are there at that moment, and the places that DDP keeps for all of them.
        optimizer: both moments of AdamW.
        teacher: of a round, or the scorer of an evaluation.
        activations: what the blocks keep for the backward pass, or hold in passing.
        logits: everything with a vocabulary axis but weights and gradients, and the hidden states it is made from.
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


@dataclass(frozen=True)
class Peak:
    """The moment of most memory; `moment` names it."""

    moment: str
    parts: Parts

    @property
    def total(self) -> float:
        """Bytes."""
        return self.parts.total


@dataclass(frozen=True)
class Sharing:
    """How a training stage is spread over devices.

    Attributes:
        num_devices: of all nodes.
        is_sharded: weights, gradients, moments and average are spread over the devices (FSDP).
        shards_teacher: a round's teacher too.
        is_checkpointed: blocks' activations are computed again in the backward pass and not kept.
    """

    num_devices: int
    is_sharded: bool
    shards_teacher: bool
    is_checkpointed: bool

    @property
    def is_spread(self) -> bool:
        """Whether a device has only a part of the network."""
        return self.is_sharded and self.num_devices > 1

    @property
    def is_copied(self) -> bool:
        """Whether each of several devices has all of the network (DDP)."""
        return not self.is_sharded and self.num_devices > 1


ALONE = Sharing(num_devices=1, is_sharded=False, shards_teacher=False, is_checkpointed=False)


def num_parts(num_accumulation_steps: int, num_devices: int) -> int:
    """Equal parts in which a batch is computed: each device computes as many of them, one after the other."""
    return math.lcm(num_accumulation_steps, num_devices)


def training_peak(
    network: Network,
    device: Device,
    *,
    loss: str,
    num_sequences: int,
    sequence_length: int,
    is_accumulated: bool,
    num_valid_sequences: int,
    masked_share: float,
    dropout: float,
    has_teacher: bool = False,
    sharing: Sharing = ALONE,
) -> Peak:
    """The most memory that a step of training or a validation takes on a device.

    Args:
        network: that is trained; its teacher, if there is one, has the same sizes.
        device: where.
        loss: of `LOGIT_BYTES`, or "autoregressive".
        num_sequences: computed at once.
        sequence_length: their tokens.
        is_accumulated: the device computes more than one part of a batch.
        num_valid_sequences: computed at once in a validation; 0 is none.
        masked_share: share of the positions that are masked.
        dropout: probability.
        has_teacher: it is a round.
        sharing: see there.
    """
    own, outer, block = (FLOAT * number for number in _held(network, sharing))
    gradients = own
    resident = Parts(
        weights=own,
        average=own,
        # DDP has a place for every gradient from step to step, and sends from there.
        gradients=gradients if sharing.is_copied else 0,
        optimizer=2 * own,
        teacher=_teacher_bytes(network, sharing) if has_teacher else 0,
    )
    # Of the parts before: to their places gradients go with the last part only.
    before = resident.gradients + (gradients if is_accumulated else 0)
    num_tokens = num_sequences * sequence_length
    num_wanted = num_tokens * masked_share if network.is_denoiser else num_tokens
    activations = _kept(network, device, num_tokens, num_wanted, dropout)
    in_block = _kept(replace(network, num_blocks=1), device, num_tokens, num_tokens, dropout)
    if sharing.is_checkpointed:
        activations = FLOAT * network.num_blocks * num_tokens * network.hidden_size + in_block
    bf16_weights = _bf16_copies(network, device)
    passing = _in_passing(network, num_tokens)
    moments = []
    # The projection, after the blocks' forward pass and with all they keep.
    if network.is_denoiser:
        head = FLOAT * count_parameters(network).projection
        rows = FLOAT * network.hidden_size * num_wanted
        chunk = _chunk_bytes(network, device, loss, num_wanted)
        logits = rows * 2 + max(chunk, passing if has_teacher else 0)
        forward = replace(
            resident,
            weights=own + outer + bf16_weights,
            gradients=before + head,
            activations=activations,
            logits=logits,
        )
        moments.append(Peak("head", forward))
        # The last block's backward pass, when the projection is done: its MLP's gradients beside what it keeps.
        weights = forward.weights + 2 * block
        backward = replace(forward, weights=weights, activations=activations + 5 * rows, logits=rows)
        moments.append(Peak("backward", backward))
    else:
        logits = 3 * FLOAT * num_tokens * network.vocab_size
        # The last block is gathered again before the logits' gradient is made.
        forward = replace(
            resident,
            weights=own + outer + block + bf16_weights,
            gradients=before,
            activations=activations,
            logits=logits,
        )
        moments.append(Peak("head", forward))
        head = FLOAT * network.vocab_size * network.hidden_size
        in_mlp = 7 * FLOAT * num_tokens * network.hidden_size
        backward = replace(
            forward,
            weights=forward.weights + block,
            gradients=before + head,
            activations=activations + in_mlp,
            logits=0,
        )
        moments.append(Peak("backward", backward))
    # The end of the backward pass: all gradients, and the embedding's, which comes last, before it is added to another.
    embedding = FLOAT * network.vocab_size * network.hidden_size
    ending = replace(resident, activations=2 * FLOAT * num_tokens * network.hidden_size)
    if sharing.is_spread:
        # A gradient is whole, and once more as it is sent, before a device has its part of the sum: the first block's,
        # whose weights and the next ones' are there, then the outer modules'.
        sent = gradients + head + 2 * block
        moments.append(Peak("gradients", replace(ending, weights=own + outer + 2 * block, gradients=sent)))
        last = gradients + 2 * outer + (0 if network.is_denoiser else embedding)
    elif sharing.is_copied:
        last = gradients + embedding * (1 if network.is_denoiser and not is_accumulated else 2)
    else:
        last = gradients + embedding * (0 if network.is_denoiser and not is_accumulated else 1)
    moments.append(Peak("gradients", replace(ending, gradients=last)))
    moments.append(Peak("update", replace(resident, gradients=gradients)))
    if num_valid_sequences:
        num_tokens = num_valid_sequences * sequence_length
        moments.append(_validation(network, device, resident, sharing, num_tokens, masked_share))
    return max(moments, key=lambda moment: moment.total)


def _validation(
    network: Network, device: Device, resident: Parts, sharing: Sharing, num_tokens: int, masked_share: float
) -> Peak:
    """A validation: the average takes the weights' place, and these are kept beside it."""
    own, outer, block = (FLOAT * number for number in _held(network, sharing))
    num_wanted = num_tokens * masked_share
    if network.is_denoiser:
        logits = FLOAT * network.hidden_size * num_wanted + _chunk_bytes(network, device, "likelihood", num_wanted)
    else:
        logits = (2 * FLOAT + 2 * device.is_bf16) * num_tokens * network.vocab_size
    weights = own + outer + _bf16_copies(network, device)
    held = replace(resident, average=resident.average + own)
    # Blocks and projection come one after the other; with the first block what the outer modules came in is there yet.
    passing = _in_passing(network, num_tokens)
    blocks = replace(held, weights=weights + outer + 2 * block, activations=passing)
    head = replace(held, weights=weights, logits=logits)
    return Peak("validation", max(blocks, head, key=lambda parts: parts.total))


def sampling_peak(network: Network, device: Device, *, num_sequences: int, length: int, num_steps: int) -> Peak:
    """The most memory that drawing a batch of samples takes.

    Args:
        network: a denoiser, or a GPT-2 with a cache of keys and values.
        device: where.
        num_sequences: drawn at once.
        length: tokens of each.
        num_steps: fewest denoising steps: the positions that unmask together.
    """
    weights = FLOAT * count_parameters(network).total
    num_tokens = num_sequences * length
    if not network.is_denoiser:
        cache = 2 * network.num_blocks * network.hidden_size * device.width * num_tokens
        logits: float = 3 * FLOAT * num_sequences * network.vocab_size
        return Peak("the end", Parts(weights=weights, activations=cache, logits=logits))
    wanted = num_tokens / num_steps
    logits = FLOAT * network.hidden_size * wanted + _chunk_bytes(network, device, "sample", wanted)
    blocks = _in_passing(network, num_tokens)
    return max(
        Peak("blocks", Parts(weights=weights, activations=blocks)),
        Peak("head", Parts(weights=weights, logits=logits)),
        key=lambda peak: peak.total,
    )


def evaluation_peak(
    network: Network, scorer: Network | None, device: Device, *, num_sequences: int, length: int, masked_share: float
) -> Peak:
    """The most memory that judging a model takes: its likelihood of a batch, or the scorer's.

    Args:
        network: that is judged.
        scorer: beside it; None leaves it out.
        device: where.
        num_sequences, length: of a batch.
        masked_share: share of the positions that are masked, of a denoiser.
    """
    num_tokens = num_sequences * length
    beside = Parts(
        weights=FLOAT * count_parameters(network).total,
        teacher=FLOAT * count_parameters(scorer).total if scorer else 0,
    )
    # Logits of all positions, and for a denoiser their log-probabilities, without the mask, too.
    if network.is_denoiser:
        own = (3 * FLOAT + 2 * device.is_bf16) * num_tokens * masked_share * network.vocab_size
    else:
        own = device.width * num_tokens * network.vocab_size
    moments = [Peak("likelihood", replace(beside, logits=own))]
    if scorer:
        logits = (device.width * num_tokens + 2 * FLOAT * length) * scorer.vocab_size
        moments.append(Peak("scorer", replace(beside, logits=logits)))
    return max(moments, key=lambda moment: moment.total)


def _held(network: Network, sharing: Sharing) -> tuple[float, float, float]:
    """Weights by how a device has them: (kept, of the outer modules gathered, of a block gathered).

    Spread, the outer modules are gathered for a whole pass, and each block when it is computed or the one before is.
    """
    parameters = count_parameters(network)
    if not sharing.is_spread:
        return parameters.total, 0, 0
    return parameters.total / sharing.num_devices, parameters.total - parameters.blocks, parameters.block


def _teacher_bytes(network: Network, sharing: Sharing) -> float:
    """A teacher of a network's size; only its blocks are ever spread."""
    parameters = count_parameters(network)
    if not (sharing.is_spread and sharing.shards_teacher):
        return FLOAT * parameters.total
    kept = parameters.total - parameters.blocks + parameters.blocks / sharing.num_devices
    return FLOAT * (kept + 2 * parameters.block)


def _bf16_copies(network: Network, device: Device) -> float:
    """Weights that autocast keeps in bf16 from the forward to the backward pass."""
    parameters = count_parameters(network)
    head = parameters.projection if network.is_denoiser else parameters.embedding
    return 2 * (parameters.blocks + head) if device.is_bf16 else 0


def _in_passing(network: Network, num_tokens: float) -> float:
    """What a forward pass that keeps nothing holds at once."""
    return BLOCK_IN_PASSING * FLOAT * network.hidden_size * num_tokens


def _chunk_bytes(network: Network, device: Device, loss: str, num_rows: float) -> float:
    """Everything of the size of one chunk of logits."""
    most = max(1, MAX_LOGITS[device.kind] // network.vocab_size)
    several, one = LOGIT_BYTES[loss]
    per_logit = (several if num_rows > most else one)[device.is_bf16]
    per_row = per_logit * network.vocab_size + (DRAW_BYTES if loss == "sample" else 0)
    return per_row * min(num_rows, most)


def _kept(network: Network, device: Device, num_tokens: float, num_wanted: float, dropout: float) -> float:
    """What the blocks, and the norm after them, keep for the backward pass."""
    h, w = network.hidden_size, device.width
    norm = FLOAT * h + 2 * FLOAT
    mask = device.mask_width * h if dropout else 0
    if network.is_denoiser:
        # Input of the projection to q, k, v; these three; q and k rotated; the result, and its heads side by side.
        attention = norm + (1 + 3 + 2 + 1 + 1) * w * h + FLOAT * network.num_heads
        # Of each branch what it adds; inputs of both matrices of the MLP and of the activation function.
        mlp = norm + 2 * (device.branch_width * h + mask) + (1 + 4 + 4) * w * h
        full, last = network.num_blocks - 1, 1
        # In the last block the heads side by side are kept at the wanted positions only.
        return (
            (full + last) * num_tokens * attention
            - last * (num_tokens - num_wanted) * w * h
            + (full * num_tokens + last * num_wanted) * mlp
            + num_wanted * norm
        )
    attention = norm + (1 + 3 + 1) * w * h + FLOAT * network.num_heads
    # gelu_new is made from five products, each of whose factors is kept; CUDA's autocast takes powers in float32.
    powers = FLOAT if device.kind == "cuda" else w
    mlp = norm + w * h + 4 * h * (2 * w + 3 * powers) + 2 * mask
    return num_tokens * (network.num_blocks * (attention + mlp) + norm + w * h + mask)


def chosen_parts(peaks: Sequence[Peak]) -> list[str]:
    """Names of the parts that are above zero in any of some peaks, in order."""
    return [field.name for field in fields(Parts) if any(getattr(peak.parts, field.name) for peak in peaks)]
