"""Quality for each network evaluation, compared at equal entropy.

A lower temperature lowers perplexity and entropy together, so a perplexity alone says nothing. Every way to draw is
swept over temperatures; its curve of log perplexity against entropy is linear between two neighbours, and what counts
is its height at the entropy of the validation text, or at its least where all of it has more: that is better in both.
"""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from halfstep.metrics.estimate import CONFIDENCE_LEVEL, Estimate
from halfstep.run.errors import UserError
from halfstep.run.files import write_csv

ROWS_FILE, SAMPLES_FILE = "rows.csv", "samples.csv"
SAMPLE_COLUMNS = ("sampler", "setting", "temperature", "sample_index", "nll_nats", "num_tokens", "entropy_nats")


@dataclass(frozen=True, kw_only=True)
class FrontierRow:
    """Samples of one model, drawn in one way: what they cost and what they are worth. None is what was not measured.

    Where the corpus is a task, `solved` is measured, a row for each kind of puzzle, and no number on texts.

    Attributes:
        model, sampler, setting, temperature: how they were drawn.
        evaluations: of the network, per sample, the mean.
        equivalent_evaluations: the same weighted by the network's blocks over those of the first teacher, and so the
            passes of a joint head, which are added.
        seconds_per_sample: of wall-clock time, drawn in batches.
        perplexity, perplexity_low, perplexity_high: under the scorer, with the 95 % interval over samples.
        entropy: of the tokens within a sample, nats, the mean.
        mauve: against held-out text.
        distinct_2: share of different pairs of neighbouring tokens among those of all samples.
        self_bleu: of samples in groups of eight.
        solved: share of samples that solve their puzzle.
        num_samples: behind each of these numbers.
        givens: tokens that each puzzle gives.
        head_passes: of a joint head, one after the other, per sample, the mean.
        parsed, agreeing, held_out, cast_entropy: see `halfstep.data.corpora.stories.judge`.
    """

    model: str
    sampler: str
    setting: str
    temperature: float
    evaluations: float
    equivalent_evaluations: float
    seconds_per_sample: float
    perplexity: float | None = None
    perplexity_low: float | None = None
    perplexity_high: float | None = None
    entropy: float | None = None
    mauve: float | None = None
    distinct_2: float | None = None
    self_bleu: float | None = None
    solved: float | None = None
    num_samples: int
    givens: int | None = None
    head_passes: float = 0.0
    parsed: float | None = None
    agreeing: float | None = None
    held_out: float | None = None
    cast_entropy: float | None = None


ROW_COLUMNS = tuple(field.name for field in fields(FrontierRow))


