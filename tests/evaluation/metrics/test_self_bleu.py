import pytest

from halfstep.evaluation.metrics.self_bleu import self_bleu


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
