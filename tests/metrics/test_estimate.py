import math

import numpy as np
import pytest

from halfstep.metrics.estimate import (
    Estimate,
    mean_estimate,
    perplexity_estimate,
    perplexity_of,
    share_estimate,
    with_interval,
)


def test_mean_and_its_standard_error():
    estimate = mean_estimate([1.0, 2.0, 3.0, 6.0], "nats")
    assert estimate.as_dict() == {
        "value": 3.0,
        "standard_error": pytest.approx(math.sqrt(14 / 3 / 4)),
        "count": 4,
        "unit": "nats",
    }


def test_one_value_has_no_standard_error():
    assert mean_estimate([2.5], "1") == Estimate(2.5, None, 1, "1")


def test_perplexity_weighs_tokens_not_sequences():
    estimate = perplexity_estimate([1.0, 8.0], [1, 3])
    assert estimate.value == pytest.approx(math.exp(9 / 4))
    assert estimate.count == 2


def test_perplexity_of_equal_lengths_has_the_error_of_a_mean():
    nlls = np.array([3.0, 5.0, 4.5, 4.0])
    mean = mean_estimate(nlls / 5, "nats")
    estimate = perplexity_estimate(nlls, [5] * 4)
    assert estimate.value == pytest.approx(math.exp(mean.value))
    assert estimate.standard_error == pytest.approx(math.exp(mean.value) * mean.standard_error)


def test_perplexity_error_is_that_seen_over_many_repetitions():
    rng = np.random.default_rng(0)
    num_sequences, num_repetitions = 400, 400
    tokens = rng.integers(2, 30, size=(num_repetitions, num_sequences))
    nlls = tokens * (1.0 + 0.3 * rng.standard_normal(tokens.shape))
    estimates = [perplexity_estimate(*pair) for pair in zip(nlls, tokens, strict=True)]
    seen = np.std([e.value for e in estimates], ddof=1)
    claimed = np.mean([e.standard_error for e in estimates])
    # The spread of 400 values is known to 1 / sqrt(800) = 3.5%; five of these is a false alarm of 1e-6.
    assert claimed == pytest.approx(seen, rel=0.18)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named(bad):
    with pytest.raises(ValueError, match=r"entropy: 1 of 3 are not finite, the first at index 1"):
        mean_estimate([0.0, bad, 1.0], "nats", name="entropy")
    with pytest.raises(ValueError, match="gen ppl: negative log-likelihoods"):
        perplexity_estimate([1.0, bad], [1, 1], name="gen ppl")
    with pytest.raises(ValueError, match="the standard_error of an estimate"):
        Estimate(1.0, bad, 3, "1")


def test_nothing_to_estimate_from():
    with pytest.raises(ValueError, match="one number per sequence"):
        mean_estimate([], "1")
    with pytest.raises(ValueError, match="0 tokens in all"):
        perplexity_estimate([0.0], [0])
    with pytest.raises(ValueError, match="overflows"):
        perplexity_estimate([1e6], [1])


def test_bootstrap_intervals_hold_the_truth_at_their_rate():
    """A ratio of sums whose true perplexity is e, in 300 experiments of 60 sequences of uneven lengths.

    95 % are due; the standard deviation of the share is 1.3 %. Five of them are a false alarm of 6e-7, plus 2 % for
    what the method itself misses at 60 units.
    """
    rng = np.random.default_rng(0)
    hits = 0
    for experiment in range(300):
        tokens = rng.integers(2, 30, size=60)
        nlls = tokens * (1.0 + 0.5 * rng.standard_gamma(2.0, size=60) - 1.0)
        estimate = with_interval(
            perplexity_estimate(nlls, tokens), perplexity_of, [nlls, tokens], num_resamples=400, seed=experiment
        )
        low, high = estimate.interval
        assert low < estimate.value < high
        hits += low <= math.e <= high
    assert hits / 300 == pytest.approx(0.95, abs=0.083)


def test_interval_of_a_mean_is_about_two_standard_errors_to_both_sides():
    values = np.random.default_rng(1).standard_normal(400)
    estimate = with_interval(mean_estimate(values, "1"), np.mean, [values], num_resamples=4000, seed=0)
    low, high = estimate.interval
    # 4000 resamples know the ends of the interval to about 3 % of its width.
    assert low == pytest.approx(estimate.value - 1.96 * estimate.standard_error, abs=0.3 * estimate.standard_error)
    assert high == pytest.approx(estimate.value + 1.96 * estimate.standard_error, abs=0.3 * estimate.standard_error)
    again = with_interval(mean_estimate(values, "1"), np.mean, [values], num_resamples=4000, seed=0)
    assert again == estimate


def test_units_that_are_all_the_same_have_a_point_and_one_unit_has_no_interval():
    same = [2.0, 2.0, 2.0]
    assert with_interval(mean_estimate(same, "1"), np.mean, [same], num_resamples=50, seed=0).interval == (2.0, 2.0)
    one = mean_estimate([2.0], "1")
    assert with_interval(one, np.mean, [[2.0]], num_resamples=50, seed=0) == one
    two = mean_estimate([1.0, 2.0], "1")
    assert with_interval(two, np.mean, [[1.0, 2.0]], num_resamples=0, seed=0) == two


def test_a_share_has_wilsons_interval() -> None:
    """Its ends are where the share lies z standard errors of that end away."""
    z = 1.959963984540054
    for num_true, count in ((0, 20), (7, 20), (20, 20), (398, 400)):
        share = share_estimate(num_true, count)
        assert share.value == num_true / count
        assert share.interval is not None
        for end in share.interval:
            assert abs(share.value - end) == pytest.approx(z * math.sqrt(end * (1 - end) / count), abs=1e-9)
    assert share_estimate(7, 20).standard_error == pytest.approx(math.sqrt(0.35 * 0.65 / 20))
