"""Sizes of a denoiser."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DenoiserConfig:
    """Sizes of a denoiser.

    Attributes:
        vocab_size: tokens, the mask token included.
        mask_token_id: id of the absorbing state.
        length: tokens of the sequences it was trained on; where positions are only relative, others work too.
        hidden_size, num_blocks, num_heads, cond_dim: width, depth, heads, width of the conditioning.
        dropout: probability, in training mode only.
        noise_epsilon: epsilon of the log-linear schedule it was trained with.
        absolute_positions: a learned embedding of each position is added to that of its token, beside the rotary ones;
            sequences are then no longer than `length`. The published models have none.
        takes_latent: a number shared by all positions of a sequence is an input, so that over it they depend on each
            other.
        takes_noise: Gumbel noise of every token at every position is an input, see `halfstep.model.noise`.
    """

    vocab_size: int
    mask_token_id: int
    length: int
    hidden_size: int
    num_blocks: int
    num_heads: int
    cond_dim: int
    dropout: float
    noise_epsilon: float
    absolute_positions: bool = False
    takes_latent: bool = False
    takes_noise: bool = False

    @property
    def num_tokens(self) -> int:
        """All rows of the projection are tokens."""
        return self.vocab_size
