"""All positions of which the network is sure enough."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from halfstep.samplers.base import Policy, StepUniforms
from halfstep.samplers.choices import log_confidence, ranks, spread
from halfstep.settings.base import Several
from halfstep.settings.evaluation import SamplerSettings


class Settings(SamplerSettings):
    """`threshold`: least probabilities, 0 for everything at once, 1 for one position at a time."""

    threshold: Several[Annotated[float, Field(ge=0, le=1)]]


def policy(
    x_init: Tensor, u_time: Tensor, uniforms: StepUniforms, *, mask_token_id: int, threshold: float
) -> "Confidence":
    """The policy of any batch: it depends on what is predicted alone."""
    return Confidence(mask_token_id, threshold)


class Confidence(Policy):
    """Every step predicts all masked positions, and writes those whose likeliest token is likely enough.

    Its probability is `threshold` or more, of the distribution that is drawn from; where no position has it, the one
    where it is greatest is written. There are as many steps as it takes, at most one per position.

    Changes the distribution: the order of writing depends on what is predicted, where ancestral sampling draws it
    independently, so easy positions come first and texts are likelier and less diverse than the model's.
    Source: Wu et al. 2025, arXiv:2505.22618, Section 3.2 (Fast-dLLM, confidence-aware parallel decoding).
    """

    chooses = True

    def __init__(self, mask_token_id: int, threshold: float) -> None:
        super().__init__(mask_token_id)
        self.threshold = threshold

    def scores(self, logits: Tensor, positions: Tensor) -> Tensor:
        """The probability of the likeliest token."""
        return log_confidence(logits).exp()

    def writes(self, step: int, at: Tensor, scores: Tensor) -> Tensor:
        """See `Policy`."""
        self.priority = confidence = spread(scores, at, -torch.inf)
        return at & ((confidence >= self.threshold) | (ranks(confidence) == 0))
