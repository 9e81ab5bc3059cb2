import math

import pytest
import torch

from halfstep.diffusion.nelbo import nelbo_per_token, nelbo_weight
from halfstep.diffusion.schedule import LogLinearSchedule

SCHEDULE = LogLinearSchedule(1e-3)


def test_the_weight_of_the_log_linear_schedule_is_one_over_t() -> None:
    t = torch.linspace(1e-5, 1, 50, dtype=torch.float64)
    torch.testing.assert_close(nelbo_weight(t, SCHEDULE), 1 / t)


def test_a_uniform_prediction_costs_weight_times_log_v_per_masked_token() -> None:
    x0 = torch.tensor([[0, 1, 2, 0]])
    is_masked = torch.tensor([[True, False, True, True]])
    log_p = torch.full((3, 3), -math.log(3), dtype=torch.float64)
    losses = nelbo_per_token(log_p, x0, is_masked, torch.tensor([0.25], dtype=torch.float64), SCHEDULE)
    expected = 4 * math.log(3) * is_masked.double()
    torch.testing.assert_close(losses, expected)


def test_one_prediction_per_masked_position_is_required() -> None:
    with pytest.raises(ValueError, match="3 rows for 2 masked"):
        nelbo_per_token(
            torch.zeros(3, 4),
            torch.zeros(1, 2, dtype=torch.int64),
            torch.ones(1, 2, dtype=torch.bool),
            torch.ones(1),
            SCHEDULE,
        )
