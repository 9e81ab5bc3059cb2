"""Numbers with their sample count, standard error and confidence interval."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

CONFIDENCE_LEVEL = 0.95

FEWEST_MAUVE_TEXTS = 1000
"""With fewer a cluster holds a handful, and MAUVE says more about their number than about the model."""

INTERVAL_BATCH = 256
"""Resamples held in memory at once."""


@dataclass(frozen=True)
class Estimate:
    """A measured number.

    Attributes:
        value: the number, finite.
        standard_error: of the value, in the same unit; None where it is not known.
        count: independent units behind it: sequences, passages, repeats.
        unit: such as "nats", or "1" for a number without unit.
        interval: where the true number lies in 95 % of such measurements; None where it was not determined.
    Raises:
        ValueError: a number is NaN or infinite.
    """

    value: float
    standard_error: float | None
    count: int
    unit: str
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        low, high = self.interval or (None, None)
        numbers = {"value": self.value, "standard_error": self.standard_error, "interval": low, "interval's end": high}
        for name, number in numbers.items():
            if number is not None and not math.isfinite(number):
                raise ValueError(f"the {name} of an estimate over {self.count} in unit {self.unit!r} is {number}")

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a metrics file; `interval` is there if it was determined."""
        values = {
            "value": self.value,
            "standard_error": self.standard_error,
            "count": self.count,
            "unit": self.unit,
        }
        return values if self.interval is None else {**values, "interval": list(self.interval)}


def share_estimate(num_true: int, count: int) -> Estimate:
    """A share of independent trials, with Wilson's interval, which is right at 0 and 1 too.

    Source: Wilson 1927, J. Amer. Statist. Assoc. 22, 209-212.
    """
    from scipy.stats import binomtest

    interval = binomtest(num_true, count).proportion_ci(CONFIDENCE_LEVEL, method="wilson")
    share = num_true / count
    return Estimate(share, math.sqrt(share * (1 - share) / count), count, "1", (interval.low, interval.high))


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


def with_interval(
    estimate: Estimate,
    statistic: Callable[..., np.ndarray],
    data: Sequence[Sequence[float] | np.ndarray],
    *,
    num_resamples: int,
    seed: int,
) -> Estimate:
    """The estimate with its bootstrap interval: units are drawn again with replacement, their numbers together.

    Args:
        estimate: the statistic of the data.
        statistic: takes the arrays of `data` and `axis`, along which units lie; see `scipy.stats.bootstrap`.
        data: arrays [num_units], one number per independent unit in each.
        num_resamples: how often; 0 determines no interval.
        seed: of the draws.
    Returns:
        the estimate with the percentile interval, which stays None for a single unit or no resamples. Percentiles do
        not depend on whether a perplexity or its logarithm is looked at, and are a point where nothing varies.
    Source: Efron 1979 (bootstrap), as implemented in `scipy.stats.bootstrap`.
    """
    from scipy.stats import bootstrap

    arrays = [np.asarray(values, dtype=np.float64) for values in data]
    if num_resamples == 0 or len(arrays[0]) < 2:
        return estimate
    found = bootstrap(
        arrays,
        statistic,
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=num_resamples,
        batch=INTERVAL_BATCH,
        confidence_level=CONFIDENCE_LEVEL,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return replace(estimate, interval=(float(found.low), float(found.high)))


def perplexity_of(nlls: np.ndarray, num_tokens: np.ndarray, axis: int = -1) -> np.ndarray:
    """exp(sum of nlls / sum of tokens) along an axis: the statistic of `perplexity_estimate`."""
    return np.exp(nlls.sum(axis=axis) / num_tokens.sum(axis=axis))


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
