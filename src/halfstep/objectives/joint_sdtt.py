"""Joint SDTT: what the teacher says in several steps, a student with a joint head learns to say in one, together."""

from collections.abc import Callable, Sequence

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from halfstep.diffusion.divergences import DIVERGENCES, Divergence, DivergenceName
from halfstep.diffusion.noise import mask_tokens_at
from halfstep.diffusion.projection import projected_loss
from halfstep.diffusion.subs import exclude_mask
from halfstep.model.base import MaskedModel
from halfstep.model.joint import JointModel
from halfstep.objectives.base import PRODUCT, Objective
from halfstep.objectives.distillation import Distillation
from halfstep.objectives.heads import HeadSettings, with_head
from halfstep.objectives.masked import log_softmax, mask_noise, row_chunks, uniforms
from halfstep.objectives.teacher import TeacherSettings, TeacherSteps, costs
from halfstep.samplers.base import Policy
from halfstep.samplers.choices import ranks
from halfstep.samplers.joint import DrawTogether

__all__ = ["Settings", "build", "costs", "student"]


class Settings(HeadSettings, TeacherSettings):
    """`divergence`: as of `sdtt`."""

    divergence: DivergenceName

    @model_validator(mode="after")
    def _order_is_that_of_the_trajectory(self) -> "Settings":
        if self.order != "random":
            raise ValueError(f"order is {self.order}, but the head learns the teacher's: order=random")
        return self


student = with_head


def build(given: Distillation) -> Objective:
    """The objective of a round, from its parameters."""
    settings = given.settings
    return joint_sdtt_objective(
        given.teacher,
        TeacherSteps.of_round(given),
        divergence=DIVERGENCES[settings.own.divergence],
        min_time=settings.min_time,
        mask_token_id=given.student.config.mask_token_id,
        train_trunk=settings.own.train_trunk,
    )


@torch.no_grad()
def teacher_trajectory(
    teacher: MaskedModel,
    steps: TeacherSteps,
    xt: Tensor,
    t: Tensor,
    *,
    mask_token_id: int,
    u_time: Tensor,
    u_token: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The teacher's steps from xt: what it writes, in which order, and what its distributions were when it did.

    All masked positions are written: those that are still masked after the last step are drawn in it too. A teacher
    with a joint head draws each step's together.

    Args:
        see `sdtt_target_chunks`.
    Returns:
        (tokens int64 [batch, length]; the order, the highest first: step by step, and by its priority within one,
        float64 [batch, length]; of each masked position, row-major, the hidden state from which the projection makes
        the distribution that its token was drawn from, float [num_masked, hidden_size]).
    """
    is_masked = xt == mask_token_id
    rank = is_masked.flatten().cumsum(0).view(is_masked.shape) - 1
    xs, found, order = xt.clone(), None, torch.zeros_like(u_time)
    num_before = torch.zeros_like(xt[:, 0])
    for taken in steps.taken(teacher, xs, mask_token_id, t, u_time):
        at, u, asked = taken.writes[taken.rows], u_token[taken.rows], taken.asked
        priority, hidden = taken.priority[taken.rows], asked.hidden
        if isinstance(teacher, JointModel):
            policy = Policy(mask_token_id)
            policy.priority = priority
            _, tokens, _ = DrawTogether(teacher, "speculative", None)(asked, None, at, policy, u, False)
            arrangement = teacher.arrange(at, priority)
            hidden = arrangement.row_major(teacher.conditional(hidden, tokens[arrangement.rows], arrangement))
        else:
            tokens = asked.draws(u[at])
        found = hidden.new_empty(int(is_masked.sum()), hidden.shape[1]) if found is None else found
        found[rank[taken.writes]] = hidden
        xs[taken.writes] = tokens
        place = ranks(taken.priority.masked_fill(~taken.writes, -torch.inf)) + num_before[:, None]
        order[taken.writes] = -place[taken.writes].double()
        num_before += taken.writes.sum(dim=1)
    return xs, order, teacher.projection()[0].new_empty(0, 1) if found is None else found


def joint_sdtt_objective(
    teacher: MaskedModel,
    steps: TeacherSteps,
    *,
    divergence: Divergence,
    min_time: float,
    mask_token_id: int,
    train_trunk: bool,
) -> Objective:
    """Divergence of the teacher's distribution of each token, when it wrote it, from that of the student's head.

    The student's is given xt and the tokens before it in the order of `teacher_trajectory`. Its minimum is zero, at
    which one step of the student has the distribution of the teacher's several (docs/method.md has the derivation). In
    the divergence's unit per masked token. A trunk that is trained too learns the same targets by its own prediction,
    as under `sdtt`, with the same weight.

    Args:
        see `sdtt_objective`.
        train_trunk: whether the trunk is trained.
    """

    def draw(shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
        t, u_mask = mask_noise(shape, min_time, generator)
        u_time, u_token = uniforms((2, *shape), generator)
        return t, u_mask, u_time, u_token

    def loss(
        model: nn.Module, x0: Tensor, t: Tensor, u_mask: Tensor, u_time: Tensor, u_token: Tensor
    ) -> tuple[Tensor, int]:
        assert isinstance(model, JointModel)
        xt = mask_tokens_at(x0, steps.schedule.alpha(t), mask_token_id, u_mask)
        is_masked = xt == mask_token_id
        tokens, written, of_teacher = teacher_trajectory(
            teacher, steps, xt, t, mask_token_id=mask_token_id, u_time=u_time, u_token=u_token
        )
        hidden = model.hidden_at(xt, is_masked, t=t)
        arrangement = model.arrange(is_masked, written)
        conditional = model.conditional(hidden, tokens.gather(1, arrangement.columns), arrangement)
        order = arrangement.rows[arrangement.is_in]
        predictions = conditional[arrangement.is_in]
        if train_trunk:
            predictions = torch.cat([predictions, hidden[order]])
        weight, bias = (x.detach() for x in teacher.projection())
        bias = exclude_mask(bias, mask_token_id)
        num_masked = len(order)

        def term(rows: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            target = log_softmax(F.linear(of_teacher[order[rows]], weight, bias))
            if train_trunk:
                rows, target = torch.cat([rows, rows + num_masked]), target.repeat(2, 1)
            return rows, lambda logits: divergence(log_softmax(logits), target).sum()

        own_weight, own_bias = model.projection()
        own_bias = exclude_mask(own_bias, mask_token_id)
        terms = map(term, row_chunks(model, num_masked, x0.device))
        return projected_loss(predictions, own_weight, own_bias, terms), num_masked

    return Objective(draw, {PRODUCT: loss})
