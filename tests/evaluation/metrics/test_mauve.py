import numpy as np
import pytest

from halfstep.evaluation.metrics.mauve import mauve_score
from halfstep.run.errors import UserError

SETTINGS = {"scaling_factor": 5.0, "num_buckets": "auto", "seeds": range(3)}


def gaussian(seed: int, shift: float = 0.0, count: int = 60) -> np.ndarray:
    # Half of the texts on each side of a line; a shift moves them along another one.
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((count, 8)).astype(np.float32)
    points[:, 0] += 5
    points[:, 1] += shift
    return points


def test_equal_features_have_mauve_one():
    mauve = mauve_score(gaussian(0), gaussian(0), **SETTINGS)
    assert (mauve.value, mauve.standard_error, mauve.count) == (1.0, 0.0, 60)


def test_features_of_one_distribution_have_mauve_near_one():
    # Only sampling noise keeps the score from 1. Seeded, so never a false alarm.
    assert 0.8 < mauve_score(gaussian(0, count=120), gaussian(1, count=120), **SETTINGS).value < 1


def test_far_features_have_mauve_near_zero():
    # No cluster holds both: the curve is that of disjoint distributions.
    assert mauve_score(gaussian(0), gaussian(1, shift=100.0), **SETTINGS).value < 0.02


def test_count_is_the_smaller_side_and_the_seeds_decide():
    once = mauve_score(gaussian(0, count=30), gaussian(1, shift=1.0), **SETTINGS)
    assert once.count == 30
    assert 0 < once.value < 1
    assert once == mauve_score(gaussian(0, count=30), gaussian(1, shift=1.0), **SETTINGS)


def test_fewer_than_two_texts_have_no_mauve():
    assert mauve_score(gaussian(0, count=1), gaussian(1), **SETTINGS) is None


def test_two_texts_a_side_and_identical_texts_work():
    assert 0 < mauve_score(gaussian(0, count=2), gaussian(1, count=2), **SETTINGS).value <= 1
    same = np.ones((4, 8), dtype=np.float32)
    assert mauve_score(same, same, **SETTINGS).value == 1


def test_more_buckets_than_texts():
    with pytest.raises(ValueError, match=r"num_buckets is 9, more than the 8 texts"):
        mauve_score(gaussian(0, count=4), gaussian(1, count=4), **{**SETTINGS, "num_buckets": 9})


def test_features_that_are_not_finite():
    bad = gaussian(0)
    bad[3, 3] = np.nan
    with pytest.raises(UserError, match="generated texts that are not finite"):
        mauve_score(gaussian(0), bad, **SETTINGS)
