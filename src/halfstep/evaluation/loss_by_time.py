"""Where along the diffusion a denoiser loses its nats."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from halfstep.metrics.estimate import Estimate, mean_estimate

NUM_BUCKETS = 10


@dataclass(frozen=True)
class TimeBucket:
    """The loss at the times of one part of the diffusion.

    Attributes:
        t_low, t_high: the bucket holds times in (t_low, t_high].
        nats_per_token: the bound's integrand there, over all positions, counted in sequences; None where no time
            was drawn.
    """

    t_low: float
    t_high: float
    nats_per_token: Estimate | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a metrics file."""
        loss = self.nats_per_token
        return {"t_low": self.t_low, "t_high": self.t_high, "nats_per_token": loss and loss.as_dict()}


def loss_by_time(t: np.ndarray, nelbo: np.ndarray, *, num_buckets: int = NUM_BUCKETS) -> list[TimeBucket]:
    """The negative ELBO's integrand in equal parts of the time from 0 to 1.

    The mean over the buckets estimates the bound itself, which is the mean over all times. Looks at one sequence
    that fall into one bucket are averaged first, since they are not independent.

    Args:
        t: times in (0, 1], float [num_sequences, num_draws].
        nelbo: nats per token at those times, all positions counted, float [num_sequences, num_draws].
        num_buckets: how many parts.
    Returns:
        the buckets, by ascending time.
    Raises:
        ValueError: shapes differ, or a time lies outside (0, 1].
    """
    if t.shape != nelbo.shape or t.ndim != 2:
        raise ValueError(f"t has shape {t.shape}, nelbo {nelbo.shape}: expected [num_sequences, num_draws] of both")
    if t.size and not (t.min() > 0 and t.max() <= 1):
        raise ValueError(f"times lie in [{t.min()}, {t.max()}], expected (0, 1]")
    bucket = np.ceil(t * num_buckets).astype(int) - 1
    buckets = []
    for i in range(num_buckets):
        is_in = bucket == i
        rows = is_in.any(axis=1)
        sums, counts = np.where(is_in, nelbo, 0.0).sum(axis=1)[rows], is_in.sum(axis=1)[rows]
        loss = mean_estimate(sums / counts, "nats", name="loss by time") if rows.any() else None
        buckets.append(TimeBucket(i / num_buckets, (i + 1) / num_buckets, loss))
    return buckets
