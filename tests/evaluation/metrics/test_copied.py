import numpy as np
import pytest

from halfstep.evaluation.metrics.copied import HASH_BASE, copied_share, window_hashes


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


def test_hashes_from_two_passes_are_those_of_each_window():
    rows = np.random.default_rng(0).integers(0, 2**16, size=(2, 12)).astype(np.uint16)
    for window in (1, 5, 12):
        expected = []
        for row in rows.tolist():
            for i in range(12 - window + 1):
                total = 0
                for token in row[i : i + window]:
                    total = (total * HASH_BASE + token + 1) % 2**64
                expected.append((total ^ total >> 32) * HASH_BASE % 2**64)
        assert window_hashes(rows, window).tolist() == expected
    assert window_hashes(rows, 13).tolist() == []
