"""What samplers choose by: how sure a prediction is, how many positions a step writes, and the first in an order."""

import math
from typing import Literal

import torch
from torch import Tensor

Score = Literal["entropy", "confidence", "margin"]
"""How sure a prediction is: minus its entropy (nats), or the logarithm of its greatest probability, or the difference
between its two greatest probabilities."""
Order = Literal[Score, "position"]
"""Which position comes first: where the prediction is surest, or the leftmost."""
Counts = Literal["even", "cosine"]
"""How many positions each step writes: equally many, or few at first and many at the end."""


CACHED_LOGITS = 2**18
"""Logits that a processor's cache holds: passes over fewer at a time take a fifth of the time."""


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of each row's distribution, float [n] of float [n, vocab] with -inf allowed."""
    size = max(1, CACHED_LOGITS // logits.shape[1]) if logits.device.type == "cpu" else max(1, len(logits))
    return torch.cat([_entropy(rows) for rows in logits.split(size)])


def _entropy(logits: Tensor) -> Tensor:
    # Where a probability is zero its term is to be zero: 0 * -inf is not.
    x = logits.clamp(min=torch.finfo(logits.dtype).min)
    x -= x.amax(dim=-1, keepdim=True)
    weights = x.exp()
    total = weights.sum(dim=-1)
    return (total.log() - weights.mul_(x).sum(dim=-1) / total).clamp(min=0)


def log_confidence(logits: Tensor) -> Tensor:
    """Logarithm of the greatest probability of each row's distribution, float [n] of float [n, vocab]."""
    return logits.amax(dim=-1) - logits.logsumexp(dim=-1)


def sureness(logits: Tensor, score: Score) -> Tensor:
    """How sure each prediction is, the surest highest, float [n] of logits [n, vocab]; see `Score`."""
    if score == "entropy":
        return -entropy(logits)
    if score == "confidence":
        return log_confidence(logits)
    two = (logits.topk(2, dim=-1).values - logits.logsumexp(dim=-1, keepdim=True)).exp()
    return two[:, 0] - two[:, 1]


def written_by(step: int | Tensor, num_steps: int, num_masked: Tensor, counts: Counts) -> Tensor:
    """How many positions are written when a step ends: none at step 0, all at the last.

    Args:
        step: in 0..num_steps, or several.
        num_steps: 1 or more.
        num_masked: positions to write, int64, of a shape that goes with that of `step`.
        counts: `cosine` leaves the share cos(pi step / (2 num_steps)) masked.
    Returns:
        int64, of the shape of both together.
    Source: Chang et al. 2022, arXiv:2202.04200, Section 3.3 (cosine schedule).
    """
    done = torch.as_tensor(step, device=num_masked.device)
    if counts == "even":
        return -(-num_masked * done // num_steps)
    # Rounded, so that the cosine of a right angle, which is not quite zero, leaves nothing.
    left = (num_masked * torch.cos(math.pi / 2 * done.double() / num_steps)).mul(2**32).round().div(2**32).floor()
    return num_masked - left.long()


def spread(values: Tensor, at: Tensor, elsewhere: float) -> Tensor:
    """Values of some positions, float [n, ...], as a table of all, float64 [batch, length, ...]."""
    table = torch.full((*at.shape, *values.shape[1:]), elsewhere, dtype=torch.float64, device=at.device)
    table[at] = values.double()
    return table


def ranks(priority: Tensor) -> Tensor:
    """Place of each position in its row by descending priority, from 0, ties in order, int64 [batch, length]."""
    return priority.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
