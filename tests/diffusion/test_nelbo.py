import math
from pathlib import Path

import numpy as np
import pytest
import torch

from halfstep.diffusion.nelbo import nelbo_per_token, nelbo_weight
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.diffusion.subs import masked_log_probs
from halfstep.model import Denoiser

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


def test_token_losses_are_those_of_the_authors_code(published: Path) -> None:
    arrays = {name: torch.from_numpy(array) for name, array in np.load(published / "io.npz").items()}
    denoiser = Denoiser.from_pretrained(published)
    mask_token_id = denoiser.config.mask_token_id
    is_masked = arrays["elbo_xt"] == mask_token_id
    log_p = masked_log_probs(denoiser(arrays["elbo_xt"], at=is_masked), mask_token_id)
    losses = nelbo_per_token(log_p, arrays["elbo_x0"], is_masked, arrays["elbo_t"], SCHEDULE)
    torch.testing.assert_close(losses, arrays["elbo_token_loss"], rtol=1e-4, atol=1e-4)
    losses.mean().backward()
    gradient = denoiser.output_layer.linear.bias.grad
    assert gradient is not None
    expected = arrays["elbo_grad_output_bias"]
    # The mask's column is zero here and almost zero there.
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_one_prediction_per_masked_position_is_required() -> None:
    with pytest.raises(ValueError, match="3 rows for 2 masked"):
        nelbo_per_token(
            torch.zeros(3, 4),
            torch.zeros(1, 2, dtype=torch.int64),
            torch.ones(1, 2, dtype=torch.bool),
            torch.ones(1),
            SCHEDULE,
        )
