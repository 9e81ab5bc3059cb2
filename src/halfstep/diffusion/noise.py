"""The forward process: which tokens are masked at time t, and at which times to look."""

import torch
from torch import Tensor


def mask_tokens(x0: Tensor, alpha_t: Tensor, mask_token_id: int, *, generator: torch.Generator) -> Tensor:
    """Draw xt from q(xt | x0): each token stays visible with probability alpha_t, on its own.

    Args:
        x0: clean tokens, int64 [batch, length]. Not modified.
        alpha_t: visibility in [0, 1], float [batch].
        mask_token_id: id of the absorbing state.
        generator: randomness, on the device of x0.
    Returns:
        xt, int64 [batch, length].
    Raises:
        ValueError: alpha_t does not have one entry per row of x0.
    Source: Sahoo et al. 2024, arXiv:2406.07524, Section 3.2.1 (forward masking process).
    """
    u = torch.rand(x0.shape, generator=generator, device=x0.device, dtype=torch.float64)
    return mask_tokens_at(x0, alpha_t, mask_token_id, u)


def mask_tokens_at(x0: Tensor, alpha_t: Tensor, mask_token_id: int, u: Tensor) -> Tensor:
    """`mask_tokens` by uniform numbers drawn before: a token stays visible where its number is below alpha_t.

    Args:
        x0, alpha_t, mask_token_id: as for `mask_tokens`.
        u: uniform in [0, 1), float64 [batch, length].
    Returns:
        xt, int64 [batch, length].
    Raises:
        ValueError: alpha_t does not have one entry per row of x0.
    """
    if alpha_t.shape != x0.shape[:1]:
        raise ValueError(f"alpha_t has shape {tuple(alpha_t.shape)}, expected {tuple(x0.shape[:1])}")
    return torch.where(u < alpha_t[:, None], x0, mask_token_id)


def antithetic_times(
    batch_size: int, min_time: float, *, generator: torch.Generator, device: torch.device | None = None
) -> Tensor:
    """Draw one time per row, spread evenly: row i is uniform on the i-th of batch_size equal parts.

    A row picked at random has a time uniform on [min_time, 1); together the rows cover the interval, which lowers the
    variance of the loss.

    Args:
        batch_size: number of times.
        min_time: smallest time, in [0, 1).
        generator: randomness, on `device`.
        device: where the result lives; None is the CPU.
    Returns:
        t, float64 [batch_size], ascending.
    Raises:
        ValueError: min_time is outside [0, 1).
    Source: Sahoo et al. 2024, arXiv:2406.07524, Section 3.5.1 and Appendix D.3: one uniform number per row. (Kingma
        et al. 2021, arXiv:2107.00630, and the code of SDTT share one among the rows.)
    """
    if not 0 <= min_time < 1:
        raise ValueError(f"min_time is {min_time}, expected a value in [0, 1)")
    u = torch.rand(batch_size, generator=generator, device=device, dtype=torch.float64)
    row = torch.arange(batch_size, device=device, dtype=torch.float64)
    return min_time + (1 - min_time) * (u + row) / batch_size
