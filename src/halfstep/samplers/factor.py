"""More positions at once the surer the network is of all of them."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from halfstep.samplers.base import Policy, StepUniforms
from halfstep.samplers.choices import log_confidence, ranks, spread
from halfstep.settings.base import Several
from halfstep.settings.evaluation import SamplerSettings


class Settings(SamplerSettings):
    """`factor`: larger writes more at once."""

    factor: Several[Annotated[float, Field(gt=0)]]


def policy(x_init: Tensor, u_time: Tensor, uniforms: StepUniforms, *, mask_token_id: int, factor: float) -> "Factor":
    """The policy of any batch: it depends on what is predicted alone."""
    return Factor(mask_token_id, factor)


class Factor(Policy):
    """Every step predicts all masked positions, and writes the n surest, n the largest for which all are sure enough.

    With c_n the probability of the likeliest token at the n-th surest position, (n + 1)(1 - c_n) is below the factor.
    One position is written at least.

    Changes the distribution, as `confidence` does.

    Source: Wu et al. 2025, arXiv:2505.22618, Section 3.2 (Fast-dLLM, factor-based parallel decoding).
    """

    chooses = True

    def __init__(self, mask_token_id: int, factor: float) -> None:
        super().__init__(mask_token_id)
        self.factor = factor

    def scores(self, logits: Tensor, positions: Tensor) -> Tensor:
        """The probability of the likeliest token."""
        return log_confidence(logits).exp()

    def writes(self, step: int, at: Tensor, scores: Tensor) -> Tensor:
        """See `Policy`."""
        self.priority = confidence = spread(scores, at, -torch.inf)
        rank = ranks(confidence)
        n = rank + 1
        # The largest n counts, whether those before it fulfil the inequality or not.
        last = torch.where(at & ((n + 1) * (1 - confidence) < self.factor), n, 1).amax(dim=1, keepdim=True)
        return at & (n <= last)
