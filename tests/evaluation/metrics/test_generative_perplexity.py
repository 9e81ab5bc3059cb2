import math

import pytest

from halfstep.evaluation.metrics.generative_perplexity import unigram_entropy


def test_one_token_repeated_has_no_entropy():
    assert unigram_entropy([7] * 20) == 0


@pytest.mark.parametrize("n", [1, 2, 9])
def test_n_distinct_tokens_have_log_n(n):
    assert unigram_entropy(list(range(n))) == pytest.approx(math.log(n))


def test_uneven_frequencies():
    assert unigram_entropy([1, 1, 1, 2]) == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))


def test_an_empty_sample_is_refused():
    with pytest.raises(ValueError, match="empty sample"):
        unigram_entropy([])
