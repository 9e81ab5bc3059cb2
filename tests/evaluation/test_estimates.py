import math

import numpy as np
import pytest

from halfstep.evaluation.estimates import Estimate, mean_estimate, perplexity_estimate


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
