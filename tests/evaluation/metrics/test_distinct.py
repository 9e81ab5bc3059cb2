from halfstep.evaluation.metrics.distinct import distinct_ngrams


def test_distinct_ngrams_of_known_samples():
    samples = [[1, 2, 1, 2], [1, 2]]
    assert distinct_ngrams(samples, 1) == 2 / 6
    assert distinct_ngrams(samples, 2) == 2 / 4
    assert distinct_ngrams(samples, 4) == 1
    assert distinct_ngrams(samples, 5) is None
    assert distinct_ngrams([], 1) is None
