"""A fixed number of positions in every step, the surest first."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from halfstep.samplers.base import Policy, StepUniforms
from halfstep.samplers.choices import Counts, Order, ranks, spread, sureness, written_by
from halfstep.settings.base import PositiveInts, Several
from halfstep.settings.evaluation import SamplerSettings


class Settings(SamplerSettings):
    """`num_steps`; `score`: what comes first; `noise`: scale of the Gumbel noise that is added to it; `counts`."""

    num_steps: PositiveInts
    score: Several[Order]
    noise: Several[Annotated[float, Field(ge=0)]]
    counts: Several[Counts]


def policy(
    x_init: Tensor,
    u_time: Tensor,
    uniforms: StepUniforms,
    *,
    mask_token_id: int,
    num_steps: int,
    score: Order,
    noise: float,
    counts: Counts,
) -> "Ordered":
    """The policy of a batch: see `Ordered`."""
    num_masked = (x_init == mask_token_id).sum(dim=1)
    return Ordered(mask_token_id, num_masked, uniforms, num_steps=num_steps, score=score, noise=noise, counts=counts)


class Ordered(Policy):
    """Every step predicts all masked positions and writes the surest, or the leftmost, as many as its turn has.

    Changes the distribution: easy positions come first, so texts are likelier and less diverse than the model's.
    Noise in the order gives some of that back.

    Args:
        num_masked: positions to write in each row, int64 [batch].
        uniforms: of a step, for the noise.
        num_steps, counts: how many positions each step writes; a row in which a step writes none is not evaluated.
        score, noise: the order is that of score + noise * g, g standard Gumbel and new in every step; noise 0 leaves
            the score alone.
    Source: Chang et al. 2022, arXiv:2202.04200, Section 3.2 (confidence); Kim et al. 2025, arXiv:2502.06768 (margin).
    """

    chooses = True

    def __init__(
        self,
        mask_token_id: int,
        num_masked: Tensor,
        uniforms: StepUniforms,
        *,
        num_steps: int,
        score: Order,
        noise: float,
        counts: Counts,
    ) -> None:
        super().__init__(mask_token_id)
        self.num_masked, self.uniforms = num_masked, uniforms
        self.num_steps, self.score, self.noise, self.counts = num_steps, score, noise, counts
        self._length = 0
        self._turn = num_masked[:, None]  # how many positions each row writes in a step

    def asks(self, step: int, xt: Tensor) -> Tensor | None:
        """See `Policy`."""
        is_masked, self._length = xt == self.mask_token_id, xt.shape[1]
        if step > self.num_steps and not is_masked.any():
            return None
        # What a joint head did not settle in the steps before is added to this one's.
        after = written_by(min(step, self.num_steps), self.num_steps, self.num_masked, self.counts)
        self._turn = (after - self.num_masked + is_masked.sum(dim=1))[:, None]
        return is_masked & (self._turn > 0)

    def scores(self, logits: Tensor, positions: Tensor) -> Tensor:
        """See `Policy`."""
        return -(positions % self._length).double() if self.score == "position" else sureness(logits, self.score)

    def writes(self, step: int, at: Tensor, scores: Tensor) -> Tensor:
        """See `Policy`."""
        priority = spread(scores, at, -torch.inf)
        if self.noise:
            u, _ = self.uniforms(step)
            priority = priority - self.noise * (-u.to(at.device).log()).log()
        self.priority = priority
        return at & (ranks(priority) < self._turn)
