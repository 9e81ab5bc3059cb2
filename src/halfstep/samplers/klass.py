"""Positions of which the network is sure, and was so before."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from halfstep.samplers.base import Policy, StepUniforms
from halfstep.samplers.choices import log_confidence, ranks, spread
from halfstep.settings.base import PositiveInt, Several
from halfstep.settings.evaluation import SamplerSettings


class Settings(SamplerSettings):
    """`threshold`: least probability of the likeliest token; `max_kl`: nats by which a prediction may have changed, in
    each of the last `history` evaluations; `fallback`: positions written where none is as sure and stable."""

    threshold: Several[Annotated[float, Field(ge=0, le=1)]]
    max_kl: Several[Annotated[float, Field(ge=0)]] = (0.01,)
    history: Several[PositiveInt] = (2,)
    fallback: Several[PositiveInt] = (1,)


def policy(
    x_init: Tensor,
    u_time: Tensor,
    uniforms: StepUniforms,
    *,
    mask_token_id: int,
    threshold: float,
    max_kl: float,
    history: int,
    fallback: int,
) -> "Klass":
    """The policy of a batch: see `Klass`."""
    return Klass(mask_token_id, x_init.numel(), threshold=threshold, max_kl=max_kl, history=history, fallback=fallback)


class Klass(Policy):
    """Every step predicts all masked positions, and writes those whose prediction is sure and has settled.

    Sure: the likeliest token has the probability `threshold` or more. Settled: in each of the last `history`
    evaluations KL(now || before) was below `max_kl` nats. Where no position of a row is both, the `fallback` surest
    are written.

    Changes the distribution, as `confidence` does. The predictions before are kept: batch * length * vocab numbers.

    Source: Kim et al. 2025, arXiv:2511.05664, Section 3 (KLASS).
    """

    chooses = True

    def __init__(
        self, mask_token_id: int, num_positions: int, *, threshold: float, max_kl: float, history: int, fallback: int
    ) -> None:
        super().__init__(mask_token_id)
        self.threshold, self.max_kl, self.history, self.fallback = threshold, max_kl, history, fallback
        self._num_positions = num_positions
        self._before: Tensor | None = None
        self._num_settled = torch.zeros(num_positions, dtype=torch.int64)

    def scores(self, logits: Tensor, positions: Tensor) -> Tensor:
        """(probability of the likeliest token, evaluations in a row in which the prediction kept still), [n, 2]."""
        log_p = logits.log_softmax(dim=-1)
        if self._before is None:
            # Of what was not predicted yet the divergence is infinite.
            self._before = log_p.new_full((self._num_positions, log_p.shape[1]), -torch.inf)
            self._num_settled = self._num_settled.to(positions.device)
        p = log_p.exp()
        kl = torch.where(p > 0, p * (log_p - self._before[positions]), 0).sum(dim=-1)
        settled = torch.where(kl < self.max_kl, self._num_settled[positions] + 1, 0)
        self._before[positions], self._num_settled[positions] = log_p, settled
        return torch.stack([log_confidence(logits).exp().double(), settled.double()], dim=-1)

    def writes(self, step: int, at: Tensor, scores: Tensor) -> Tensor:
        """See `Policy`."""
        confidence, settled = spread(scores, at, -torch.inf).unbind(-1)
        self.priority = confidence
        is_ready = at & (confidence >= self.threshold) & (settled >= self.history)
        return torch.where(is_ready.any(dim=1, keepdim=True), is_ready, at & (ranks(confidence) < self.fallback))
