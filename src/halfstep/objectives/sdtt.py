"""Self-Distillation Through Time: what the teacher says in several steps, the student learns to say in one."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from halfstep.diffusion.categorical import draw_categorical
from halfstep.diffusion.divergences import DIVERGENCES, Divergence
from halfstep.diffusion.noise import mask_tokens_at
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.model.base import MaskedModel
from halfstep.objectives.base import PRODUCT, Objective
from halfstep.objectives.distillation import Distillation
from halfstep.objectives.masked import log_softmax, mask_noise, masked_loss, uniforms
from halfstep.samplers.base import LogitsAt, ask
from halfstep.settings import base
from halfstep.settings.training import DistillSettings

DivergenceName = Literal["kl_student_teacher", "kl_teacher_student", "mse", "log_l1", "total_variation"]
"""See `halfstep.diffusion.divergences`."""
Clock = Literal["even", "cosine"]
"""Which share of the positions a denoising step leaves masked: one that falls evenly, or as a cosine."""


class Settings(base.Settings):
    """`divergence`: how far a student's prediction is from its teacher's; `clock`: of the steps of both, which should
    be that of the sampler by which the student is used."""

    divergence: DivergenceName
    clock: Clock


def build(given: Distillation) -> Objective:
    """The objective of a round, from its parameters."""
    return sdtt_objective(given.teacher, **of_round(given))


def of_round(given: Distillation) -> dict[str, Any]:
    """What `sdtt_objective` takes from a round's parameters, and joint SDTT likewise."""
    settings = given.settings
    return {
        "dt": teacher_step_size(given.round_index, settings.base_num_steps, settings.num_teacher_steps),
        "num_teacher_steps": settings.num_teacher_steps,
        "divergence": DIVERGENCES[settings.own.divergence],
        "clock": settings.own.clock,
        "schedule": given.schedule,
        "min_time": settings.min_time,
        "mask_token_id": given.student.config.mask_token_id,
        "asks_in_every_step": given.is_teacher_sharded,
    }


def teacher_step_size(round_index: int, base_num_steps: int, num_teacher_steps: int) -> float:
    """The time a teacher's denoising step covers in a round; its student's covers num_teacher_steps times as much.

    Args:
        round_index: round, from 1.
        base_num_steps: denoising steps of the first teacher.
        num_teacher_steps: teacher steps that one student step replaces.
    Returns:
        dt in (0, 1 / num_teacher_steps]: num_teacher_steps^(round_index - 1) / base_num_steps.
    Raises:
        ValueError: the student of this round would take less than one step.
    Source: Deschenaux & Gulcehre 2024, arXiv:2410.21035v2, Section 3.1 (iterated SDTT, Eq. 7) and Algorithm 2.
    """
    if round_index < 1 or num_teacher_steps**round_index > base_num_steps:
        raise ValueError(
            f"round {round_index} with {num_teacher_steps} teacher steps needs base_num_steps of at least"
            f" {num_teacher_steps ** max(round_index, 1)}, not {base_num_steps}"
        )
    return num_teacher_steps ** (round_index - 1) / base_num_steps


def later(t: Tensor, duration: float, clock: Clock) -> Tensor:
    """The diffusion time to which steps that cover a duration lead from t, float [batch]; 0 or less is the end.

    A whole trajectory, from time 1, lasts 1. Steps of equal duration are equal steps in time under the even clock;
    under the cosine clock, of cos(pi s / 2) at s in [0, 1], they are those of samplers with cosine counts.
    """
    if clock == "even":
        return t - duration
    angle = t.clamp(max=1).acos() + math.pi / 2 * duration
    return torch.where(angle < math.pi / 2, angle.cos(), 0.0)


