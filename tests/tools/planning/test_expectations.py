"""Averages over the noise: closed forms against sums over what can happen."""

import itertools

import pytest
import torch

from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.objectives.sdtt import teacher_unmask_steps
from halfstep.tools.planning.expectations import expected_evaluations, masked_share, teacher_shares

EPSILON = 0.1


@pytest.mark.parametrize("num_teacher_steps", [2, 3])
@pytest.mark.parametrize("min_time", [1e-5, 0.3])
def test_what_a_teacher_evaluates_is_the_mean_over_times_and_numbers(num_teacher_steps: int, min_time: float) -> None:
    """`teacher_unmask_steps` on a fine grid of times and of uniform numbers, where nothing is left to chance.

    A step unmasks nothing of a sequence of n tokens with the nth power of the chance that it leaves one alone. The
    grids leave errors below 1e-3.
    """
    length, dt = 5, 0.2
    schedule = LogLinearSchedule(EPSILON)
    t = min_time + (1 - min_time) * (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    u = ((torch.arange(2000, dtype=torch.float64) + 0.5) / 2000).expand(len(t), -1)
    step = teacher_unmask_steps(u, t, dt=dt, num_teacher_steps=num_teacher_steps, schedule=schedule)
    masked = 1 - schedule.alpha(t)
    shares = teacher_shares(
        dt=dt, num_teacher_steps=num_teacher_steps, length=length, epsilon=EPSILON, min_time=min_time
    )
    for i, (evaluated, unmasking) in enumerate(shares, start=1):
        chance = masked * (step.clamp(max=num_teacher_steps) == i).double().mean(dim=1)
        assert unmasking == pytest.approx(chance.mean().item(), abs=1e-3)
        assert evaluated == pytest.approx((1 - (1 - chance) ** length).mean().item(), abs=1e-3)
    assert sum(unmasking for _, unmasking in shares) == pytest.approx(masked_share(EPSILON, min_time))


def test_a_teacher_step_that_would_begin_before_time_zero_computes_nothing() -> None:
    shares = teacher_shares(dt=0.5, num_teacher_steps=4, length=5, epsilon=EPSILON, min_time=1e-5)
    assert shares[2:] == [(0.0, 0.0), (0.0, 0.0)] or max(shares[2] + shares[3]) < 1e-9


@pytest.mark.parametrize(("num_steps", "num_masked"), [(3, 4), (5, 2), (1, 3)])
def test_evaluations_are_the_mean_number_of_steps_in_which_anything_unmasks(num_steps: int, num_masked: int) -> None:
    outcomes = list(itertools.product(range(num_steps), repeat=num_masked))
    mean = sum(len(set(outcome)) for outcome in outcomes) / len(outcomes)
    assert expected_evaluations(num_steps, num_masked) == pytest.approx(mean)
