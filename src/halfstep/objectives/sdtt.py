"""Self-Distillation Through Time: what the teacher says in several steps, the student learns to say in one."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from halfstep.diffusion.categorical import draw_categorical
from halfstep.diffusion.divergences import DIVERGENCES, Divergence, DivergenceName
from halfstep.diffusion.noise import mask_tokens_at
from halfstep.model.base import MaskedModel
from halfstep.objectives.base import PRODUCT, Objective
from halfstep.objectives.distillation import Distillation
from halfstep.objectives.masked import log_softmax, mask_noise, masked_loss, uniforms
from halfstep.objectives.teacher import TeacherSettings, TeacherSteps, costs, own_states
from halfstep.samplers.base import LogitsAt
from halfstep.settings.base import NonNegativeInt

__all__ = ["Settings", "build", "costs"]


class Settings(TeacherSettings):
    """`divergence`: how far a student's prediction is from its teacher's; `num_own_steps`: of the student, from masks,
    to the states that it is taught at; 0 takes masked data (paper)."""

    divergence: DivergenceName
    num_own_steps: NonNegativeInt


def build(given: Distillation) -> Objective:
    """The objective of a round, from its parameters."""
    settings = given.settings
    return sdtt_objective(
        given.teacher,
        TeacherSteps.of_round(given),
        divergence=DIVERGENCES[settings.own.divergence],
        min_time=settings.min_time,
        mask_token_id=given.student.config.mask_token_id,
        num_own_steps=settings.own.num_own_steps,
    )


@torch.no_grad()
def sdtt_target_chunks(
    teacher: LogitsAt | MaskedModel,
    steps: TeacherSteps,
    xt: Tensor,
    t: Tensor,
    *,
    mask_token_id: int,
    u_time: Tensor,
    u_token: Tensor,
) -> Iterator[tuple[Tensor, Tensor]]:
    """What the teacher predicts at each masked position in the step in which it unmasks that position.

    The teacher takes its steps from xt. A position's target is its prediction from the step that unmasks it; positions
    still masked at the end take the last step's prediction. The teacher is asked only where a target or a draw is
    needed: with random positions each masked one is projected once, and a sequence in which a step unmasks nothing is
    not evaluated for it. A step is taken when the chunks before it are consumed, so that only one is in memory at a
    time.

    Args:
        teacher: in evaluation mode, see `LogitsAt` and `MaskedModel`.
        steps: the teacher's.
        xt: tokens at time t, int64 [batch, length]. Not modified.
        t: times in (0, 1], float64 [batch].
        mask_token_id: id of the absorbing state.
        u_time: see `TeacherSteps.taken`.
        u_token: decides which token a position becomes, uniform in [0, 1), float64 [batch, length].
    Yields:
        (which of the masked positions, counted row-major, int64 [n]; target log-probabilities float [n, vocab]).
    Source: Deschenaux & Gulcehre 2024, arXiv:2410.21035v2, Algorithm 1.
    """
    is_masked = xt == mask_token_id
    rank = is_masked.flatten().cumsum(0).view(is_masked.shape) - 1
    xs = xt.clone()
    for taken in steps.taken(teacher, xs, mask_token_id, t, u_time):
        rows, u = rank[taken.writes], u_token[taken.writes]
        drawn = []
        for logits in taken.asked():
            size = len(logits)
            if not taken.is_last:
                drawn.append(draw_categorical(logits, u[:size]))
            log_p = logits.log_softmax(dim=-1)
            del logits
            yield rows[:size], log_p
            rows, u = rows[size:], u[size:]
        if drawn:
            xs[taken.writes] = torch.cat(drawn)


def sdtt_loss(student_log_p: Tensor, target_log_p: Tensor, divergence: Divergence) -> tuple[Tensor, int]:
    """The distillation loss: the divergence summed over the masked positions, and how many there are.

    Args:
        student_log_p: the student's log-probabilities at the masked positions of xt, float [num_masked, vocab].
        target_log_p: targets of `sdtt_targets`, float [num_masked, vocab].
        divergence: of `halfstep.diffusion.divergences`.
    Returns:
        (sum over positions, num_masked); the loss is their quotient, and 0 where nothing is masked.
    Source: Deschenaux & Gulcehre 2024, arXiv:2410.21035v2, Eq. 6 and Algorithm 2; mean over the masked tokens
        of the batch, without the weight 1 / t, as in the authors' code.
    """
    return divergence(student_log_p, target_log_p).sum(), student_log_p.shape[0]


def sdtt_objective(
    teacher: LogitsAt | MaskedModel,
    steps: TeacherSteps,
    *,
    divergence: Divergence,
    min_time: float,
    mask_token_id: int,
    num_own_steps: int = 0,
) -> Objective:
    """The SDTT loss of a student against its teacher's steps, in the divergence's unit per masked token.

    Args:
        teacher, steps: see `sdtt_target_chunks`.
        divergence: of `halfstep.diffusion.divergences`.
        min_time: of the times.
        mask_token_id: id of the absorbing state.
        num_own_steps: where 1 or more, the states are those of `own_states`, not masked data.
    Source: Deschenaux & Gulcehre 2024, arXiv:2410.21035v2, Algorithm 2.
    """

    def draw(shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
        t, u_mask = mask_noise(shape, min_time, generator)
        return t, u_mask, *uniforms((2 + bool(num_own_steps), *shape), generator)

    def loss(
        student: nn.Module, x0: Tensor, t: Tensor, u_mask: Tensor, u_time: Tensor, u_token: Tensor, *u_own: Tensor
    ) -> tuple[Tensor, int]:
        if num_own_steps:
            assert isinstance(student, MaskedModel)
            xt = own_states(
                student, x0, t, u_mask, *u_own, num_steps=num_own_steps, clock=steps.clock, schedule=steps.schedule,
                mask_token_id=mask_token_id,
            )  # fmt: skip
        else:
            xt = mask_tokens_at(x0, steps.schedule.alpha(t), mask_token_id, u_mask)
        is_masked = xt == mask_token_id
        targets = sdtt_target_chunks(teacher, steps, xt, t, mask_token_id=mask_token_id, u_time=u_time, u_token=u_token)

        def term(rows: Tensor, target_log_p: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            return rows, lambda logits: sdtt_loss(log_softmax(logits), target_log_p, divergence)[0]

        terms = (term(rows, target_log_p) for rows, target_log_p in targets)
        return masked_loss(student, xt, is_masked, mask_token_id, terms, t=t), int(is_masked.sum())

    return Objective(draw, {PRODUCT: loss})
