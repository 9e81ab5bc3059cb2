import math

import numpy as np
import pytest

from halfstep.evaluation.diversity import copied_share, distinct_ngrams, self_bleu, unigram_entropy


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


def test_distinct_ngrams_of_known_samples():
    samples = [[1, 2, 1, 2], [1, 2]]
    assert distinct_ngrams(samples, 1) == 2 / 6
    assert distinct_ngrams(samples, 2) == 2 / 4
    assert distinct_ngrams(samples, 4) == 1
    assert distinct_ngrams(samples, 5) is None
    assert distinct_ngrams([], 1) is None


def test_copies_have_a_self_bleu_of_100_and_texts_without_a_common_word_none():
    text = "the cat saw a red bird in the old house"
    assert self_bleu([[text] * 3]).value == pytest.approx(100)
    assert self_bleu([["one two three four five", "six seven eight nine ten"]]).value == pytest.approx(0, abs=1e-9)


def test_self_bleu_is_over_groups_and_stays_within_them():
    copies, others = ["a b c d e f"] * 2, ["g h i j k l", "m n o p q r"]
    estimate = self_bleu([copies, others, ["alone"], []])
    assert estimate.value == pytest.approx(50)
    assert (estimate.count, estimate.unit) == (2, "1")
    assert self_bleu([["alone"], ["also alone"]]) is None


def test_bleu_of_a_pair_is_the_geometric_mean_of_its_precisions():
    """5 of 6 words, 4 of 5 pairs, 3 of 4 triples and 2 of 3 quadruples agree, in both directions."""
    precision = (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25
    assert self_bleu([["a b c d e f", "a b c d e g"]]).value == pytest.approx(100 * precision)


def brute_force_longest_copy(sample, rows):
    spans = [
        j - i
        for i in range(len(sample))
        for j in range(i + 1, len(sample) + 1)
        for row in rows
        if any(list(row[k : k + j - i]) == sample[i:j] for k in range(len(row)))
    ]
    return max(spans, default=0)


@pytest.mark.parametrize("num_tokens", [0, 1, 2, 3, 5])
def test_copied_share_is_that_of_comparing_all_spans(num_tokens):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 4, size=(3, 9)).astype(np.uint16)
    sets = [rng.integers(0, 4, size=(6, 8)).tolist(), rng.integers(0, 6, size=(9, 7)).tolist()]
    found = copied_share(sets, [rows[:2], rows[2:]], num_tokens)
    for samples, estimate in zip(sets, found, strict=True):
        expected = np.mean([brute_force_longest_copy(sample, rows) > num_tokens for sample in samples])
        assert estimate.value == pytest.approx(expected)
        assert estimate.count == len(samples)
    assert num_tokens > 3 or found[0].value > 0


def test_text_of_the_training_rows_is_copied_and_unseen_tokens_are_not():
    rows = np.arange(40, dtype=np.uint32).reshape(2, 20)
    copies, unseen = rows[:, 3:15].tolist(), [list(range(100, 112))]
    assert [e.value for e in copied_share([copies, unseen], [rows], 10)] == [1, 0]
    # A span that crosses the rows' ends is not one of either, and a sample may be shorter than the span.
    assert copied_share([[list(range(15, 25))]], [rows], 5)[0].value == 0
    assert copied_share([[[1, 2]]], [rows], 5)[0].value == 0