def teacher_unmask_steps(
    u_time: Tensor,
    t: Tensor,
    *,
    dt: float,
    num_teacher_steps: int,
    schedule: LogLinearSchedule,
    clock: Clock = "even",
) -> Tensor:
    """The teacher step in which each position masked at time t unmasks.

    Teacher step i goes from t - (i-1) dt to t - i dt, or see `later`; one that would go beyond time 0 unmasks all that
    is left.

    Args:
        u_time: uniform numbers in [0, 1), float64 [batch, length].
        t: times, float64 [batch].
        dt: time one teacher step covers.
        num_teacher_steps: k.
        schedule: the noise schedule.
        clock: see `later`.
    Returns:
        steps in 1..k, and k + 1 where a position is still masked at t - k dt, int64 [batch, length].
    Source: Deschenaux & Gulcehre 2024, arXiv:2410.21035v2, Algorithm 1.
    Departs: the paper stops the clock at 1e-5 and takes the last prediction for what is still masked; here it stops
        at 0, where nothing is masked.
    """
    # Step i starts at t - (i - 1) dt, as Algorithm 1 has it: for two teacher steps at t and t - dt. The code behind the
    # published students starts them elsewhere (jdeschena/sdtt, issue 2, confirmed by its author): it means to
    # interpolate between t and the end e = t - k dt by a t + (1 - a) e, but has (1 - t) in place of (1 - a), which
    # for two steps gives t + (1 - t) e and (1 - t) e. It then unmasks dt / time of the masked tokens, so that in the
    # first half step it commits too few (tests/test_parity.py has its times, docs/method.md the consequence); and
    # where such a time is below dt the mask's probability comes out negative and everything unmasks.
    masked_at_t = 1 - schedule.alpha(t)
    step = torch.ones_like(u_time, dtype=torch.int64)
    for i in range(1, num_teacher_steps + 1):
        still_masked = (1 - schedule.alpha(later(t, i * dt, clock))) / masked_at_t
        step += u_time < still_masked[:, None]
    return step


def teacher_steps(
    is_masked: Tensor,
    t: Tensor,
    u_time: Tensor,
    asks_in_every_step: bool,
    *,
    dt: float,
    num_teacher_steps: int,
    schedule: LogLinearSchedule,
    clock: Clock,
) -> Iterator[tuple[Tensor, Tensor, Tensor, bool]]:
    """The teacher's steps that unmask something; what none does is unmasked in the last.

    Args:
        is_masked: at time t, bool [batch, length].
        others: see `sdtt_target_chunks`.
    Yields:
        (positions that unmask, bool [batch, length]; sequences in which any does, int64 [n]; times at which the step
        begins there, float64 [n]; whether it is the last of all). With `asks_in_every_step` a step that unmasks nothing
        has one sequence.
    """
    step = teacher_unmask_steps(u_time, t, dt=dt, num_teacher_steps=num_teacher_steps, schedule=schedule, clock=clock)
    step = torch.where(is_masked, step.clamp(max=num_teacher_steps), 0)
    for i in range(1, num_teacher_steps + 1):
        unmasks = step == i
        rows = unmasks.any(dim=1).nonzero()[:, 0]
        if not rows.numel():
            if not asks_in_every_step:
                continue
            rows = torch.zeros(1, dtype=torch.int64, device=t.device)
        yield unmasks, rows, later(t, (i - 1) * dt, clock).clamp(min=0)[rows], i == num_teacher_steps


