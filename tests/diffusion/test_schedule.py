from dataclasses import FrozenInstanceError

import pytest
import torch

from halfstep.diffusion.schedule import LogLinearSchedule

T = torch.linspace(0, 1, 101, dtype=torch.float64)


def test_everything_is_visible_at_time_zero_and_epsilon_is_left_at_one() -> None:
    alpha = LogLinearSchedule(1e-3).alpha(T)
    assert alpha[0] == 1
    assert alpha[-1] == pytest.approx(1e-3, rel=1e-12)


def test_dalpha_is_the_derivative_of_alpha() -> None:
    schedule = LogLinearSchedule(1e-3)
    t = T.clone().requires_grad_()
    (derivative,) = torch.autograd.grad(schedule.alpha(t).sum(), t)
    torch.testing.assert_close(schedule.dalpha(T), derivative)


def test_sigma_is_minus_log_alpha() -> None:
    schedule = LogLinearSchedule(1e-3)
    torch.testing.assert_close(schedule.sigma(T), -schedule.alpha(T).log())


def test_a_schedule_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        LogLinearSchedule(1e-3).epsilon = 0.5  # type: ignore[misc]


@pytest.mark.parametrize("epsilon", [0.0, 1.0, -0.1, 1.5])
def test_epsilon_outside_the_open_unit_interval_is_refused(epsilon: float) -> None:
    with pytest.raises(ValueError, match="epsilon"):
        LogLinearSchedule(epsilon)
