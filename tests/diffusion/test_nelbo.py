import itertools
import math

import numpy as np
import pytest
import torch

from halfstep.diffusion.nelbo import nelbo_per_token, nelbo_weight
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.diffusion.subs import masked_log_probs

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


@pytest.mark.parametrize("num_rows", [1, 3])
def test_one_prediction_per_masked_position_is_required(num_rows: int) -> None:
    with pytest.raises(ValueError, match=f"{num_rows} rows for 2 masked"):
        nelbo_per_token(
            torch.zeros(num_rows, 4),
            torch.zeros(1, 2, dtype=torch.int64),
            torch.ones(1, 2, dtype=torch.bool),
            torch.ones(1),
            SCHEDULE,
        )


LENGTH, VOCAB, MASK = 3, 3, 2


@pytest.fixture
def table(generator: torch.Generator) -> dict[tuple[int, ...], torch.Tensor]:
    """log p(x0 | xt) of a denoiser with arbitrary predictions for every partly masked sequence of two tokens."""
    logits = {
        xt: 1.5 * torch.randn(LENGTH, VOCAB, dtype=torch.float64, generator=generator)
        for xt in itertools.product(range(VOCAB), repeat=LENGTH)
    }
    return {xt: masked_log_probs(rows, MASK) for xt, rows in logits.items()}


def _exact_nelbo(table, x0: tuple[int, ...], schedule: LogLinearSchedule) -> float:
    """The integral over t of the expected loss: a polynomial in t, so Gauss-Legendre quadrature is exact."""
    nodes, weights = np.polynomial.legendre.leggauss(4)
    total = 0.0
    for node, weight in zip(nodes, weights, strict=True):
        t = torch.tensor([(node + 1) / 2], dtype=torch.float64)
        p_mask = 1 - float(schedule.alpha(t))
        for mask in itertools.product([False, True], repeat=LENGTH):
            is_masked = torch.tensor([mask])
            xt = tuple(MASK if hide else token for token, hide in zip(x0, mask, strict=True))
            losses = nelbo_per_token(table[xt][is_masked[0]], torch.tensor([x0]), is_masked, t, schedule)
            probability = p_mask ** sum(mask) * (1 - p_mask) ** (LENGTH - sum(mask))
            total += float(weight) / 2 * probability * float(losses.sum())
    return total


def _log_p_in_order(table, x0: tuple[int, ...], order: tuple[int, ...]) -> float:
    """Log-probability of writing x0 one token at a time in the given order."""
    xt, total = [MASK] * LENGTH, 0.0
    for position in order:
        total += float(table[tuple(xt)][position, x0[position]])
        xt[position] = x0[position]
    return total


@pytest.mark.parametrize("x0", list(itertools.product(range(MASK), repeat=LENGTH)))
def test_the_nelbo_is_the_nll_averaged_over_orders_and_bounds_the_exact_nll(table, x0: tuple[int, ...]) -> None:
    """With epsilon going to 0; the exact likelihood, in infinitely many steps, is the mean over orders."""
    nelbo = _exact_nelbo(table, x0, LogLinearSchedule(1e-12))
    log_ps = [_log_p_in_order(table, x0, order) for order in itertools.permutations(range(LENGTH))]
    assert nelbo == pytest.approx(-np.mean(log_ps), rel=1e-10)
    exact_nll = -np.log(np.mean(np.exp(log_ps)))
    assert nelbo > exact_nll + 1e-6


def test_a_denoiser_that_ignores_context_has_its_exact_nll_as_nelbo() -> None:
    """The bound is tight where the order does not matter; epsilon takes off what it leaves visible at time 1."""
    rows = torch.tensor([[0.2, 0.8, 0], [0.5, 0.5, 0], [0.9, 0.1, 0]], dtype=torch.float64).log()
    table = dict.fromkeys(itertools.product(range(VOCAB), repeat=LENGTH), rows)
    nll = -float(rows[0, 1] + rows[1, 0] + rows[2, 1])
    assert _exact_nelbo(table, (1, 0, 1), LogLinearSchedule(1e-12)) == pytest.approx(nll, rel=1e-10)
    assert _exact_nelbo(table, (1, 0, 1), LogLinearSchedule(0.1)) == pytest.approx(0.9 * nll, rel=1e-10)


def test_a_uniform_denoiser_costs_log_v_per_token() -> None:
    rows = masked_log_probs(torch.zeros(LENGTH, VOCAB, dtype=torch.float64), MASK)
    table = dict.fromkeys(itertools.product(range(VOCAB), repeat=LENGTH), rows)
    nelbo = _exact_nelbo(table, (0, 1, 0), LogLinearSchedule(1e-12))
    assert nelbo == pytest.approx(LENGTH * math.log(VOCAB - 1), rel=1e-10)
