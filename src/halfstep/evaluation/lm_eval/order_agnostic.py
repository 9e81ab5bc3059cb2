"""How likely a denoiser finds some tokens given others: the mean over all orders in which they could be written.

Writing n tokens one by one in a random order costs, on average over orders,

    E_k [ n / k * E_S [ sum over i in S of -log p(x_i | all outside S) ] ],

k uniform on 1..n and S uniform among the subsets of size k. It bounds the negative log-likelihood from above, as the
NELBO restricted to these tokens does.

Source: Hoogeboom et al. 2021, arXiv:2110.02037, Sections 2 (Eq. 2) and 3; Nie et al. 2025, arXiv:2502.09992, Section
    2.4 (Eq. 6) and Algorithm 3 (conditional likelihood, drawn by number of masks).
"""

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor


@dataclass(frozen=True)
class Maskings:
    """Which of n tokens to mask, to estimate their likelihood.

    Attributes:
        is_masked: one row per network evaluation, distinct, the first with everything masked, bool [m, n].
        draws: the row of each draw, int64 [num_draws]; None where the rows are all subsets, and nothing is drawn.
    """

    is_masked: Tensor
    draws: Tensor | None


@dataclass(frozen=True)
class LogLikelihood:
    """An estimate of the bound.

    Attributes:
        value: nats; minus infinity where a token that can be asked for has no probability.
        standard_error: of the value over draws; 0 where nothing was drawn, None where there was one draw only.
    """

    value: float
    standard_error: float | None


def draw_maskings(num_tokens: int, num_draws: int, generator: torch.Generator) -> Maskings:
    """All subsets of n tokens if these are no more than num_draws, and else num_draws independent ones.

    Args:
        num_tokens: n, 1 or more.
        num_draws: 1 or more.
        generator: randomness, on the CPU.
    """
    n = num_tokens
    # A set of rows grows with 2^n, the test does not.
    if n < 31 and 2**n - 1 <= num_draws:
        subsets = [subset for subset in product((True, False), repeat=n) if any(subset)]
        return Maskings(torch.tensor(subsets), None)
    rows: dict[tuple[bool, ...], int] = {(True,) * n: 0}
    draws = []
    for _ in range(num_draws):
        k = int(torch.randint(1, n + 1, (), generator=generator))
        chosen = set(torch.randperm(n, generator=generator)[:k].tolist())
        subset = tuple(i in chosen for i in range(n))
        draws.append(rows.setdefault(subset, len(rows)))
    return Maskings(torch.tensor(list(rows)), torch.tensor(draws))


def log_likelihood(maskings: Maskings, log_p: Tensor) -> LogLikelihood:
    """The bound, from what the network says of each masking.

    Draws are compared with what they would be if every prediction were that of the fully masked row, whose mean over
    draws is known. This takes away the part of the variance that comes from which tokens a draw happens to ask
    for; where predictions do not depend on what is visible, that is all of it. Each draw's share of the correction
    is fitted to the other draws, so the estimate stays unbiased.

    Args:
        maskings: of `draw_maskings`.
        log_p: log-probability of each masked token; visible ones are ignored, float64 [m, n].
    Returns:
        minus the cost in the module's docstring, exact or estimated.
    Raises:
        ValueError: log_p has another shape, or is NaN at a masked token.
    Source: the module's. Departs: the correction (a control variate with cross-fitted coefficient) is ours.
    """
    is_masked = maskings.is_masked
    if log_p.shape != is_masked.shape:
        raise ValueError(f"log_p has shape {tuple(log_p.shape)}, expected {tuple(is_masked.shape)}")
    log_p = torch.where(is_masked, log_p.double(), 0.0)
    if log_p.isnan().any():
        raise ValueError("a log-probability is NaN")
    if log_p.isinf().any():
        return LogLikelihood(-math.inf, 0.0)
    n = is_masked.shape[1]
    num_masked = is_masked.sum(dim=1)
    estimates = n / num_masked * log_p.sum(dim=1)
    if maskings.draws is None:
        probability = torch.tensor([1 / (n * math.comb(n, k)) for k in num_masked.tolist()], dtype=torch.float64)
        return LogLikelihood(float((probability * estimates).sum()), 0.0)
    of_full_mask = log_p[0].sum()
    without_context = n / num_masked * torch.where(is_masked, log_p[0], 0.0).sum(dim=1)
    y = (estimates - of_full_mask)[maskings.draws]
    x = (without_context - of_full_mask)[maskings.draws]
    residuals = y - _slopes_of_others(x, y) * x
    count = len(residuals)
    error = float(residuals.std(correction=1)) / math.sqrt(count) if count > 1 else None
    return LogLikelihood(float(of_full_mask + residuals.mean()), error)


def _slopes_of_others(x: Tensor, y: Tensor) -> Tensor:
    """For each point the slope of y over x among all other points, within [0, 1]; 1 where these share one x."""
    num_others = len(x) - 1
    if num_others < 2:
        return torch.ones_like(x)
    others = ~torch.eye(len(x), dtype=torch.bool)
    xs, ys = (values.expand(len(x), -1)[others].view(len(x), num_others) for values in (x, y))
    xs = xs - xs.mean(dim=1, keepdim=True)
    variance = (xs**2).sum(dim=1)
    slopes = (xs * ys).sum(dim=1) / variance
    return torch.where(variance > 0, slopes, 1.0).clamp(0.0, 1.0)
