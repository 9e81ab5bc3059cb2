"""The bound on the likelihood that a denoiser is trained by; as an objective of distillation, the control.

A student trained on by it for as many steps is what every distillation should beat.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from halfstep.diffusion.nelbo import nelbo_weight, weighted_cross_entropy
from halfstep.diffusion.noise import mask_tokens_at
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.objectives.base import PRODUCT, Objective
from halfstep.objectives.distillation import Distillation
from halfstep.objectives.masked import log_softmax, mask_noise, masked_loss, num_maskable, row_chunks, uniforms
from halfstep.settings import base


class Settings(base.Settings):
    """It has none of its own."""


def build(given: Distillation) -> Objective:
    """The objective of a round in which the student learns from the data alone."""
    return nelbo_objective(
        schedule=given.schedule, min_time=given.settings.min_time, mask_token_id=given.student.config.mask_token_id
    )


LatentOf = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
"""(the network, x0 and xt int64 [batch, length], numbers uniform in [0, 1) float64 [batch, 2]) -> its latent."""


def nelbo_objective(
    *, schedule: LogLinearSchedule, min_time: float, mask_token_id: int, latent_of: LatentOf | None = None
) -> Objective:
    """The continuous-time negative ELBO of a denoiser, in nats per token (masked or not).

    Args:
        schedule, min_time: of the noise.
        mask_token_id: id of the absorbing state.
        latent_of: makes the network's latent, for one that is trained with it.
    Source: Sahoo et al. 2024, arXiv:2406.07524, Section 3.5, Eq. 11.
    """

    def draw(shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
        noise = mask_noise(shape, min_time, generator)
        return noise if latent_of is None else (*noise, uniforms((shape[0], 2), generator))

    def loss(model: nn.Module, x0: Tensor, t: Tensor, u_mask: Tensor, *u: Tensor) -> tuple[Tensor, int]:
        xt = mask_tokens_at(x0, schedule.alpha(t), mask_token_id, u_mask)
        is_masked = xt == mask_token_id
        targets = x0[is_masked]
        weight = nelbo_weight(t, schedule)[:, None].expand(x0.shape)[is_masked]

        def term(rows: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            return rows, lambda logits: weighted_cross_entropy(log_softmax(logits), targets[rows], weight[rows]).sum()

        terms = map(term, row_chunks(model, len(targets), x0.device))
        latent = None if latent_of is None else latent_of(model, x0, xt, *u)
        return masked_loss(model, xt, is_masked, mask_token_id, terms, t=t, latent=latent), num_maskable(u_mask)

    return Objective(draw, {PRODUCT: loss})
