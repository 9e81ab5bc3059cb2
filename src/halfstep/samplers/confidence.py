"""Writing the surest positions first."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from halfstep.model.base import MaskedModel
from halfstep.samplers.base import LogitsAt, Samples, fill


def sample_by_confidence(
    network: LogitsAt | MaskedModel,
    x_init: Tensor,
    *,
    threshold: float,
    mask_token_id: int,
    u_token: Tensor,
    adjust: Callable[[Tensor], Tensor] | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Samples:
    """Fill the masks of x_init from the surest to the least sure: as many at once as the network is sure of.

    Every step predicts all masked positions, and unmasks those whose likeliest token has the probability `threshold` or
    more, or else the one where it is greatest. There are as many steps as it takes, at most one per position.

    Changes the distribution: the order of writing depends on what is predicted, where ancestral sampling draws it
    independently, so easy positions come first and texts are likelier and less diverse than the model's. And what
    unmasks depends on the network, so every masked position is projected in every step.

    Args:
        network, x_init, mask_token_id, u_token, adjust, on_step: as in `sample`; confidence is that after `adjust`.
        threshold: least probability, 0 for everything at once, 1 or more for one position at a time.
    Returns:
        Samples, on the device of x_init.
    Raises:
        ValueError: shapes do not agree.
    """
    policy = Confidence(threshold, mask_token_id)
    return fill(network, x_init, policy, mask_token_id=mask_token_id, u_token=u_token, adjust=adjust, on_step=on_step)


@dataclass(frozen=True)
class Confidence:
    """All masked positions are asked for, and those are written whose likeliest token is likely enough.

    Attributes:
        threshold: least probability; the position where it is greatest is written in any case.
        mask_token_id: id of the absorbing state.
    """

    threshold: float
    mask_token_id: int

    def asks(self, step: int, xt: Tensor) -> Tensor | None:
        """See `Policy`."""
        is_masked = xt == self.mask_token_id
        return is_masked if is_masked.any() else None

    def time(self, step: int, xt: Tensor) -> Tensor:
        """The share that is masked: the time at which as much is on average."""
        return (xt == self.mask_token_id).double().mean(dim=1)

    def score(self, logits: Tensor) -> Tensor:
        """The probability of the likeliest token."""
        return (logits.amax(dim=-1) - logits.logsumexp(dim=-1)).exp().double()

    def writes(self, at: Tensor, scores: Tensor | None) -> Tensor:
        """See `Policy`."""
        assert scores is not None
        confidence = torch.full(at.shape, -1.0, dtype=torch.float64, device=at.device)
        confidence[at] = scores
        surest = F.one_hot(confidence.argmax(dim=1), at.shape[1]).bool()
        return at & ((confidence >= self.threshold) | surest)
