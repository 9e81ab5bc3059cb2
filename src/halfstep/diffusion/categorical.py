"""Exact draws from categorical distributions."""

import torch
from torch import Tensor

BLOCK_SIZE = 256
"""Neighbouring indices whose probabilities are added up first; about the root of a vocabulary's size."""


def draw_categorical(log_p: Tensor, u: Tensor) -> Tensor:
    """See `draw_with_rest`, of which this is the index."""
    return draw_with_rest(log_p, u)[0]


def draw_with_rest(log_p: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one index per row by inverting the cumulative distribution: first a block of indices, then one in it.

    One uniform number decides a draw, so a token's randomness can be fixed before its distribution is known. A sum in
    float32 over the whole vocabulary, and Gumbel noise likewise, lose the tail: rare tokens are drawn too seldom,
    which acts like a lower temperature. Here a block's mass is a float32 sum of its own few probabilities, and whatever
    relates one block to another, or an index to its block, is float64. So an index's probability is right to a few
    times 1e-7 of itself, however small it is: no more than float32 log-probabilities leave open. Below 1e-38 it is 0.

    Args:
        log_p: log-probabilities, not necessarily normalised, -inf allowed, float [..., vocab]. For float64 ones all
            of this is float64.
        u: uniform numbers in [0, 1), float64 [...].
    Returns:
        (indices, what is left of u), int64 and float64 [...]: never an index whose probability is zero, never a smaller
        one for a larger u; the rest, in [0, 1), is uniform and independent of the index.
    Raises:
        ValueError: u is not float64 or its shape does not fit.
        FloatingPointError: a row is NaN, or nothing in it is possible.
    Source: Zheng et al. 2024, arXiv:2409.02908, Sections 5.2 and 5.3 (float32 Gumbel noise is truncated).
    """
    if u.shape != log_p.shape[:-1] or u.dtype != torch.float64:
        raise ValueError(
            f"u is {u.dtype} of shape {tuple(u.shape)}, expected torch.float64 of shape {tuple(log_p.shape[:-1])}"
        )
    vocab_size = log_p.shape[-1]
    p = log_p.softmax(dim=-1, dtype=torch.promote_types(log_p.dtype, torch.float32))
    num_full = vocab_size // BLOCK_SIZE
    full, rest = p.tensor_split([num_full * BLOCK_SIZE], dim=-1)
    mass = torch.cat([full.unflatten(-1, (num_full, BLOCK_SIZE)).sum(-1), rest.sum(-1, keepdim=True)], -1).double()
    if not bool((mass.sum(-1) > 0).all()):
        raise FloatingPointError("a row of log-probabilities is NaN, or nothing in it is possible")
    block, fraction = _invert(mass, u)
    indices = block[..., None] * BLOCK_SIZE + torch.arange(BLOCK_SIZE, device=log_p.device)
    log_p_block = log_p.gather(-1, indices.clamp(max=vocab_size - 1)).double()
    log_p_block = log_p_block.masked_fill(indices >= vocab_size, -torch.inf)
    within, rest = _invert(log_p_block.softmax(dim=-1), fraction)
    return block * BLOCK_SIZE + within, rest


def _invert(weights: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The index that u falls on, and how far into it, in [0, 1): int64 and float64 [...] of float64 [..., n]."""
    cumulative = weights.cumsum(dim=-1)
    threshold = u[..., None] * cumulative[..., -1:]
    # The first index whose cumulative weight exceeds the threshold: it has a weight above zero, because the sum rose
    # there, and it exists, because the threshold is below the total.
    index = (cumulative <= threshold).sum(dim=-1, keepdim=True)
    weight = weights.gather(-1, index)
    into = (threshold - (cumulative.gather(-1, index) - weight)) / weight
    return index[..., 0], into[..., 0].clamp(0, 1 - 2**-53)
