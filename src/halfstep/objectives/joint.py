"""A joint head learns from data: each token given the trunk's states and the tokens before it in an order."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from halfstep.diffusion.noise import mask_tokens_at
from halfstep.diffusion.projection import Terms, projected_loss
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.diffusion.subs import exclude_mask
from halfstep.model.joint import JointModel
from halfstep.objectives.base import PRODUCT, Objective
from halfstep.objectives.distillation import Costs, Distillation
from halfstep.objectives.heads import HeadSettings, TrainingOrder, with_head
from halfstep.objectives.masked import log_softmax, mask_noise, masked_share, row_chunks, uniforms
from halfstep.settings.training import DistillSettings


class Settings(HeadSettings):
    """It has no others."""


student = with_head


def build(given: Distillation) -> Objective:
    """The objective of a round in which the student's head learns from the data alone."""
    return joint_objective(
        schedule=given.schedule,
        min_time=given.settings.min_time,
        mask_token_id=given.student.config.mask_token_id,
        train_trunk=given.settings.own.train_trunk,
        order=given.settings.own.order,
    )


def costs(
    settings: DistillSettings, round_index: int, schedule: LogLinearSchedule, length: int, num_blocks: int
) -> Costs:
    """A trunk that learns predicts by itself too; one that does not has no gradient. The head's layers not counted."""
    masked = masked_share(settings.min_time, schedule)
    return Costs([(0.0, 3 * masked)] if settings.own.train_trunk else [(-2.0, -2 * masked), (0.0, masked)])


def joint_objective(
    *, schedule: LogLinearSchedule, min_time: float, mask_token_id: int, train_trunk: bool, order: TrainingOrder
) -> Objective:
    """Cross-entropy of the masked tokens in nats per token, each given what is visible and the tokens before it.

    Of a head in the sampler's order the masked positions are ordered at random, so that those before a position are
    any set: whichever a sampler chooses, it was met. A head that goes from left to right meets random sets of random
    sizes. A trunk that is trained too learns its own cross-entropy beside it, with the same weight.
    """

    def draw(shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
        t, u_mask = mask_noise(shape, min_time, generator)
        return t, u_mask, uniforms(shape, generator), uniforms(shape[:1], generator)

    def loss(
        model: nn.Module, x0: Tensor, t: Tensor, u_mask: Tensor, u_order: Tensor, share: Tensor
    ) -> tuple[Tensor, int]:
        assert isinstance(model, JointModel)
        xt = mask_tokens_at(x0, schedule.alpha(t), mask_token_id, u_mask)
        is_masked = xt == mask_token_id
        chosen = is_masked
        if order == "left_to_right":
            chosen = is_masked & (u_order < share[:, None])
        hidden = model.hidden_at(xt, is_masked, t=t)
        arrangement = model.arrange(chosen, _priority(u_order) if order == "both" else u_order)
        tokens = x0.gather(1, arrangement.columns)
        conditional = model.conditional(hidden[chosen[is_masked]], tokens, arrangement)
        targets = tokens[arrangement.is_in]
        weight, bias = model.projection()
        bias = exclude_mask(bias, mask_token_id)
        total = projected_loss(conditional[arrangement.is_in], weight, bias, _terms(model, targets, x0.device))
        if train_trunk:
            total = total + projected_loss(hidden, weight, bias, _terms(model, x0[is_masked], x0.device))
        return total, len(targets)

    return Objective(draw, {PRODUCT: loss})


def _priority(u_order: Tensor) -> Tensor:
    """In every other sequence from left to right, float64 [batch, length]."""
    is_by_place = torch.arange(len(u_order), device=u_order.device) % 2 == 1
    return torch.where(is_by_place[:, None], -torch.arange(u_order.shape[1], device=u_order.device), u_order)


def _terms(model: nn.Module, targets: Tensor, device: torch.device) -> Terms:
    def term(rows: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return rows, lambda logits: F.nll_loss(log_softmax(logits), targets[rows], reduction="sum")

    return map(term, row_chunks(model, len(targets), device))
