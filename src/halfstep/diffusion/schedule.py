"""The noise schedule: how likely a token is still visible at time t."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LogLinearSchedule:
    """alpha(t) = 1 - (1 - epsilon) t, so that the total noise -log alpha is log-linear in t.

    Args:
        epsilon: what is left visible at t = 1, in (0, 1); it keeps the total noise finite there.
    Source: Sahoo et al. 2024, arXiv:2406.07524, Appendix E.1, Eq. 90, which has no epsilon; epsilon as in the authors'
        code (`LogLinearNoise`, 1e-3).
    """

    epsilon: float

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < 1:
            raise ValueError(f"epsilon is {self.epsilon}, expected a value in (0, 1)")

    def alpha(self, t: Tensor) -> Tensor:
        """Probability that a token is visible at time t in [0, 1]; same shape and dtype as t."""
        return 1 - (1 - self.epsilon) * t

    def dalpha(self, t: Tensor) -> Tensor:
        """Derivative of `alpha` with respect to t; same shape and dtype as t."""
        return (t * 0) - (1 - self.epsilon)

    def sigma(self, t: Tensor) -> Tensor:
        """Total noise -log alpha(t), which time-conditioned networks are given; same shape and dtype as t."""
        return -(-(1 - self.epsilon) * t).log1p()
