import math
from itertools import combinations, permutations, product

import pytest
import torch

from halfstep.evaluation.lm_eval.order_agnostic import Maskings, draw_maskings, log_likelihood


def model_of(num_tokens, seed=3):
    """(position, what is visible) -> log-probability, depending on everything visible, so that orders differ."""
    table = -3 * torch.rand(2**num_tokens, num_tokens, generator=torch.Generator().manual_seed(seed)).double()
    return lambda position, visible: table[sum(2**i for i in visible), position].item()


def mean_over_orders(model, num_tokens):
    orders = list(permutations(range(num_tokens)))
    return sum(model(order[i], order[:i]) for order in orders for i in range(num_tokens)) / len(orders)


def answers(model, is_masked):
    """What a network with this model says of each masking; NaN at visible tokens, which must not be looked at."""
    rows = []
    for mask in is_masked.tolist():
        visible = [i for i, hidden in enumerate(mask) if not hidden]
        rows.append([model(i, visible) if hidden else math.nan for i, hidden in enumerate(mask)])
    return torch.tensor(rows, dtype=torch.float64)


def estimate(model, maskings):
    return log_likelihood(maskings, answers(model, maskings.is_masked))


@pytest.mark.parametrize("num_tokens", [1, 2, 3])
def test_all_subsets_give_the_mean_over_all_orders(num_tokens):
    maskings = draw_maskings(num_tokens, 2**num_tokens - 1, torch.Generator())
    assert maskings.draws is None
    assert len(maskings.is_masked) == 2**num_tokens - 1
    assert maskings.is_masked[0].all()
    result = estimate(model_of(num_tokens), maskings)
    assert result.value == pytest.approx(mean_over_orders(model_of(num_tokens), num_tokens), rel=1e-12)
    assert result.standard_error == 0


@pytest.mark.parametrize("num_draws", [1, 2, 3, 4])
def test_the_mean_over_everything_that_can_be_drawn_is_the_mean_over_all_orders(num_draws):
    n = 3
    subsets = [set(chosen) for k in range(1, n + 1) for chosen in combinations(range(n), k)]
    rows = [[True] * n, *([i in subset for i in range(n)] for subset in subsets if len(subset) < n)]
    is_masked = torch.tensor(rows)
    probability = [1 / (n * math.comb(n, sum(row))) for row in rows]
    model, mean, total = model_of(n), 0.0, 0.0
    for draws in product(range(len(rows)), repeat=num_draws):
        weight = math.prod(probability[row] for row in draws)
        mean += weight * estimate(model, Maskings(is_masked, torch.tensor(draws))).value
        total += weight
    assert total == pytest.approx(1, rel=1e-12)
    assert mean == pytest.approx(mean_over_orders(model, n), rel=1e-12)


def test_draws_have_sizes_and_subsets_equally_likely():
    maskings = draw_maskings(10, 1000, torch.Generator().manual_seed(0))
    drawn = maskings.is_masked[maskings.draws]
    assert len(drawn) == 1000
    assert len({tuple(row) for row in maskings.is_masked.tolist()}) == len(maskings.is_masked)
    sizes = torch.bincount(drawn.sum(dim=1), minlength=11)
    assert sizes[0] == 0
    # 10 sizes with 100 draws each: chi-square with 9 degrees of freedom exceeds 39 once in 1e5 seeds.
    assert ((sizes[1:] - 100.0) ** 2 / 100).sum() < 39
    # A token is masked in 5.5 draws of 10, one deviation is 15.7: all within five, 6e-6 of a false alarm.
    assert ((drawn.sum(dim=0) - 550.0).abs() < 80).all()


def test_where_predictions_ignore_what_is_visible_the_estimate_is_exact():
    log_p = -5 * torch.rand(40, generator=torch.Generator().manual_seed(1)).double()
    maskings = draw_maskings(40, 8, torch.Generator().manual_seed(2))
    result = log_likelihood(maskings, log_p.expand(maskings.is_masked.shape))
    assert result.value == pytest.approx(log_p.sum().item(), rel=1e-12)
    assert result.standard_error == pytest.approx(0, abs=1e-12)


def test_the_standard_error_is_the_deviation_between_repetitions():
    n, repetitions = 6, 1500
    model, generator = model_of(n), torch.Generator().manual_seed(0)
    results = [estimate(model, draw_maskings(n, 16, generator)) for _ in range(repetitions)]
    values = torch.tensor([result.value for result in results])
    variances = torch.tensor([result.standard_error**2 for result in results])
    exact = estimate(model, draw_maskings(n, 2**n - 1, torch.Generator())).value
    assert abs(values.mean() - exact) < 5 * values.std() / math.sqrt(repetitions)
    # A variance from 1500 values is known to 4 %; the shared slopes may bias it by a few more.
    assert variances.mean().item() == pytest.approx(values.var().item(), rel=0.2)


def test_one_draw_has_no_standard_error():
    result = estimate(model_of(5), draw_maskings(5, 1, torch.Generator().manual_seed(0)))
    assert math.isfinite(result.value)
    assert result.standard_error is None


def test_one_token_needs_one_look():
    maskings = draw_maskings(1, 32, torch.Generator())
    assert maskings.is_masked.tolist() == [[True]]
    assert log_likelihood(maskings, torch.tensor([[-2.5]])).value == -2.5


def test_no_probability_is_minus_infinity_and_nan_is_refused():
    maskings = draw_maskings(8, 4, torch.Generator().manual_seed(0))
    log_p = torch.full(maskings.is_masked.shape, -1.0)
    log_p[0, 3] = -math.inf
    assert log_likelihood(maskings, log_p).value == -math.inf
    log_p[0, 3] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        log_likelihood(maskings, log_p)
    with pytest.raises(ValueError, match="shape"):
        log_likelihood(maskings, log_p[:, 1:])
