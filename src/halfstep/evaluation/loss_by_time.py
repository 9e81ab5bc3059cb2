"""Where along the diffusion a denoiser loses its nats."""

from typing import Any

import numpy as np

from halfstep.metrics.estimate import mean_estimate

NUM_BUCKETS = 10


def loss_by_time(t: np.ndarray, nelbo: np.ndarray, *, num_buckets: int = NUM_BUCKETS) -> list[dict[str, Any]]:
    """The negative ELBO's integrand in equal parts of the time from 0 to 1.

    The mean over the buckets estimates the bound itself, which is the mean over all times. Looks at one sequence
    that fall into one bucket are averaged first, since they are not independent.

    Args:
        t: times in (0, 1], float [num_sequences, num_draws].
        nelbo: nats per token at those times, all positions counted, float [num_sequences, num_draws].
        num_buckets: how many parts.
    Returns:
        the buckets, by ascending time, as a record has them: of times in (t_low, t_high] the mean loss `value`, its
        `error` and the `count` of sequences; the first two are None where no time was drawn.
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
        buckets.append(
            {
                "t_low": i / num_buckets,
                "t_high": (i + 1) / num_buckets,
                "value": loss and loss.value,
                "error": loss and loss.standard_error,
                "count": int(rows.sum()),
            }
        )
    return buckets
