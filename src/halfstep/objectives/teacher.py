"""The steps that a teacher takes where its student takes one."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.model.base import MaskedModel
from halfstep.objectives.distillation import Costs, Distillation
from halfstep.samplers.base import Asked, LogitsAt, ask
from halfstep.samplers.choices import ranks, spread, sureness
from halfstep.settings import base
from halfstep.settings.training import DistillSettings

Clock = Literal["even", "cosine"]
"""Which share of the positions a denoising step leaves masked: one that falls evenly, or as a cosine."""
Positions = Literal["random", "surest"]
"""Which positions a teacher's step writes: any, as ancestral sampling does, or as many, but those of least entropy."""


class TeacherSettings(base.Settings):
    """`clock` and `positions`: of the teacher's steps, which should be those of the sampler that the student is for."""

    clock: Clock
    positions: Positions


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


def later(t: Tensor, duration: float | Tensor, clock: Clock) -> Tensor:
    """The diffusion time to which steps that cover a duration lead from t, float [batch]; 0 or less is the end.

    A whole trajectory, from time 1, lasts 1. Steps of equal duration are equal steps in time under the even clock;
    under the cosine clock, of cos(pi s / 2) at s in [0, 1], they are those of samplers with cosine counts.
    """
    if clock == "even":
        return t - duration
    angle = t.clamp(max=1).acos() + math.pi / 2 * duration
    return torch.where(angle < math.pi / 2, angle.cos(), 0.0)


@torch.no_grad()
def own_states(
    student: MaskedModel,
    x0: Tensor,
    t: Tensor,
    u_mask: Tensor,
    u_token: Tensor,
    *,
    num_steps: int,
    clock: Clock,
    schedule: LogLinearSchedule,
    mask_token_id: int,
) -> Tensor:
    """What a student has written by itself at time t, from nothing but masks, in ancestral steps of equal duration.

    A position is masked where it would be if it were data: see `mask_tokens_at`. What begins and ends a row, the same
    in every text, is given, unless a prompt is.

    Args:
        student: asked `num_steps` times, whatever there is to write.
        x0: data, for its ends, int64 [batch, length].
        t: times in (0, 1], float64 [batch].
        u_mask: decides when a position is written, uniform in [0, 1), float64 [batch, length]; below 0 it is given.
        u_token: decides which token it becomes, uniform in [0, 1), float64 [batch, length].
        num_steps: 1 or more.
        clock: of the steps.
        schedule: of the noise.
        mask_token_id: id of the absorbing state.
    Returns:
        xt, int64 [batch, length].
    """
    start = torch.ones_like(t)
    duration = start - t if clock == "even" else t.clamp(max=1).acos() * 2 / math.pi
    xs = torch.where(u_mask < 0, x0, mask_token_id)
    ends = [0, x0.shape[1] - 1]
    is_known = (u_mask[:, ends] < schedule.alpha(t)[:, None]) & (u_mask[:, :1] >= 0)
    xs[:, ends] = torch.where(is_known, x0[:, ends], xs[:, ends])
    at_time = start
    for i in range(1, num_steps + 1):
        until = t if i == num_steps else later(start, duration * i / num_steps, clock)
        writes = (xs == mask_token_id) & (u_mask < schedule.alpha(until)[:, None])
        asked = ask(student, xs, writes, mask_token_id, t=at_time)
        xs[writes] = asked.draws(u_token[writes])
        at_time = until
    return xs


@dataclass(frozen=True)
class Taken:
    """One step of a teacher.

    Attributes:
        writes: positions, bool [batch, length].
        rows: the sequences that were evaluated, int64 [n].
        asked: the evaluation, at the positions written.
        priority: in which order they would be written one by one, the highest first, float64 [batch, length].
        is_last: no step comes after it.
    """

    writes: Tensor
    rows: Tensor
    asked: Asked
    priority: Tensor
    is_last: bool


