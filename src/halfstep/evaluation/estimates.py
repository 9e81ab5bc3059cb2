"""Numbers with their sample count and standard error."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A measured number.

    Attributes:
        value: the number, finite.
        standard_error: of the value, in the same unit; None where it cannot be told.
        count: independent units behind it: sequences, passages, repeats.
        unit: such as "nats", or "1" for a number without unit.
    Raises:
        ValueError: value or standard_error is NaN or infinite.
    """

    value: float
    standard_error: float | None
    count: int
    unit: str

    def __post_init__(self) -> None:
        for name in ("value", "standard_error"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                raise ValueError(f"the {name} of an estimate over {self.count} in unit {self.unit!r} is {number}")

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a metrics file."""
        return {
            "value": self.value,
            "standard_error": self.standard_error,
            "count": self.count,
            "unit": self.unit,
        }


def mean_estimate(values: Sequence[float] | np.ndarray, unit: str, *, name: str = "values") -> Estimate:
    """The mean of independent values, with the standard error of the mean, s / sqrt(n), s with n - 1.

    Args:
        values: one number per independent unit, at least one.
        unit: their unit.
        name: what they are, for messages.
    Returns:
        the estimate; standard_error is None for a single value.
    Raises:
        ValueError: there are no values, or one is NaN or infinite.
    """
    array = _finite(values, name)
    standard_error = float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else None
    return Estimate(float(array.mean()), standard_error, len(array), unit)


def perplexity_estimate(
    nlls: Sequence[float] | np.ndarray, num_tokens: Sequence[int] | np.ndarray, *, name: str = "perplexity"
) -> Estimate:
    """Perplexity per token over all sequences together, exp(sum of nlls / sum of tokens).

    With r = sum nll_i / sum n_i over m sequences, the standard error of r is that of a ratio of means,
    sqrt(sum (nll_i - r n_i)^2 / (m (m - 1))) / mean(n), and the perplexity's is exp(r) times it (delta
    method).

    Args:
        nlls: negative log-likelihood of each sequence, nats, float [m].
        num_tokens: tokens that each sum covers, int [m]; zeros are allowed, not all of them.
        name: what is measured, for messages.
    Returns:
        the estimate, count m; standard_error is None for a single sequence.
    Raises:
        ValueError: lengths differ, nothing was scored, an nll is NaN or infinite, or the perplexity
            overflows.
    Source: Cochran 1977, Sampling Techniques (ratio estimator).
    """
    nll = _finite(nlls, f"{name}: negative log-likelihoods")
    tokens = _finite(num_tokens, f"{name}: token counts")
    if nll.shape != tokens.shape or not tokens.sum() > 0:
        raise ValueError(f"{name}: {len(nll)} sequences with {len(tokens)} counts, {tokens.sum():.0f} tokens in all")
    count = len(nll)
    rate = nll.sum() / tokens.sum()
    # Beyond this the perplexity is no longer a number; a model does not reach it unless it is broken.
    if rate > 700:
        raise ValueError(f"{name}: {rate:.6g} nats per token, whose exponential overflows")
    value = math.exp(rate)
    standard_error = None
    if count > 1:
        residuals = nll - rate * tokens
        standard_error = value * math.sqrt((residuals**2).sum() / (count * (count - 1))) / float(tokens.mean())
    return Estimate(value, standard_error, count, "1")


def _finite(values: Sequence[float] | Sequence[int] | np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{name}: expected one number per sequence, got shape {array.shape}")
    is_bad = ~np.isfinite(array)
    if is_bad.any():
        first = int(is_bad.argmax())
        raise ValueError(
            f"{name}: {is_bad.sum()} of {len(array)} are not finite, the first at index {first}: {array[first]}"
        )
    return array
