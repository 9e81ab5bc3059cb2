"""Joint SDTT: what the teacher says in several steps, a student with a joint head learns to say in one, together."""

from collections.abc import Callable, Sequence

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from halfstep.diffusion.categorical import draw_categorical
from halfstep.diffusion.divergences import Divergence
from halfstep.diffusion.noise import mask_tokens_at
from halfstep.diffusion.projection import projected_loss
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.diffusion.subs import exclude_mask
from halfstep.model.base import MaskedModel
from halfstep.model.joint import JointModel
from halfstep.objectives.base import PRODUCT, Objective
from halfstep.objectives.distillation import Distillation
from halfstep.objectives.heads import HeadSettings, with_head
from halfstep.objectives.masked import log_softmax, mask_noise, row_chunks, uniforms
from halfstep.objectives.sdtt import (
    Clock,
    DivergenceName,
    of_round,
    teacher_passes,
    teacher_steps,
)
from halfstep.samplers.base import Policy, ask
from halfstep.samplers.joint import DrawTogether

__all__ = ["Settings", "build", "student", "teacher_passes"]


class Settings(HeadSettings):
    """`divergence` and `clock`: as of `sdtt`."""

    divergence: DivergenceName
    clock: Clock

    @model_validator(mode="after")
    def _order_is_that_of_the_trajectory(self) -> "Settings":
        if self.order != "random":
            raise ValueError(f"order is {self.order}, but the teacher's tokens come in a random one: order=random")
        return self


student = with_head


def build(given: Distillation) -> Objective:
    """The objective of a round, from its parameters."""
    return joint_sdtt_objective(given.teacher, train_trunk=given.settings.own.train_trunk, **of_round(given))


@torch.no_grad()
def teacher_trajectory(
    teacher: MaskedModel,
    xt: Tensor,
    t: Tensor,
    *,
    dt: float,
    num_teacher_steps: int,
    mask_token_id: int,
    schedule: LogLinearSchedule,
    u_time: Tensor,
    u_token: Tensor,
    clock: Clock,
    asks_in_every_step: bool = False,
) -> tuple[Tensor, Tensor]:
    """The teacher's steps from xt: what it writes, and what its distributions were when it did.

    All masked positions are written: those that are still masked after the last step are drawn in it too. A teacher
    with a joint head draws each step's together, in the order of `u_time`, the largest first.

    Args:
        see `sdtt_target_chunks`.
    Returns:
        (tokens int64 [batch, length]; of each masked position, row-major, the hidden state from which the projection
        makes the distribution that its token was drawn from, float [num_masked, hidden_size]).
    """
    is_masked = xt == mask_token_id
    rank = is_masked.flatten().cumsum(0).view(is_masked.shape) - 1
    xs, found = xt.clone(), None
    steps = teacher_steps(
        is_masked, t, u_time, asks_in_every_step, dt=dt, num_teacher_steps=num_teacher_steps, schedule=schedule,
        clock=clock,
    )  # fmt: skip
    for unmasks, rows, at_time, _ in steps:
        at, u = unmasks[rows], u_token[rows]
        asked = ask(teacher, xs[rows], at, mask_token_id, t=at_time)
        hidden = asked.hidden
        if isinstance(teacher, JointModel):
            policy = Policy(mask_token_id)
            policy.priority = u_time[rows]
            _, tokens, _ = DrawTogether(teacher, "speculative", None)(asked, None, at, policy, u, False)
            arrangement = teacher.arrange(at, u_time[rows])
            hidden = arrangement.row_major(teacher.conditional(hidden, tokens[arrangement.rows], arrangement))
        else:
            left, drawn = u[at], []
            for logits in asked():
                drawn.append(draw_categorical(logits, left[: len(logits)]))
                left = left[len(logits) :]
            tokens = torch.cat(drawn)
        found = hidden.new_empty(int(is_masked.sum()), hidden.shape[1]) if found is None else found
        found[rank[unmasks]] = hidden
        xs[unmasks] = tokens
    return xs, teacher.projection()[0].new_empty(0, 1) if found is None else found


def joint_sdtt_objective(
    teacher: MaskedModel,
    *,
    dt: float,
    num_teacher_steps: int,
    divergence: Divergence,
    clock: Clock,
    schedule: LogLinearSchedule,
    min_time: float,
    mask_token_id: int,
    train_trunk: bool,
    asks_in_every_step: bool = False,
) -> Objective:
    """Divergence of the teacher's distribution of each token, when it wrote it, from that of the student's head.

    The student's is given xt and the tokens before it in the order in which the teacher's finer steps would have come:
    step by step, and at random within a step. Its minimum is zero, at which one step of the student has the
    distribution of the teacher's several (docs/method.md has the derivation). In the divergence's unit per masked
    token. A trunk that is trained too learns the same targets by its own prediction, as under `sdtt`, with the same
    weight.

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
        xt = mask_tokens_at(x0, schedule.alpha(t), mask_token_id, u_mask)
        is_masked = xt == mask_token_id
        tokens, of_teacher = teacher_trajectory(
            teacher,
            xt,
            t,
            dt=dt,
            num_teacher_steps=num_teacher_steps,
            mask_token_id=mask_token_id,
            schedule=schedule,
            u_time=u_time,
            u_token=u_token,
            clock=clock,
            asks_in_every_step=asks_in_every_step,
        )
        hidden = model.hidden_at(xt, is_masked, t=t)
        arrangement = model.arrange(is_masked, u_time)
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
