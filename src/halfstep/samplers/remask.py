"""Ancestral sampling in which written tokens may be masked again, and so corrected."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from halfstep.samplers.base import Policy, StepUniforms
from halfstep.settings.base import PositiveInts, Several
from halfstep.settings.evaluation import SamplerSettings

Schedule = Literal["cap", "rescale", "conf", "loop"]


class Settings(SamplerSettings):
    """`num_steps`; `schedule` and `eta`: how likely a token is masked again, see `Remask`.

    For `loop`: it lasts from time `loop_from` to `loop_to`, with the share `loop_alpha` visible.
    """

    num_steps: PositiveInts
    schedule: Several[Schedule]
    eta: Several[Annotated[float, Field(ge=0, le=1)]]
    loop_from: Several[Annotated[float, Field(gt=0, lt=1)]] = (0.55,)
    loop_to: Several[Annotated[float, Field(gt=0, lt=1)]] = (0.05,)
    loop_alpha: Several[Annotated[float, Field(gt=0, lt=1)]] = (0.9,)


def policy(
    x_init: Tensor,
    u_time: Tensor,
    uniforms: StepUniforms,
    *,
    mask_token_id: int,
    num_steps: int,
    schedule: Schedule,
    eta: float,
    loop_from: float,
    loop_to: float,
    loop_alpha: float,
) -> "Remask":
    """The policy of a batch: see `Remask`."""
    loop = (loop_from, loop_to, loop_alpha) if schedule == "loop" else None
    alphas = visible_shares(num_steps, loop)
    return Remask(mask_token_id, x_init, u_time, uniforms, alphas=alphas, schedule=schedule, eta=eta, loop=loop)


def visible_shares(num_steps: int, loop: tuple[float, float, float] | None = None) -> list[float]:
    """Share alpha of visible tokens at times 1, 1 - 1/n, ..., 0.

    Args:
        num_steps: n, 1 or more.
        loop: (from, to, alpha): between these times the share stays alpha, before and after it rises in proportion.
    Source: Wang et al. 2025, arXiv:2503.00307, Section 4.2 (ReMDM-loop).
    """
    times = [1 - step / num_steps for step in range(num_steps + 1)]
    if loop is None:
        return [1 - t for t in times]
    start, end, alpha = loop
    before, after = (1 - alpha) / end, alpha / (1 - start)
    return [(1 - t) * after if t > start else 1 - t * before if t <= end else alpha for t in times]


class Remask(Policy):
    """A token that was written stays with probability 1 - sigma, and otherwise is masked again when a step ends.

    A masked position is written with probability (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), from t to s < t. With
    sigma_max = min(1, (1 - alpha_s) / alpha_t), sigma is by `schedule`

        cap      min(eta, sigma_max)
        rescale  eta sigma_max
        conf     eta sigma_max softmax(-p) over the row's written tokens, p the probability each had when it was
                 written; masked positions are written as with sigma 0
        loop     0, and eta while the share of visible tokens is held

    Under a perfect network the share of visible tokens is that of ancestral sampling, and each token has the data's
    distribution given the others; with eta 0 it is ancestral sampling, text for text. What is given stays.

    Changes the distribution: errors are repaired where the network finds them unlikely, at the price of evaluations.

    Source: Wang et al. 2025, arXiv:2503.00307, Sections 3 and 4 (ReMDM).
    """

    def __init__(
        self,
        mask_token_id: int,
        x_init: Tensor,
        u_time: Tensor,
        uniforms: StepUniforms,
        *,
        alphas: list[float],
        schedule: Schedule,
        eta: float,
        loop: tuple[float, float, float] | None,
    ) -> None:
        super().__init__(mask_token_id)
        self.uniforms, self.alphas, self.schedule, self.eta, self.loop = uniforms, alphas, schedule, eta, loop
        self.num_steps = len(alphas) - 1
        self.is_own = x_init == mask_token_id
        # A position is written in the first step after which its chance to be masked still, since it was masked, is
        # not more than its number: what `ancestral.unmask_steps` does for steps that are equal.
        self.u_time = u_time.to(x_init.device)
        self.still_masked = torch.ones_like(self.u_time)
        self.p_written = torch.zeros_like(self.u_time)

    def _sigma(self, step: int) -> float:
        """sigma of the schedules that have one for all tokens; of `conf`, what its softmax is multiplied by."""
        alpha_t, alpha_s = self.alphas[step - 1], self.alphas[step]
        most = min(1.0, (1 - alpha_s) / alpha_t) if alpha_t > 0 else 1.0
        if self.schedule == "loop":
            return min(self.eta, most) if alpha_t == alpha_s else 0.0
        return min(self.eta, most) if self.schedule == "cap" else self.eta * most

    def asks(self, step: int, xt: Tensor) -> Tensor | None:
        """See `Policy`."""
        is_masked = xt == self.mask_token_id
        if step > self.num_steps:
            # What a joint head did not settle is written in further steps.
            return is_masked if is_masked.any() else None
        alpha_t, alpha_s = self.alphas[step - 1], self.alphas[step]
        sigma = 0.0 if self.schedule == "conf" else self._sigma(step)
        self.priority = self.u_time
        self.still_masked *= 1 - (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)
        return is_masked & (self.u_time >= self.still_masked)

    def time(self, step: int, xt: Tensor) -> Tensor:
        """That at which as much is visible."""
        return torch.full(
            (len(xt),), 1 - self.alphas[min(step, self.num_steps) - 1], dtype=torch.float64, device=xt.device
        )

    def wrote(self, logits: Tensor, positions: Tensor, drawn: Tensor) -> None:
        """See `Policy`."""
        log_p = logits.gather(1, drawn[:, None])[:, 0] - logits.logsumexp(dim=-1)
        self.p_written.view(-1)[positions] = log_p.exp().double()

    def forgets(self, step: int, xt: Tensor) -> tuple[Tensor, Tensor] | None:
        """See `Policy`."""
        sigma = self._sigma(step) if step <= self.num_steps else 0.0
        if sigma == 0:
            return None
        is_written = self.is_own & (xt != self.mask_token_id)
        share = torch.full_like(self.u_time, sigma)
        if self.schedule == "conf":
            share = sigma * (-self.p_written).masked_fill(~is_written, -torch.inf).softmax(dim=1).nan_to_num(0)
        u, u_token = (numbers.to(xt.device) for numbers in self.uniforms(step))
        forgotten = is_written & (u < share)
        # What is left of u below its share is a new uniform number.
        self.u_time = torch.where(forgotten, u / share.clamp(min=1e-300), self.u_time)
        self.still_masked = self.still_masked.masked_fill(forgotten, 1.0)
        return forgotten, u_token
