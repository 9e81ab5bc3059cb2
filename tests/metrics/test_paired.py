import math
from pathlib import Path

import numpy as np
import pytest

from halfstep.metrics.paired import paired_perplexity_ratio, write_samples_table
from halfstep.run.errors import UserError

DRAWN = "ancestral", "num_steps=4"


def write_table(path: Path, nlls: list[float] | np.ndarray) -> Path:
    write_samples_table(path, [(*DRAWN, 1.0, index, nll, 10, 1.0) for index, nll in enumerate(nlls)])
    return path


def test_pairs_of_samples_tell_a_small_difference_that_their_spread_would_hide(tmp_path):
    """Samples differ by far more than the models do, and in the same way for both."""
    nlls = np.random.default_rng(0).normal(30, 5, size=60)
    noise = np.random.default_rng(1).normal(0, 0.1, size=60)
    ours = write_table(tmp_path / "ours.csv", nlls - 0.5 + noise)
    theirs = write_table(tmp_path / "theirs.csv", nlls)
    ratio = paired_perplexity_ratio(ours, theirs, *DRAWN, num_resamples=500, seed=0)
    assert ratio.value == pytest.approx(math.exp((-0.5 + noise.mean()) / 10))
    low, high = ratio.interval
    assert low < ratio.value < high < 1
    assert ratio.count == 60
    # Against other samples of the same model the same difference is not to be told.
    others = write_table(tmp_path / "others.csv", np.random.default_rng(2).permutation(nlls))
    low, high = paired_perplexity_ratio(ours, others, *DRAWN, num_resamples=500, seed=0).interval
    assert low < 1 < high


def test_samples_that_do_not_belong_together_have_no_ratio(tmp_path):
    ours, theirs = write_table(tmp_path / "ours.csv", [1.0, 2.0]), write_table(tmp_path / "theirs.csv", [1.0])
    assert paired_perplexity_ratio(ours, theirs, *DRAWN, num_resamples=10, seed=0) is None
    assert paired_perplexity_ratio(ours, ours, "ancestral", "num_steps=8", num_resamples=10, seed=0) is None
    (tmp_path / "broken.csv").write_text("sampler,setting\nancestral,num_steps=4\n")
    for path in (tmp_path / "missing.csv", tmp_path / "broken.csv"):
        with pytest.raises(UserError, match="cannot be read"):
            paired_perplexity_ratio(ours, path, *DRAWN, num_resamples=10, seed=0)
