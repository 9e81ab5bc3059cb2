"""Quality at equal entropy, on made-up numbers with known answers."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from halfstep.metrics.estimate import Estimate
from halfstep.metrics.frontier import (
    AtEntropy,
    Curve,
    FrontierRow,
    at_entropy,
    best_within,
    evaluations_for,
    ratio_at_entropy,
    read_curves,
    write_frontier,
)
from halfstep.run.errors import UserError

RESAMPLING = {"num_resamples": 4000, "seed": 0}
ROW = FrontierRow(
    model="0",
    sampler="ancestral",
    setting="num_steps=4",
    temperature=1.0,
    evaluations=4.0,
    equivalent_evaluations=4.0,
    seconds_per_sample=0.5,
    perplexity=30.0,
    perplexity_low=28.5,
    perplexity_high=31.5,
    entropy=3.0,
    mauve=0.9,
    distinct_2=0.4,
    self_bleu=20.0,
    num_samples=2,
)


def curve(entropies: list[list[float]], nlls: list[list[float]], num_tokens: int = 1, **costs: list[float]) -> Curve:
    """One row for each temperature, with the numbers of its samples."""
    rows = [
        replace(ROW, temperature=1 + i / 10, **{name: values[i] for name, values in costs.items()})
        for i in range(len(entropies))
    ]
    return Curve(rows, np.array(nlls), np.full_like(nlls, num_tokens), np.array(entropies))


def noisy_curve(num_samples: int, seed: int, *, log_perplexity: float = 2.0) -> Curve:
    """Three temperatures; log perplexity is 2 (H - 3) higher than what is given, and samples vary together."""
    rng = np.random.default_rng(seed)
    own = rng.normal(size=num_samples)
    entropies, nlls = [], []
    for entropy in (2.7, 3.1, 3.5):
        entropies.append(entropy + 0.3 * rng.normal(size=num_samples) + 0.02 * own)
        nlls.append(60 * (log_perplexity + 2 * (entropy - 3) + 0.1 * rng.normal(size=num_samples) + 0.1 * own))
    return curve(entropies, nlls, 60)


def test_log_perplexity_is_linear_in_entropy_between_two_temperatures() -> None:
    # Means: entropies 2, 4, 5; log perplexities 1, 3, 6.
    made = curve(
        [[1.5, 2.5], [4, 4], [5, 5]], [[0, 20], [30, 30], [50, 70]], 10, evaluations=[8.0, 10.0, 20.0],
        equivalent_evaluations=[4.0, 5.0, 10.0], seconds_per_sample=[0.1, 0.2, 0.3],
    )  # fmt: skip
    for entropy, log_perplexity, evaluations in ((2, 1, 8), (3, 2, 9), (4, 3, 10), (4.25, 3.75, 12.5), (5, 6, 20)):
        found = at_entropy(made, entropy, **RESAMPLING)
        assert found.perplexity is not None
        assert math.log(found.perplexity.value) == pytest.approx(log_perplexity)
        assert found.evaluations == pytest.approx(evaluations)
        assert found.equivalent_evaluations == pytest.approx(evaluations / 2)
        assert found.perplexity.count == 2
    assert at_entropy(made, 4.5, **RESAMPLING).seconds_per_sample == pytest.approx(0.25)


def test_perplexity_is_over_tokens_and_entropy_over_samples() -> None:
    # One sample of 1 token that costs 5 nats, one of 3 tokens that cost 3: 8 nats in 4 tokens.
    rows = [replace(ROW, temperature=1.0), replace(ROW, temperature=1.1)]
    made = Curve(rows, np.array([[5, 3], [5, 3]]), np.array([[1, 3], [1, 3]]), np.array([[1, 3], [2, 4]]))
    entropies, logs = made.at_temperatures
    assert (entropies.tolist(), logs.tolist()) == ([2, 3], [2, 2])


def test_a_curve_with_less_entropy_has_no_number_and_one_with_more_that_of_its_least() -> None:
    made = curve([[2, 2], [4, 4]], [[1, 1], [3, 3]])
    below = at_entropy(made, 4.01, **RESAMPLING)
    assert (below.perplexity, below.evaluations, below.seconds_per_sample, below.entropy) == (None, None, None, None)
    assert below.entropies == (2, 4)
    assert ratio_at_entropy(made, made, 4.01, **RESAMPLING) is None
    above = at_entropy(made, 1.0, **RESAMPLING)
    assert above == at_entropy(made, 2.0, **RESAMPLING)
    assert (above.perplexity.value, above.entropy) == (pytest.approx(math.e), 2)
    # Two curves are compared where both are.
    higher = curve([[3, 3], [5, 5]], [[1, 1], [2, 2]])
    assert ratio_at_entropy(higher, made, 1.0, **RESAMPLING).value == pytest.approx(math.exp(1 - 2))
    # Where nothing is shared the other counts at its end, which favours it; never the other way round.
    highest = curve([[4.5, 4.5], [5, 5]], [[1, 1], [2, 2]])
    assert ratio_at_entropy(highest, made, 1.0, **RESAMPLING).value == pytest.approx(math.exp(1 - 3))
    assert ratio_at_entropy(made, highest, 1.0, **RESAMPLING) is None
    # One temperature is enough where it has the entropy; of two the better counts.
    assert at_entropy(curve([[2, 2]], [[1, 1]]), 2, **RESAMPLING).perplexity.value == pytest.approx(math.e)
    assert at_entropy(curve([[2, 2], [2, 2]], [[3, 3], [1, 1]]), 2, **RESAMPLING).perplexity.value == pytest.approx(
        math.e
    )
    assert at_entropy(curve([[2, 2]], [[1, 1]]), 2.1, **RESAMPLING).perplexity is None


def test_more_entropy_at_less_perplexity_is_better_and_its_interval_that_of_its_samples() -> None:
    """Entropy need not rise with temperature: then the least of it is not the best with enough of it."""
    rng = np.random.default_rng(0)
    nlls = np.array([1.7, 2.7, 4.0])[:, None] + rng.normal(size=(3, 100))
    entropies = [[3.565] * 100, [3.560] * 100, [3.6] * 100]
    costs = [5.0, 6.0, 7.0]
    # Where it costs more it is another choice, not a better one.
    dear = at_entropy(curve(entropies, nlls.tolist(), equivalent_evaluations=costs[::-1]), 3.49, **RESAMPLING)
    assert dear.temperature == pytest.approx(1.1)
    found = at_entropy(curve(entropies, nlls.tolist(), equivalent_evaluations=costs), 3.49, **RESAMPLING)
    assert (found.entropy, found.temperature) == (pytest.approx(3.565), 1.0)
    assert found.perplexity.value == pytest.approx(math.exp(nlls[0].mean()))
    # The mean of 100 numbers of variance 1; a bootstrap of 2000 knows it to 3 %.
    assert found.perplexity.standard_error == pytest.approx(found.perplexity.value * nlls[0].std() / 10, rel=0.1)


def test_entropy_may_fall_with_temperature() -> None:
    found = at_entropy(curve([[4, 4], [2, 2]], [[3, 3], [1, 1]]), 2.5, **RESAMPLING)
    assert found.perplexity is not None
    assert math.log(found.perplexity.value) == pytest.approx(1.5)


def test_the_interval_is_that_of_a_slow_bootstrap_which_interpolates_anew() -> None:
    made = noisy_curve(400, seed=1)
    found = at_entropy(made, 3.0, **RESAMPLING).perplexity
    assert found is not None
    assert found.interval is not None
    rng = np.random.default_rng(5)
    logs = []
    for _ in range(4000):
        chosen = rng.integers(400, size=400)
        entropies = [row[chosen].mean() for row in made.entropies]
        means = [row[chosen].sum() / 24000 for row in made.nlls]
        logs.append(np.interp(3.0, entropies, means))
    # The standard error of the log is 0.02. Its ends are known to 4 % of it or so; beside that, the first order of an
    # interpolation is not all of it.
    assert np.log(found.interval) == pytest.approx(np.quantile(logs, [0.025, 0.975]), abs=0.006)
    assert found.standard_error == pytest.approx(found.value * np.std(logs), rel=0.08)


def test_intervals_cover_the_truth() -> None:
    """At entropy 3 the log perplexity is 2; fewer than 180 of 200 intervals hold it with a chance of 1e-3."""
    found = [at_entropy(noisy_curve(60, seed=seed), 3.0, num_resamples=400, seed=0) for seed in range(200)]
    intervals = [each.perplexity.interval for each in found if each.perplexity and each.perplexity.interval]
    assert sum(low < math.exp(2) < high for low, high in intervals) >= 180


def test_the_ratio_of_a_curve_with_itself_is_one_without_error() -> None:
    made = noisy_curve(50, seed=2)
    ratio = ratio_at_entropy(made, made, 3.0, **RESAMPLING)
    assert ratio == Estimate(1.0, 0.0, 50, "1", (1.0, 1.0))


def test_what_samples_share_is_no_error_of_a_ratio() -> None:
    """A constant in every sample's log perplexity is the ratio; in samples that are independent it has an error."""
    ours, theirs = noisy_curve(50, seed=3), noisy_curve(50, seed=3, log_perplexity=2.5)
    ratio = ratio_at_entropy(ours, theirs, 3.0, **RESAMPLING)
    assert ratio is not None
    assert ratio.interval is not None
    assert (ratio.value, *ratio.interval) == pytest.approx([math.exp(-0.5)] * 3)
    covered = 0
    for seed in range(100):
        ours, theirs = (noisy_curve(50, seed=1000 + 2 * seed + k, log_perplexity=2 + k / 2) for k in (0, 1))
        ratio = ratio_at_entropy(ours, theirs, 3.0, num_resamples=400, seed=0)
        assert ratio is not None
        assert ratio.interval is not None
        covered += ratio.interval[0] < math.exp(-0.5) < ratio.interval[1]
    # Of 100 intervals of 95 %, fewer than 87 with a chance of 1e-3.
    assert covered >= 87


