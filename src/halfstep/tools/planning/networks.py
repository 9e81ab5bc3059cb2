"""How many parameters a network has, and how much a pass through it computes: closed forms of its sizes."""

from dataclasses import dataclass

FREQUENCY_EMBEDDING_SIZE = 256
"""Sinusoids of the noise that the denoiser's conditioning is made from, as in `halfstep.model.denoiser`."""


@dataclass(frozen=True)
class Network:
    """Sizes of a network.

    Attributes:
        vocab_size: tokens, the mask token included.
        hidden_size, num_blocks, num_heads: width, depth, heads.
        length: tokens of the longest sequence.
        cond_dim: width of a denoiser's conditioning; None is a GPT-2, whose projection is its embedding.
    """

    vocab_size: int
    hidden_size: int
    num_blocks: int
    num_heads: int
    length: int
    cond_dim: int | None

    @property
    def is_denoiser(self) -> bool:
        """Whether this is a denoiser, and not a GPT-2."""
        return self.cond_dim is not None


@dataclass(frozen=True)
class Parameters:
    """Parameters of a network by part; `outer` is what is neither embedding of the tokens, block nor projection."""

    embedding: int
    block: int
    num_blocks: int
    projection: int
    outer: int

    @property
    def blocks(self) -> int:
        """Of all blocks."""
        return self.block * self.num_blocks

    @property
    def total(self) -> int:
        """Of the network."""
        return self.embedding + self.blocks + self.projection + self.outer


def count_parameters(network: Network) -> Parameters:
    """Parameters of a `Denoiser`, or of transformers' GPT-2, of these sizes."""
    h, v, c = network.hidden_size, network.vocab_size, network.cond_dim
    # Attention and MLP have matrices of 4 and 8 h^2 entries; the MLP has biases, the attention of GPT-2 too.
    if c is None:
        return Parameters(v * h, 12 * h**2 + 13 * h, network.num_blocks, 0, network.length * h + 2 * h)
    block = 12 * h**2 + 7 * h + 6 * h * (c + 1)
    conditioning = (FREQUENCY_EMBEDDING_SIZE + 1) * c + (c + 1) * c
    return Parameters(v * h, block, network.num_blocks, (h + 1) * v, conditioning + h + 2 * h * (c + 1))


def body_flops(network: Network, num_tokens: float, num_wanted: float, num_keys: float) -> float:
    """Floating-point operations of the blocks' matrix products in a forward pass, two for a multiply-add.

    Embedding, norms and activation functions are not counted, nor is a denoiser's conditioning, which is made once for
    all tokens. Attention is counted whole: a causal kernel may leave half of it out.

    Args:
        network: the sizes.
        num_tokens: positions that pass through.
        num_wanted: positions whose result is wanted: a denoiser's last block computes beyond its attention only these.
        num_keys: positions that each attends to.
    """
    h, num_blocks = network.hidden_size, network.num_blocks
    attention = 6 * h**2 + 4 * h * num_keys
    rest = 18 * h**2
    last = num_wanted if network.is_denoiser else num_tokens
    return num_blocks * attention * num_tokens + rest * ((num_blocks - 1) * num_tokens + last)


def head_flops(network: Network, num_rows: float) -> float:
    """Floating-point operations of projecting some positions to the vocabulary."""
    return 2 * network.hidden_size * network.vocab_size * num_rows


def forward_flops(network: Network, num_tokens: float, num_wanted: float, num_keys: float) -> float:
    """`body_flops`, and `head_flops` of the positions that are wanted."""
    return body_flops(network, num_tokens, num_wanted, num_keys) + head_flops(network, num_wanted)