@dataclass(frozen=True)
class Curve:
    """One way to draw over all temperatures, in ascending order.

    Attributes:
        rows: one per temperature.
        nlls, num_tokens, entropies: of each sample, float [num_temperatures, num_samples].
    """

    rows: Sequence[FrontierRow]
    nlls: np.ndarray
    num_tokens: np.ndarray
    entropies: np.ndarray

    @property
    def name(self) -> tuple[str, str, str]:
        """(model, sampler, setting)."""
        return self.rows[0].model, self.rows[0].sampler, self.rows[0].setting

    @cached_property
    def at_temperatures(self) -> tuple[np.ndarray, np.ndarray]:
        """(entropy, log perplexity) of each temperature."""
        entropies, logs = self._of_weights(np.ones((1, self.nlls.shape[1])))
        return entropies[:, 0], logs[:, 0]

    def _of_weights(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(entropy, log perplexity) where samples count as often as weights [n, num_samples] say, each
        [num_temperatures, n]."""
        entropy = self.entropies @ weights.T / weights.sum(axis=1)
        return entropy, (self.nlls @ weights.T) / (self.num_tokens @ weights.T)

    def segment(self, entropy: float) -> int | None:
        """The first temperature between which and the next one the curve has this entropy; None where it never has."""
        found, _ = self.at_temperatures
        low, high = np.minimum(found[:-1], found[1:]), np.maximum(found[:-1], found[1:])
        between = (low <= entropy) & (entropy <= high) & (low < high)
        return int(between.argmax()) if between.any() else None

    def entropy_of_at_least(self, entropy: float) -> float | None:
        """This entropy if the curve has it, its least if all of it has more; None where all of it has less."""
        least = float(self.at_temperatures[0].min())
        at = max(entropy, least)
        return at if self.segment(at) is not None else None

    def log_perplexity_at(self, entropy: float, weights: np.ndarray) -> np.ndarray:
        """Log perplexity at an entropy that the curve has, float [n], for each row of weights [n, num_samples].

        Slope and place between the two temperatures stay those of all samples, which is the interpolation to first
        order: a resample in which two entropies happen to meet has no slope of its own.
        """
        i = self.segment(entropy)
        assert i is not None
        (low, high), logs = (values[[i, i + 1]] for values in self.at_temperatures)
        slope, share = (logs[1] - logs[0]) / (high - low), (entropy - low) / (high - low)
        entropies, logs = (values[[i, i + 1]] for values in self._of_weights(weights))
        at_both = logs + slope * (entropy - entropies)
        return (1 - share) * at_both[0] + share * at_both[1]

    def cost_at(self, entropy: float, cost: str) -> float:
        """A column of the rows at an entropy that the curve has."""
        i = self.segment(entropy)
        assert i is not None
        entropies, _ = self.at_temperatures
        low, high = (getattr(row, cost) for row in self.rows[i : i + 2])
        return float(low + (entropy - entropies[i]) / (entropies[i + 1] - entropies[i]) * (high - low))


@dataclass(frozen=True)
class AtEntropy:
    """What a way to draw costs and is worth at an entropy, or above where all of its curve has more; None where all of
    it has less.

    Attributes:
        entropies: least and greatest of the curve.
        entropy: at which it was taken.
    """

    model: str
    sampler: str
    setting: str
    evaluations: float | None
    equivalent_evaluations: float | None
    seconds_per_sample: float | None
    perplexity: Estimate | None
    entropies: tuple[float, float]
    entropy: float | None = None


def resampled(num_samples: int, *, num_resamples: int, seed: int) -> np.ndarray:
    """How often each sample is drawn in resamples with replacement, [num_resamples, num_samples]."""
    return np.random.default_rng(seed).multinomial(num_samples, [1 / num_samples] * num_samples, size=num_resamples)


def at_entropy(curve: Curve, entropy: float, *, num_resamples: int, seed: int) -> AtEntropy:
    """A curve at an entropy or, where all of it has more, at its least, with the bootstrap interval over samples."""
    found, _ = curve.at_temperatures
    ends = float(found.min()), float(found.max())
    at = curve.entropy_of_at_least(entropy)
    if at is None:
        return AtEntropy(*curve.name, None, None, None, None, ends)
    num_samples = curve.nlls.shape[1]
    value = float(np.exp(curve.log_perplexity_at(at, np.ones((1, num_samples))))[0])
    logs = curve.log_perplexity_at(at, resampled(num_samples, num_resamples=num_resamples, seed=seed))
    names = ("evaluations", "equivalent_evaluations", "seconds_per_sample")
    evaluations, equivalent, seconds = (curve.cost_at(at, name) for name in names)
    estimate = Estimate(value, float(value * logs.std()), num_samples, "1", _interval(np.exp(logs)))
    return AtEntropy(*curve.name, evaluations, equivalent, seconds, estimate, ends, at)


def ratio_at_entropy(ours: Curve, theirs: Curve, entropy: float, *, num_resamples: int, seed: int) -> Estimate | None:
    """Our perplexity over theirs at an entropy, or at the least above it that both curves have, with the interval over
    pairs: samples of one index, which share their random numbers, are drawn again together. None without such."""
    ends = [curve.entropy_of_at_least(entropy) for curve in (ours, theirs)]
    if None in ends or ours.nlls.shape[1] != theirs.nlls.shape[1]:
        return None
    entropy = max(filter(None, ends))
    if ours.segment(entropy) is None or theirs.segment(entropy) is None:
        return None
    num_samples = ours.nlls.shape[1]

    def logs(weights: np.ndarray) -> np.ndarray:
        return ours.log_perplexity_at(entropy, weights) - theirs.log_perplexity_at(entropy, weights)

    value = float(np.exp(logs(np.ones((1, num_samples))))[0])
    some = logs(resampled(num_samples, num_resamples=num_resamples, seed=seed))
    return Estimate(value, float(value * some.std()), num_samples, "1", _interval(np.exp(some)))


def _interval(values: np.ndarray) -> tuple[float, float]:
    outside = (1 - CONFIDENCE_LEVEL) / 2
    low, high = np.quantile(values, [outside, 1 - outside])
    return float(low), float(high)


def best_within(found: Sequence[AtEntropy], num_evaluations: float) -> AtEntropy | None:
    """The lowest perplexity that so many equivalent evaluations buy; None where none has any."""
    affordable = [
        each
        for each in found
        if each.perplexity is not None
        and each.equivalent_evaluations is not None
        and each.equivalent_evaluations <= num_evaluations + 0.5
    ]
    return min(affordable, key=lambda each: each.perplexity.value, default=None)  # type: ignore[union-attr]


def evaluations_for(found: Sequence[AtEntropy], perplexity: float) -> float | None:
    """Fewest equivalent evaluations at which some ways to draw, taken as one curve, reach a perplexity; None: none do.

    Between two of them log perplexity is linear in the logarithm of the evaluations.
    """
    points = sorted(
        (each.equivalent_evaluations, each.perplexity.value)
        for each in found
        if each.perplexity is not None and each.equivalent_evaluations is not None
    )
    for i, (cost, value) in enumerate(points):
        if value <= perplexity:
            if i == 0:
                return cost
            before, worse = points[i - 1]
            share = np.log(worse / perplexity) / np.log(worse / value)
            return float(before * (cost / before) ** share)
    return None


def write_frontier(folder: Path, rows: Sequence[FrontierRow], samples: Sequence[Sequence[Any]]) -> None:
    """Write rows and, one of SAMPLE_COLUMNS each, what every sample scored."""
    write_csv(folder / ROWS_FILE, ROW_COLUMNS, ([getattr(row, name) for name in ROW_COLUMNS] for row in rows))
    write_csv(folder / SAMPLES_FILE, SAMPLE_COLUMNS, samples)


def read_curves(folder: Path) -> list[Curve]:
    """Read what `write_frontier` wrote.

    Raises:
        UserError: a file is missing or broken.
    """
    rows = read_rows(folder)
    with _as_written(folder):
        with (folder / SAMPLES_FILE).open(newline="", encoding="utf-8") as file:
            samples: dict[tuple[str, str, float], list[list[float]]] = {}
            for values in csv.DictReader(file):
                key = values["sampler"], values["setting"], float(values["temperature"])
                samples.setdefault(key, []).append([float(values[name]) for name in SAMPLE_COLUMNS[4:]])
        curves: dict[tuple[str, str], list[FrontierRow]] = {}
        for row in rows:
            curves.setdefault((row.sampler, row.setting), []).append(row)
        made = []
        for some in curves.values():
            some.sort(key=lambda row: row.temperature)
            numbers = np.array([samples[row.sampler, row.setting, row.temperature] for row in some])
            made.append(Curve(some, *np.moveaxis(numbers, -1, 0)))
        return made


def read_rows(folder: Path) -> list[FrontierRow]:
    """Read the rows that `write_frontier` wrote.

    Raises:
        UserError: the file is missing or broken.
    """
    with _as_written(folder), (folder / ROWS_FILE).open(newline="", encoding="utf-8") as file:
        return [_row(values) for values in csv.DictReader(file)]


@contextmanager
def _as_written(folder: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is not there: make it with dvc repro") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder} is not what frontier writes ({error!r}): make it again with dvc repro") from None


def _row(values: dict[str, str]) -> FrontierRow:
    texts = ("model", "sampler", "setting")
    numbers = {key: float(value) if value else None for key, value in values.items() if key not in texts}
    numbers["num_samples"] = int(values["num_samples"])
    return FrontierRow(**{key: values[key] for key in texts}, **numbers)  # type: ignore[arg-type]