@dataclass(frozen=True)
class TeacherSteps:
    """The denoising steps of a teacher that one of its student's replaces.

    Attributes:
        dt: duration of one, of a trajectory that lasts 1.
        number: k.
        schedule: the noise schedule.
        clock, positions: see `Clock`, `Positions`.
        asks_in_every_step: evaluate one sequence in a step that writes nothing, for no position: a teacher whose
            weights are spread over several processes is computed by all of them or by none.
    Source: Deschenaux & Gulcehre 2024, arXiv:2410.21035v2, Algorithm 1.
    """

    dt: float
    number: int
    schedule: LogLinearSchedule
    clock: Clock = "even"
    positions: Positions = "random"
    asks_in_every_step: bool = False

    @classmethod
    def of_round(cls, given: Distillation) -> "TeacherSteps":
        """Those of a round, from its parameters."""
        settings = given.settings
        return cls(
            dt=teacher_step_size(given.round_index, settings.base_num_steps, settings.num_teacher_steps),
            number=settings.num_teacher_steps,
            schedule=given.schedule,
            clock=settings.own.clock,
            positions=settings.own.positions,
            asks_in_every_step=given.is_teacher_sharded,
        )

    def unmask_steps(self, u_time: Tensor, t: Tensor) -> Tensor:
        """The step in which each position masked at time t unmasks, where positions are random.

        Step i goes from t - (i-1) dt to t - i dt, or see `later`; one that would go beyond time 0 unmasks all that is
        left.

        Args:
            u_time: uniform numbers in [0, 1), float64 [batch, length].
            t: times, float64 [batch].
        Returns:
            steps in 1..k, and k + 1 where a position is still masked at t - k dt, int64 [batch, length].
        Departs: the paper stops the clock at 1e-5 and takes the last prediction for what is still masked; here it
            stops at 0, where nothing is masked.
        """
        # Step i starts at t - (i - 1) dt, as Algorithm 1 has it: for two teacher steps at t and t - dt. The code behind
        # the published students starts them elsewhere (jdeschena/sdtt, issue 2, confirmed by its author): it means to
        # interpolate between t and the end e = t - k dt by a t + (1 - a) e, but has (1 - t) in place of (1 - a), which
        # for two steps gives t + (1 - t) e and (1 - t) e. It then unmasks dt / time of the masked tokens, so that in
        # the first half step it commits too few (tests/test_parity.py has its times, docs/method.md the consequence);
        # and where such a time is below dt the mask's probability comes out negative and everything unmasks.
        masked_at_t = 1 - self.schedule.alpha(t)
        step = torch.ones_like(u_time, dtype=torch.int64)
        for i in range(1, self.number + 1):
            still_masked = (1 - self.schedule.alpha(later(t, i * self.dt, self.clock))) / masked_at_t
            step += u_time < still_masked[:, None]
        return step

    def taken(
        self, teacher: LogitsAt | MaskedModel, xs: Tensor, mask_token_id: int, t: Tensor, u_time: Tensor
    ) -> Iterator[Taken]:
        """The steps that write something; what none does is written in the last.

        A step's positions are known when the tokens of the step before lie in xs, where whoever iterates writes them.

        Args:
            teacher: in evaluation mode, see `LogitsAt` and `MaskedModel`.
            xs: tokens at time t, int64 [batch, length].
            mask_token_id: id of the absorbing state.
            t: times in (0, 1], float64 [batch].
            u_time: decides in which step a position is written, or how many are, uniform in [0, 1), float64
                [batch, length].
        """
        is_masked = xs == mask_token_id
        step = torch.where(is_masked, self.unmask_steps(u_time, t).clamp(max=self.number), 0)
        for i in range(1, self.number + 1):
            due, is_last = step == i, i == self.number
            writes = due
            if self.positions == "surest":
                writes = (xs == mask_token_id) & (due.any(dim=1)[:, None] | is_last)
            rows = writes.any(dim=1).nonzero()[:, 0]
            if not rows.numel():
                if not self.asks_in_every_step:
                    continue
                rows = torch.zeros(1, dtype=torch.int64, device=t.device)
            at_time = later(t, (i - 1) * self.dt, self.clock).clamp(min=0)[rows]
            asked, priority = ask(teacher, xs[rows], writes[rows], mask_token_id, t=at_time), u_time
            if self.positions == "surest":
                scores = torch.cat([sureness(logits, "entropy") for logits in asked()])
                priority = spread(scores, writes, -torch.inf)
                chosen = writes if is_last else writes & (ranks(priority) < due.sum(dim=1)[:, None])
                asked, writes = Asked(asked.hidden[chosen[writes]], asked.project), chosen
            yield Taken(writes, rows, asked, priority, is_last)


def costs(
    settings: DistillSettings, round_index: int, schedule: LogLinearSchedule, length: int, num_blocks: int
) -> Costs:
    """The teacher's steps, on average over the noise.

    Each evaluates the sequences in which anything unmasks, and projects the positions that unmask in it, or that it
    chooses from.
    """
    own, k = settings.own, settings.num_teacher_steps
    dt = teacher_step_size(round_index, settings.base_num_steps, k)
    t = settings.min_time + (1 - settings.min_time) * (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    masked = [1 - schedule.alpha(later(t, i * dt, own.clock).clamp(min=0)) for i in range(k)]
    # The last step unmasks all that is left.
    unmasking = [before - after for before, after in zip(masked, [*masked[1:], torch.zeros(1)], strict=True)]
    evaluated = [(1 - (1 - share) ** length).mean().item() for share in unmasking]
    projected = masked if own.positions == "surest" else unmasking
    return Costs([(share, wanted.mean().item()) for share, wanted in zip(evaluated, projected, strict=True)])
