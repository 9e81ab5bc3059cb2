import csv
import math

import numpy as np
import pytest

from halfstep.evaluation.sample_metrics import SampleJudge, paired_perplexity_ratio, write_samples_table
from halfstep.evaluation.scorer import Scorer, text_features, token_nlls
from halfstep.metrics.estimate import Estimate
from halfstep.run.errors import UserError
from halfstep.samples.table import SampleSet

COPIED = Estimate(0.25, None, 4, "1")


@pytest.fixture
def judge(gpt2, tokenizer) -> SampleJudge:
    scorer = Scorer(gpt2, tokenizer)
    texts = [[0, 3 + i, 4, 5, 6] for i in range(6)]
    return SampleJudge(
        tokenizer=tokenizer,
        scorer=scorer,
        references=text_features(texts, tokenizer, scorer, batch_size=4),
        batch_size=4,
        num_resamples=50,
        seed=0,
        mauve_scaling_factor=5.0,
        mauve_num_buckets=2,
        mauve_seeds=range(2),
    )


def sets(continued: list[list[int]]) -> tuple[SampleSet, SampleSet]:
    free = SampleSet(8, [5, 6, 7], [[0, 3, 4, 1], [0, 5, 6, 1], [0, 3, 4, 1]], [-1] * 3, 0)
    return free, SampleSet(8, [8] * len(continued), continued, [4, 4, 9, 9], 2)


def test_every_measure_of_a_set_is_there_with_its_count(judge, gpt2):
    free, continued = sets([[0, 3, 4, 5, 6]] * 4)
    measured = judge.measure(free, continued, COPIED)
    values = measured.as_dict()
    scored = token_nlls(gpt2, free.token_ids, batch_size=4)
    perplexity = math.exp(sum(scored.nlls) / sum(scored.num_tokens))
    assert values["generative_perplexity"]["value"] == pytest.approx(perplexity)
    low, high = values["generative_perplexity"]["interval"]
    assert low <= perplexity <= high
    assert values["entropy"]["value"] == pytest.approx(math.log(4))
    assert values["nfe"]["value"] == 6
    assert values["copied"]["value"] == 0.25
    # 2 of 3 sequences are the same: 12 tokens of 6 kinds, 9 pairs of 6 kinds.
    assert values["distinct_ngrams"]["1"] == pytest.approx(6 / 12)
    assert values["distinct_ngrams"]["2"] == pytest.approx(6 / 9)
    assert values["distinct_ngrams"]["4"] == pytest.approx(2 / 3)
    assert (values["num_steps"], values["num_truncated"]) == (8, 0)
    assert values["mauve"]["num_buckets"] == 2


def test_self_bleu_is_among_continuations_of_one_prefix_without_the_prefix(judge):
    """The prefix is the same in all; what follows is the same for one prefix, and shares no word for the other."""
    same, a, b = [0, 3, 4, 5, 6], [0, 3, 7, 8, 9], [0, 3, 10, 11, 12]
    measured = judge.measure(*sets([same, same, a, b]), COPIED)
    assert measured.self_bleu.value == pytest.approx(50, abs=1e-6)
    assert measured.self_bleu.count == 2


def test_one_continuation_a_prefix_has_no_self_bleu_and_no_mauve_is_null(judge):
    free, _ = sets([])
    alone = SampleSet(8, [8], [[0, 3, 4]], [4], 2)
    values = judge.measure(free, alone, COPIED).as_dict()
    assert values["self_bleu"] is None
    assert values["mauve"] is None


def test_the_table_holds_every_sample(judge, tmp_path):
    measured = judge.measure(*sets([[0, 3, 4, 5, 6]] * 4), COPIED)
    write_samples_table(tmp_path / "samples.csv", [measured])
    rows = list(csv.DictReader((tmp_path / "samples.csv").open()))
    assert [(row["num_steps"], row["sample_index"]) for row in rows] == [("8", "0"), ("8", "1"), ("8", "2")]
    np.testing.assert_allclose([float(row["nll_nats"]) for row in rows], measured.quality.scored.nlls)
    assert [int(row["num_tokens"]) for row in rows] == [3, 3, 3]
    np.testing.assert_allclose([float(row["entropy_nats"]) for row in rows], math.log(4))


def write_table(path, nlls, num_steps=4):
    rows = [[num_steps, index, nll, 10, 1.0] for index, nll in enumerate(nlls)]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["num_steps", "sample_index", "nll_nats", "num_tokens", "entropy_nats"], *rows])
    return path


def test_pairs_of_samples_tell_a_small_difference_that_their_spread_would_hide(tmp_path):
    """Samples differ by far more than the models do, and in the same way for both."""
    nlls = np.random.default_rng(0).normal(30, 5, size=60)
    noise = np.random.default_rng(1).normal(0, 0.1, size=60)
    ours = write_table(tmp_path / "ours.csv", nlls - 0.5 + noise)
    theirs = write_table(tmp_path / "theirs.csv", nlls)
    ratio = paired_perplexity_ratio(ours, theirs, 4, num_resamples=500, seed=0)
    assert ratio.value == pytest.approx(math.exp((-0.5 + noise.mean()) / 10))
    low, high = ratio.interval
    assert low < ratio.value < high < 1
    assert ratio.count == 60
    # Against other samples of the same model the same difference is not to be told.
    others = write_table(tmp_path / "others.csv", np.random.default_rng(2).permutation(nlls))
    low, high = paired_perplexity_ratio(ours, others, 4, num_resamples=500, seed=0).interval
    assert low < 1 < high


def test_samples_that_do_not_belong_together_have_no_ratio(tmp_path):
    ours, theirs = write_table(tmp_path / "ours.csv", [1.0, 2.0]), write_table(tmp_path / "theirs.csv", [1.0])
    assert paired_perplexity_ratio(ours, theirs, 4, num_resamples=10, seed=0) is None
    assert paired_perplexity_ratio(ours, ours, 8, num_resamples=10, seed=0) is None
    (tmp_path / "broken.csv").write_text("num_steps\n4\n")
    for path in (tmp_path / "missing.csv", tmp_path / "broken.csv"):
        with pytest.raises(UserError, match="cannot be read"):
            paired_perplexity_ratio(ours, path, 4, num_resamples=10, seed=0)
