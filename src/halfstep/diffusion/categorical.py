"""Exact draws from categorical distributions."""

import torch
from torch import Tensor


def draw_categorical(log_p: Tensor, u: Tensor) -> Tensor:
    """Draw one index per row by inverting the cumulative distribution, in float64.

    One uniform number decides a draw, so a token's randomness can be fixed before its distribution is known. In
    float32 the cumulative sum, and Gumbel noise likewise, lose the tail: rare tokens are drawn too seldom, which
    acts like a lower temperature.

    Args:
        log_p: log-probabilities, not necessarily normalised, -inf allowed, float [..., vocab].
        u: uniform numbers in [0, 1), float64 [...].
    Returns:
        indices, int64 [...]; never one whose probability is zero.
    Raises:
        ValueError: u is not float64 or its shape does not fit.
        FloatingPointError: a row is NaN, or nothing in it is possible.
    Source: Zheng et al. 2024, arXiv:2409.02908, Sections 5.2 and 5.3 (float32 Gumbel noise is truncated).
    """
    if u.shape != log_p.shape[:-1] or u.dtype != torch.float64:
        raise ValueError(
            f"u is {u.dtype} of shape {tuple(u.shape)}, expected torch.float64 of shape {tuple(log_p.shape[:-1])}"
        )
    cumulative = log_p.double().softmax(dim=-1).cumsum(dim=-1)
    total = cumulative[..., -1:]
    if not bool((total > 0).all()):
        raise FloatingPointError("a row of log-probabilities is NaN, or nothing in it is possible")
    # The first index whose cumulative probability exceeds the threshold: it has a probability above zero,
    # because the sum rose there, and it exists, because the threshold is below the total.
    return (cumulative <= u[..., None] * total).sum(dim=-1)
