"""Writing the surest positions first."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from halfstep.settings.evaluation import SamplerSettings


class Settings(SamplerSettings):
    """`threshold`: least probabilities, 0 for everything at once, 1 for one position at a time."""

    threshold: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(strict=False, min_length=1)]


def policy(x_init: Tensor, u_time: Tensor, *, mask_token_id: int, threshold: float) -> "Confidence":
    """The policy of any batch: it depends on what is predicted alone."""
    return Confidence(threshold, mask_token_id)


@dataclass(frozen=True)
class Confidence:
    """As many positions at once as the network is sure of, from the surest to the least sure.

    Every step predicts all masked positions, and writes those whose likeliest token has the probability `threshold` or
    more, or else the one where it is greatest. There are as many steps as it takes, at most one per position.

    Changes the distribution: the order of writing depends on what is predicted, where ancestral sampling draws it
    independently, so easy positions come first and texts are likelier and less diverse than the model's.

    Attributes:
        threshold: least probability, of the distribution that is drawn from.
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