def teacher_passes(
    settings: DistillSettings, round_index: int, schedule: LogLinearSchedule, length: int
) -> list[tuple[float, float]]:
    """What each of the teacher's steps computes, on average over the noise: `halfstep plan` asks for it.

    Returns:
        for each step (share of the sequences that it evaluates, those in which anything unmasks; share of the
        positions that unmask in it).
    """
    dt = teacher_step_size(round_index, settings.base_num_steps, settings.num_teacher_steps)
    t = settings.min_time + (1 - settings.min_time) * (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    times = [later(t, i * dt, settings.own.clock).clamp(min=0) for i in range(settings.num_teacher_steps)]
    masked = [1 - schedule.alpha(time) for time in times]
    # The last step unmasks all that is left.
    unmasking = [before - after for before, after in zip(masked, [*masked[1:], torch.zeros(1)], strict=True)]
    return [((1 - (1 - share) ** length).mean().item(), share.mean().item()) for share in unmasking]


@torch.no_grad()
def sdtt_target_chunks(
    teacher: LogitsAt | MaskedModel,
    xt: Tensor,
    t: Tensor,
    *,
    dt: float,
    num_teacher_steps: int,
    mask_token_id: int,
    schedule: LogLinearSchedule,
    u_time: Tensor,
    u_token: Tensor,
    clock: Clock = "even",
    asks_in_every_step: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """What the teacher predicts at each masked position in the step in which it unmasks that position.

    The teacher takes num_teacher_steps ancestral steps of size dt from xt. A position's target is its prediction
    from the step that unmasks it; positions still masked at the end take the last step's prediction. The teacher is
    asked only where a target or a draw is needed: each masked position is projected once, and a sequence in which a
    step unmasks nothing is not evaluated for it. A step is taken when the chunks before it are consumed, so that only
    one is in memory at a time.

    Args:
        teacher: in evaluation mode, see `LogitsAt` and `MaskedModel`.
        xt: tokens at time t, int64 [batch, length]. Not modified.
        t: times in (0, 1], float64 [batch].
        dt: time one teacher step covers.
        num_teacher_steps: teacher steps that one student step replaces.
        mask_token_id: id of the absorbing state.
        schedule: the noise schedule.
        u_time: decides in which step a position unmasks, uniform in [0, 1), float64 [batch, length].
        u_token: decides which token it becomes, uniform in [0, 1), float64 [batch, length].
        clock: see `later`.
        asks_in_every_step: evaluate one sequence in a step that unmasks nothing, for no position: a teacher whose
            weights are spread over several processes is computed by all of them or by none.
    Yields:
        (which of the masked positions, counted row-major, int64 [n]; target log-probabilities float [n, vocab]).
    Source: Deschenaux & Gulcehre 2024, arXiv:2410.21035v2, Algorithm 1.
    """
    is_masked = xt == mask_token_id
    rank = is_masked.flatten().cumsum(0).view(is_masked.shape) - 1
    xs = xt.clone()
    steps = teacher_steps(
        is_masked, t, u_time, asks_in_every_step, dt=dt, num_teacher_steps=num_teacher_steps, schedule=schedule,
        clock=clock,
    )  # fmt: skip
    for unmasks, rows, at_time, is_last in steps:
        ranks, u = rank[unmasks], u_token[unmasks]
        drawn = []
        for logits in ask(teacher, xs[rows], unmasks[rows], mask_token_id, t=at_time)():
            size = len(logits)
            if not is_last:
                drawn.append(draw_categorical(logits, u[:size]))
            log_p = logits.log_softmax(dim=-1)
            del logits
            yield ranks[:size], log_p
            ranks, u = ranks[size:], u[size:]
        if drawn:
            xs[unmasks] = torch.cat(drawn)


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
    *,
    dt: float,
    num_teacher_steps: int,
    divergence: Divergence,
    schedule: LogLinearSchedule,
    min_time: float,
    mask_token_id: int,
    clock: Clock = "even",
    asks_in_every_step: bool = False,
) -> Objective:
    """The SDTT loss of a student against its teacher, in the divergence's unit per masked token.

    For `clock` and `asks_in_every_step` see `sdtt_target_chunks`.

    Source: Deschenaux & Gulcehre 2024, arXiv:2410.21035v2, Algorithm 2.
    """

    def draw(shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
        t, u_mask = mask_noise(shape, min_time, generator)
        u_time, u_token = uniforms((2, *shape), generator)
        return t, u_mask, u_time, u_token

    def loss(
        student: nn.Module, x0: Tensor, t: Tensor, u_mask: Tensor, u_time: Tensor, u_token: Tensor
    ) -> tuple[Tensor, int]:
        xt = mask_tokens_at(x0, schedule.alpha(t), mask_token_id, u_mask)
        is_masked = xt == mask_token_id
        targets = sdtt_target_chunks(
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

        def term(rows: Tensor, target_log_p: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            return rows, lambda logits: sdtt_loss(log_softmax(logits), target_log_p, divergence)[0]

        terms = (term(rows, target_log_p) for rows, target_log_p in targets)
        return masked_loss(student, xt, is_masked, mask_token_id, terms, t=t), int(is_masked.sum())

    return Objective(draw, {PRODUCT: loss})
