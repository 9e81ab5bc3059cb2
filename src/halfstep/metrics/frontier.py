"""Quality for each network evaluation, compared at equal entropy.

A lower temperature lowers perplexity and entropy together, so a perplexity alone says nothing. Every way to draw is
swept over temperatures; its curve of log perplexity against entropy is linear between two neighbours, and what counts
is its height at the entropy of the validation text, or at what is better in entropy, perplexity and cost.
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

    def place(self, entropy: float) -> "Place | None":
        """Where this curve has an entropy, or its least above it, or a place that is better: no less entropy, less
        perplexity and no higher cost. None where all of the curve has less entropy."""
        found, logs = self.at_temperatures
        enough = np.flatnonzero(found >= entropy).tolist()
        places = [Place(i, 0.0) for i in enough]
        for i in np.flatnonzero((found[:-1] < entropy) != (found[1:] < entropy)).tolist():
            share = float((entropy - found[i]) / (found[i + 1] - found[i]))
            places += [Place(i, share)] if 0 < share < 1 else []
        if not places:
            return None
        least = min(places, key=lambda place: (self.entropy_at(place), self._between(place, logs)))
        cost = self.cost_at(least, "equivalent_evaluations")
        affordable = [one for one in places if self.cost_at(one, "equivalent_evaluations") <= cost]
        return min(affordable, key=lambda place: self._between(place, logs))

    @property
    def most(self) -> "Place":
        """The temperature at which entropy is greatest."""
        return Place(int(self.at_temperatures[0].argmax()), 0.0)

    def entropy_at(self, place: "Place") -> float:
        """Entropy at a place."""
        return self._between(place, self.at_temperatures[0])

    def cost_at(self, place: "Place", cost: str) -> float:
        """A column of the rows at a place."""
        return self._between(place, [getattr(row, cost) for row in self.rows])

    def _between(self, place: "Place", values: Sequence[float] | np.ndarray) -> float:
        low = float(values[place.index])
        return low + place.share * (float(values[place.index + 1]) - low) if place.share else low

    def log_perplexity_at(self, place: "Place", weights: np.ndarray) -> np.ndarray:
        """Log perplexity at a place, float [n], for each row of weights [n, num_samples].

        Between two temperatures it is that at the place's entropy. Slope and share there stay those of all samples,
        which is the interpolation to first order: a resample in which two entropies happen to meet has no slope of
        its own.
        """
        i, share = place.index, place.share
        if not share:
            return self._of_weights(weights)[1][i]
        (low, high), logs = (values[[i, i + 1]] for values in self.at_temperatures)
        slope = (logs[1] - logs[0]) / (high - low)
        entropies, logs = (values[[i, i + 1]] for values in self._of_weights(weights))
        at_both = logs + slope * (self.entropy_at(place) - entropies)
        return (1 - share) * at_both[0] + share * at_both[1]


@dataclass(frozen=True)
class Place:
    """A place on a curve: at a temperature, or the share of the way to the next one, in (0, 1)."""

    index: int
    share: float


@dataclass(frozen=True)
class AtEntropy:
    """What a way to draw costs and is worth at an entropy, or at more where that is better; None where all of its curve
    has less.

    Attributes:
        entropies: least and greatest of the curve.
        entropy, temperature: at which it was taken.
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
    temperature: float | None = None


def resampled(num_samples: int, *, num_resamples: int, seed: int) -> np.ndarray:
    """How often each sample is drawn in resamples with replacement, [num_resamples, num_samples]."""
    return np.random.default_rng(seed).multinomial(num_samples, [1 / num_samples] * num_samples, size=num_resamples)


def at_entropy(curve: Curve, entropy: float, *, num_resamples: int, seed: int) -> AtEntropy:
    """A curve at its best place with an entropy or more, with the bootstrap interval over samples."""
    found, _ = curve.at_temperatures
    ends = float(found.min()), float(found.max())
    place = curve.place(entropy)
    if place is None:
        return AtEntropy(*curve.name, None, None, None, None, ends)
    num_samples = curve.nlls.shape[1]
    value = float(np.exp(curve.log_perplexity_at(place, np.ones((1, num_samples))))[0])
    logs = curve.log_perplexity_at(place, resampled(num_samples, num_resamples=num_resamples, seed=seed))
    names = ("evaluations", "equivalent_evaluations", "seconds_per_sample", "temperature")
    evaluations, equivalent, seconds, temperature = (curve.cost_at(place, name) for name in names)
    estimate = Estimate(value, float(value * logs.std()), num_samples, "1", _interval(np.exp(logs)))
    at = curve.entropy_at(place)
    return AtEntropy(*curve.name, evaluations, equivalent, seconds, estimate, ends, at, temperature)


def ratio_at_entropy(ours: Curve, theirs: Curve, entropy: float, *, num_resamples: int, seed: int) -> Estimate | None:
    """Our perplexity over theirs at an entropy or more, with the interval over pairs: samples of one index, which share
    their random numbers, are drawn again together.

    Both are taken with the entropy that the one with more has at its own best place. Where theirs never has it, theirs
    counts where it has most: at more its perplexity would be higher, so that ours is no worse than the ratio says.
    None where ours never has it, or where there are no pairs.
    """
    places = [curve.place(entropy) for curve in (ours, theirs)]
    if None in places or ours.nlls.shape[1] != theirs.nlls.shape[1]:
        return None
    most = max(curve.entropy_at(place) for curve, place in zip((ours, theirs), places, strict=True) if place)
    our_place, their_place = ours.place(most), theirs.place(most) or theirs.most
    if our_place is None:
        return None
    num_samples = ours.nlls.shape[1]

    def logs(weights: np.ndarray) -> np.ndarray:
        return ours.log_perplexity_at(our_place, weights) - theirs.log_perplexity_at(their_place, weights)

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