def test_different_numbers_of_samples_are_no_pairs() -> None:
    assert ratio_at_entropy(noisy_curve(5, seed=1), noisy_curve(6, seed=1), 3.0, **RESAMPLING) is None


def way(evaluations: float | None, perplexity: float | None) -> AtEntropy:
    estimate = None if perplexity is None else Estimate(perplexity, 1.0, 10, "1")
    return AtEntropy("0", "ancestral", f"num_steps={evaluations}", evaluations, evaluations, 1.0, estimate, (1.0, 2.0))


def test_the_best_within_a_budget_is_the_lowest_perplexity_that_it_buys() -> None:
    found = [way(4, 90.0), way(8.4, 40.0), way(8, 45.0), way(16, 50.0), way(None, None)]
    expected = {3: None, 4: 90.0, 7.9: 40.0, 7.8: 45.0, 8: 40.0, 16: 40.0}
    for budget, perplexity in expected.items():
        best = best_within(found, budget)
        assert (best and best.perplexity and best.perplexity.value) == perplexity, budget


def test_evaluations_for_a_perplexity_are_between_the_two_that_enclose_it() -> None:
    found = [way(64, 10.0), way(4, 160.0), way(16, 40.0), way(None, None)]
    # Perplexity is 640 / evaluations, a line between logarithms.
    for perplexity, evaluations in ((160, 4), (200, 4), (80, 8), (40, 16), (20, 32), (10, 64)):
        assert evaluations_for(found, perplexity) == pytest.approx(evaluations)
    assert evaluations_for(found, 9.9) is None
    assert evaluations_for([], 10) is None
    # The first time counts where a curve rises again.
    assert evaluations_for([way(4, 160.0), way(16, 40.0), way(64, 50.0)], 80) == pytest.approx(8)


