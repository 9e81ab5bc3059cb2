"""How many parameters a network has, and how much a pass through it computes: closed forms of its sizes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from halfstep.model.denoiser import FREQUENCY_EMBEDDING_SIZE

GPT2_SIZES = {
    "gpt2": (768, 12, 12),
    "gpt2-medium": (1024, 24, 16),
    "gpt2-large": (1280, 36, 20),
    "gpt2-xl": (1600, 48, 25),
}
"""Width, blocks and heads of the public GPT-2s, by hub id."""
GPT2_VOCAB_SIZE = 50257


@dataclass(frozen=True)
class Network:
    """Sizes of a network; `vocab_size` counts the mask token.

    `cond_dim` is the width of a denoiser's conditioning; None is a GPT-2, whose projection is its embedding.
    `absolute_positions`: a denoiser's; a GPT-2 has them always.
    """

    vocab_size: int
    hidden_size: int
    num_blocks: int
    num_heads: int
    length: int
    cond_dim: int | None
    absolute_positions: bool = False

    @property
    def is_denoiser(self) -> bool:
        """Whether this is a denoiser, and not a GPT-2."""
        return self.cond_dim is not None


@dataclass(frozen=True)
class Parameters:
    """Parameters of a network by part; `others` is what is neither embedding of the tokens, block nor projection."""

    embedding: int
    blocks: int
    projection: int
    others: int
    total: int


@dataclass(frozen=True)
class HubNetwork:
    """A masked model of transformers, counted; see `halfstep.tools.planning.teacher`.

    Attributes:
        vocab_size: rows of the projection.
        hidden_size: of what is projected.
        num_blocks: its layers.
        parameters: by part; those of a projection that is the embedding, too, count as the latter.
        flops_per_token, flops_per_pair: of a forward pass without the projection: for each position, and for each
            position that it attends to.
        kept: bytes for the backward pass, for each position, by precision.
    """

    vocab_size: int
    hidden_size: int
    num_blocks: int
    parameters: Parameters
    flops_per_token: float
    flops_per_pair: float
    kept: Mapping[str, float]
    is_denoiser: ClassVar[bool] = True


def count_parameters(network: Network | HubNetwork) -> Parameters:
    """Parameters of a `Denoiser`, or of transformers' GPT-2, of these sizes, or as they were counted."""
    if isinstance(network, HubNetwork):
        return network.parameters
    h, v, c = network.hidden_size, network.vocab_size, network.cond_dim
    # Attention and MLP have matrices of 4 and 8 h^2 entries; the MLP has biases, the attention of GPT-2 too.
    if c is None:
        block, projection, others = 12 * h**2 + 13 * h, 0, network.length * h + 2 * h
    else:
        block, projection = 12 * h**2 + 7 * h + 6 * h * (c + 1), (h + 1) * v
        others = (FREQUENCY_EMBEDDING_SIZE + 1) * c + (c + 1) * c + h + 2 * h * (c + 1)
        others += network.length * h if network.absolute_positions else 0
    parts = (v * h, block * network.num_blocks, projection, others)
    return Parameters(*parts, total=sum(parts))


def body_flops(network: Network | HubNetwork, num_tokens: float, num_wanted: float, num_keys: float) -> float:
    """Floating-point operations of the blocks' matrix products in a forward pass, two for a multiply-add.

    Embedding, norms and activation functions are not counted, nor is a denoiser's conditioning, which is made once for
    all tokens. Attention is counted whole: a causal kernel may leave half of it out.

    Args:
        network: the sizes.
        num_tokens: positions that pass through.
        num_wanted: positions whose result is wanted: a denoiser's last block computes beyond its attention only these.
        num_keys: positions that each attends to.
    """
    if isinstance(network, HubNetwork):
        return num_tokens * (network.flops_per_token + network.flops_per_pair * num_keys)
    h, num_blocks = network.hidden_size, network.num_blocks
    attention = 6 * h**2 + 4 * h * num_keys
    rest = 18 * h**2
    last = num_wanted if network.is_denoiser else num_tokens
    return num_blocks * attention * num_tokens + rest * ((num_blocks - 1) * num_tokens + last)


def head_flops(network: Network | HubNetwork, num_wanted: float) -> float:
    """Those of projecting some positions to the vocabulary."""
    return 2 * network.hidden_size * network.vocab_size * num_wanted


def forward_flops(network: Network | HubNetwork, num_tokens: float, num_wanted: float, num_keys: float) -> float:
    """`body_flops`, and `head_flops` of the positions that are wanted."""
    return body_flops(network, num_tokens, num_wanted, num_keys) + head_flops(network, num_wanted)
