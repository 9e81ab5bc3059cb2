"""As many positions at once as are nearly independent of each other, by a bound on entropies."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from halfstep.samplers.base import Policy, StepUniforms
from halfstep.samplers.choices import Score, entropy, ranks, spread, sureness
from halfstep.settings.base import Several
from halfstep.settings.evaluation import SamplerSettings


class Settings(SamplerSettings):
    """`gamma`: bounds, in nats, on what is lost by drawing positions independently; `score`: what is sure."""

    gamma: Several[Annotated[float, Field(ge=0)]]
    score: Several[Score] = ("entropy",)


def policy(
    x_init: Tensor, u_time: Tensor, uniforms: StepUniforms, *, mask_token_id: int, gamma: float, score: Score
) -> "EntropyBound":
    """The policy of any batch: it depends on what is predicted alone."""
    return EntropyBound(mask_token_id, gamma=gamma, score=score)


class EntropyBound(Policy):
    """Every step predicts all masked positions, and writes the surest ones while their joint entropy is sure enough.

    The product of the marginals differs from the joint distribution of some positions by their total correlation,
    sum H_l - H(joint), which is at most sum H_l - max H_l. The longest beginning of the order in which that is gamma
    nats or less is written, one position at least: with gamma 0 one at a time, and those that are certain with it.

    Changes the distribution: the order depends on what is predicted, so easy positions come first and texts are
    likelier and less diverse than the model's; and a model's marginals need not fit together.

    Source: Ben-Hamu et al. 2025, arXiv:2505.24857, Section 3 (EB-Sampler).
    """

    chooses = True

    def __init__(self, mask_token_id: int, *, gamma: float, score: Score = "entropy") -> None:
        super().__init__(mask_token_id)
        self.gamma, self.score = gamma, score

    def scores(self, logits: Tensor, positions: Tensor) -> Tensor:
        """(how sure, entropy), float [n, 2]."""
        entropies = entropy(logits)
        sure = -entropies if self.score == "entropy" else sureness(logits, self.score)
        return torch.stack([sure, entropies], dim=-1)

    def writes(self, step: int, at: Tensor, scores: Tensor) -> Tensor:
        """See `Policy`."""
        sure, entropies = spread(scores, at, -torch.inf).unbind(-1)
        self.priority, rank = sure, ranks(sure)
        # What is not asked for comes last, with entropies of -inf.
        in_order = torch.zeros_like(entropies).scatter(1, rank, entropies)
        # Exactly zero for the first, which is therefore written whatever gamma is.
        lost = in_order.cumsum(dim=1) - in_order.cummax(dim=1).values
        return at & (lost.gather(1, rank) <= self.gamma)