ROWS = [
    replace(ROW, temperature=1.1, perplexity=1 / 3, mauve=None, solved=0.25),
    ROW,
    replace(ROW, sampler="autoregressive", setting="", parsed=2 / 3, held_out=None),
]
SAMPLES = [
    *(("ancestral", "num_steps=4", 1.1, i, 1 / 3 + i, 62, 3.1) for i in range(2)),
    *(("ancestral", "num_steps=4", 1.0, i, 0.1 + i, 61, 3.0 / 7) for i in range(2)),
    *(("autoregressive", "", 1.0, i, 0.2, 60, 3.0) for i in range(2)),
]


def test_what_was_written_is_read_bit_for_bit(tmp_path: Path) -> None:
    write_frontier(tmp_path, ROWS, SAMPLES)
    first, second = read_curves(tmp_path)
    assert (*first.rows, *second.rows) == (ROWS[1], ROWS[0], ROWS[2])
    assert first.rows[0].num_samples.__class__ is int
    assert first.name == ("0", "ancestral", "num_steps=4")
    assert first.nlls.tolist() == [[0.1, 1.1], [1 / 3, 4 / 3]]
    assert first.num_tokens.tolist() == [[61, 61], [62, 62]]
    assert first.entropies.tolist() == [[3.0 / 7] * 2, [3.1] * 2]


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("rows.csv", lambda text: text.replace("30.0", "thirty", 1)),
        ("rows.csv", lambda text: text.replace("num_samples", "samples", 1)),
        ("rows.csv", lambda text: text + "0,ancestral\n"),
        ("rows.csv", lambda text: text.replace("num_steps=4", "num_steps=5")),
        ("samples.csv", lambda text: text.replace("nll_nats", "nats")),
        ("samples.csv", lambda text: text[: text.rindex("autoregressive")].rstrip() + "\n" + "autoregressive,,1.0,1\n"),
        ("samples.csv", lambda text: text[: text.index("1.0,1")]),
        ("samples.csv", lambda text: ""),
    ],
)
def test_broken_files_are_one_line(tmp_path: Path, file: str, change) -> None:
    write_frontier(tmp_path, ROWS, SAMPLES)
    (tmp_path / file).write_text(change((tmp_path / file).read_text()))
    with pytest.raises(UserError, match=r"is not what frontier writes \(.*\): make it again with dvc repro") as raised:
        read_curves(tmp_path)
    assert "\n" not in str(raised.value)
    (tmp_path / file).unlink()
    with pytest.raises(UserError, match=rf"{file} is not there: make it with dvc repro"):
        read_curves(tmp_path)
