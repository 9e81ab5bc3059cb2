"""The frontier as the page, the terminal and files show it: what few evaluations buy, at the text's entropy."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from halfstep.metrics.estimate import Estimate
from halfstep.metrics.frontier import (
    ROW_COLUMNS,
    AtEntropy,
    Curve,
    FrontierRow,
    at_entropy,
    best_within,
    evaluations_for,
    ratio_at_entropy,
    read_curves,
)
from halfstep.metrics.record import Record
from halfstep.report.records import ANCESTRAL, MISSING, format_number
from halfstep.run.files import write_csv, write_json
from halfstep.settings import Reported
from halfstep.settings.graph import BASELINE, FIRST_TEACHER, depth_of

BUDGETS = (1, 2, 4, 8, 16, 32)
"""Numbers of evaluations that the table asks about."""
ANSWER_BUDGET = 16
"""The one that the first sentence answers."""


@dataclass(frozen=True)
class Budget:
    """What some equivalent evaluations buy, each model drawn in its best way.

    Attributes:
        teacher, student: the first and the last; None where nothing that was drawn so cheaply has the entropy. Of the
            student None too where it was drawn in nothing that costs more than half as much.
        ratio: perplexity of the student over that of the teacher, by pairs of samples.
    """

    num_evaluations: int
    teacher: AtEntropy | None
    student: AtEntropy | None
    ratio: Estimate | None


@dataclass(frozen=True)
class Frontier:
    """Everything that was drawn at several temperatures, of one experiment.

    Attributes:
        curves: of every model.
        entropy: of the validation text, at which curves are compared.
        scorer: name of the model that judged.
        num_blocks: of the baseline; None where it is of others.
        num_resamples, seed: of the intervals.
    """

    curves: Sequence[Curve]
    entropy: float
    scorer: str
    num_blocks: int | None
    num_resamples: int
    seed: int

    @cached_property
    def found(self) -> list[AtEntropy]:
        """Every curve at the text's entropy."""
        resampling = {"num_resamples": self.num_resamples, "seed": self.seed}
        return [at_entropy(curve, self.entropy, **resampling) for curve in self.curves]

    @cached_property
    def budgets(self) -> list[Budget]:
        """What each of BUDGETS buys, from the cheapest way on."""
        ways = self.of(self.last) if self.students else []
        most = max((self._curve(way).rows[0].equivalent_evaluations for way in ways), default=0.0)
        found = []
        for number in BUDGETS:
            theirs, ours = best_within(self.of(FIRST_TEACHER), number), best_within(ways, number)
            ours = ours if most > number / 2 else None
            if theirs or ours:
                found.append(Budget(number, theirs, ours, self.ratio(ours, theirs) if ours and theirs else None))
        return found

    def of(self, model: str, sampler: str | None = None) -> list[AtEntropy]:
        """The ways in which a model was drawn, by all samplers or by one."""
        return [each for each in self.found if each.model == model and sampler in (None, each.sampler)]

    @property
    def students(self) -> list[str]:
        """Names of the students, by round."""
        return students_in(each.model for each in self.found)

    @property
    def last(self) -> str:
        """The last student, or the teacher if there is none."""
        return [FIRST_TEACHER, *self.students][-1]

    @property
    def autoregressive(self) -> list[AtEntropy]:
        """The autoregressive models, the cheapest first."""
        found = [each for each in self.found if each.model.startswith(BASELINE)]
        return sorted(found, key=lambda each: each.equivalent_evaluations or 0)

    @cached_property
    def _shared(self) -> Mapping[str, set[str]]:
        return shared_settings(self.found)

    def describe(self, way: AtEntropy, *, is_family: bool = False) -> str:
        """What a way is called: its sampler, its budget, and where it differs from other ways of that sampler.

        Args:
            way: of a denoiser, whose budget comes first in its setting, or of an autoregressive model.
            is_family: without the budget.
        """
        if way.model.startswith(BASELINE):
            depth = depth_of(way.model) or self.num_blocks
            return f"autoregressive, {depth} block{'s' * (depth != 1)}" if depth else "autoregressive"
        return name_of(way, self._shared, is_family=is_family)

    def value(self, way: AtEntropy | None) -> str:
        """The perplexity of a way with its interval, and the entropy where it is above the text's."""
        if way is None or way.perplexity is None:
            return MISSING
        is_above = way.entropy is not None and way.entropy > self.entropy
        return with_interval(way.perplexity) + (f" at {way.entropy:.2f} nats" if is_above else "")

    def families(self, model: str) -> dict[str, list[AtEntropy]]:
        """The ways of a model that differ in their budget alone, by what they are called."""
        found: dict[str, list[AtEntropy]] = {}
        for way in self.of(model):
            found.setdefault(self.describe(way, is_family=True), []).append(way)
        return found

    def _curve(self, way: AtEntropy) -> Curve:
        return next(curve for curve in self.curves if curve.name == (way.model, way.sampler, way.setting))

    def column(self, way: AtEntropy, name: str) -> float | None:
        """A column of the rows, where the way was taken; None if it was not measured at all temperatures around."""
        curve = self._curve(way)
        place = curve.place(self.entropy)
        if place is None:
            return None
        around = curve.rows[place.index : place.index + 1 + bool(place.share)]
        return None if any(getattr(row, name) is None for row in around) else curve.cost_at(place, name)

    def ratio(self, ours: AtEntropy, theirs: AtEntropy) -> Estimate | None:
        """Our perplexity over theirs, by pairs of samples: see `ratio_at_entropy`."""
        our_curve, their_curve = map(self._curve, (ours, theirs))
        resampling = {"num_resamples": self.num_resamples, "seed": self.seed}
        return ratio_at_entropy(our_curve, their_curve, self.entropy, **resampling)


def students_in(models: Iterable[str]) -> list[str]:
    """Those among some models' names that are students, by round."""
    return sorted({model for model in models if model.isdigit()} - {FIRST_TEACHER}, key=int)


def read_frontier(root: Path, models: Iterable[str], records: Iterable[Record], params: Reported) -> Frontier | None:
    """Read what the stages `frontier@MODEL` of a project wrote; a model that is not there was not drawn.

    Args:
        root: of the project.
        models: by name.
        records: of which one has the entropy of the validation text.
        params: of the project.
    Returns:
        None if nothing was drawn, or no record has that entropy.
    Raises:
        UserError: a file is broken.
    """
    found = next(((record.scorer, entropy) for record in records if (entropy := record.get("data_entropy"))), None)
    folder = root / "frontier"
    if found is None or not folder.is_dir():
        return None
    scorer, entropy = found
    return Frontier(
        [curve for model in models if (folder / model).is_dir() for curve in read_curves(folder / model)],
        entropy.value,
        scorer,
        num_blocks=None if params.baseline_from else params.num_blocks,
        num_resamples=max(params.num_bootstrap_resamples, 1),
        seed=params.seed,
    )


class Way(Protocol):
    """A sampler under a setting."""

    @property
    def sampler(self) -> str: ...
    @property
    def setting(self) -> str: ...


def shared_settings(ways: Iterable[Way]) -> dict[str, set[str]]:
    """What all settings of a sampler have in common, by `_drawn_by`."""
    settings: dict[str, list[set[str]]] = {}
    for way in ways:
        settings.setdefault(_drawn_by(way), []).append(set(way.setting.split(",")))
    return {drawn_by: set.intersection(*some) for drawn_by, some in settings.items()}


def name_of(way: Way, shared: Mapping[str, set[str]], *, is_family: bool = False) -> str:
    """What a way is called: see `Frontier.describe`; `shared` is of `shared_settings`."""
    budget, *others = way.setting.split(",")
    parts = [] if is_family else [budget]
    parts += [part for part in others if part not in shared[_drawn_by(way)]]
    words = ", ".join(_in_words(part) for part in parts if part)
    return f"{_drawn_by(way)} ({words})" if words else _drawn_by(way)


def _drawn_by(way: Way) -> str:
    drawing = [part.removeprefix("drawing=") for part in way.setting.split(",") if part.startswith("drawing=")]
    return ", ".join([way.sampler, *drawing])


def _in_words(part: str) -> str:
    key, _, value = part.partition("=")
    return f"{value} step{'s' * (value != '1')}" if key == "num_steps" else f"{key.replace('_', ' ')} {value}".strip()


def lowest_front(ways: Sequence[AtEntropy]) -> list[AtEntropy]:
    """The best within 1, 2, 4, ... equivalent evaluations, each once."""
    most = max((way.equivalent_evaluations or 0 for way in ways), default=0)
    budgets = (2**k for k in range(math.ceil(most).bit_length() + 1))
    return list(dict.fromkeys(filter(None, (best_within(ways, budget) for budget in budgets))))


def with_interval(estimate: Estimate | None) -> str:
    """A value with its 95 % interval in brackets, with two digits of half its width."""
    if estimate is None:
        return MISSING
    low, high = estimate.interval or (estimate.value, estimate.value)
    decimals = min(4, max(0, 1 - math.floor(math.log10(max(high - low, 1e-9) / 2))))
    return f"{estimate.value:.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]"


def budget_rows(frontier: Frontier) -> list[tuple[str, ...]]:
    """For each budget: (evaluations, the teacher's best way, its perplexity, evaluations that ancestral sampling needs
    for it, the last student's best way, its perplexity, the ratio of the two)."""
    return [
        (
            str(budget.num_evaluations),
            frontier.describe(budget.teacher) if budget.teacher else MISSING,
            frontier.value(budget.teacher),
            _needed(frontier, budget.teacher) if budget.teacher else MISSING,
            frontier.describe(budget.student) if budget.student else MISSING,
            frontier.value(budget.student),
            with_interval(budget.ratio),
        )
        for budget in frontier.budgets
    ]


def round_rows(frontier: Frontier) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """(header, rows): teacher and students in the ways in which the last student was drawn, at equal entropy."""
    models = [FIRST_TEACHER, *frontier.students]
    ways = frontier.of(frontier.last)
    found = {(way.model, way.sampler, way.setting): way for way in frontier.found}
    rows = [
        (
            f"round {model}" if model != FIRST_TEACHER else "teacher",
            *(frontier.value(found.get((model, way.sampler, way.setting))) for way in ways),
        )
        for model in models
    ]
    return ("perplexity at equal entropy", *map(frontier.describe, ways)), rows


def not_reached(frontier: Frontier) -> str:
    """Which ways never have the entropy of the text, and what they have; empty where all have it."""
    missing = [
        f"{way.model} by {frontier.describe(way)} ({way.entropies[0]:.3f} to {way.entropies[1]:.3f})"
        for way in frontier.found
        if way.perplexity is None
    ]
    least = f"the validation text's {frontier.entropy:.3f} nats or more"
    return f"At no temperature measured has the entropy of {least}: {'; '.join(missing)}." if missing else ""


BUDGET_HEADER = (
    "evaluations",
    "teacher's best",
    "ancestral sampling needs",
    "last student's best",
    "student / teacher",
)
"""Of the table of `budget_rows`, in which a way is beneath its perplexity."""


def _needed(frontier: Frontier, best: AtEntropy) -> str:
    """How many evaluations of ancestral sampling from the teacher are as good."""
    assert best.perplexity is not None
    ancestral = frontier.of(FIRST_TEACHER, ANCESTRAL)
    needed = evaluations_for(ancestral, best.perplexity.value)
    costs = [way.equivalent_evaluations for way in ancestral if way.equivalent_evaluations is not None]
    if needed is not None:
        return f"{format_number(round(needed, 1))}{' or fewer' if needed <= min(costs) else ''}"
    return f"more than {max(costs):.0f}" if costs else MISSING


def sentences(frontier: Frontier) -> list[str]:
    """What the frontier says, the answer first."""
    return [_answer(frontier), *_of_student(frontier), *_of_autoregressive(frontier)]


def _answer(frontier: Frontier) -> str:
    best = best_within(frontier.of(FIRST_TEACHER), ANSWER_BUDGET)
    if best is None:
        return (
            f"Nothing that was drawn from the teacher in {ANSWER_BUDGET} evaluations or fewer has the entropy of the"
            f" validation text, {frontier.entropy:.3f} nats, or more, at any temperature measured."
        )
    num_evaluations = f"{best.evaluations:.0f} network evaluation{'s' * (round(best.evaluations or 0) != 1)}"
    answer = (
        f"With {num_evaluations} a sample, the teacher reaches perplexity {with_interval(best.perplexity)} under"
        f" {frontier.scorer} at the entropy of the validation text or above, drawn by the sampler"
        f" {frontier.describe(best)}."
    )
    needed = _needed(frontier, best)
    if best.sampler == ANCESTRAL:
        answer += " No other sampler is better."
    elif needed != MISSING:
        answer += f" Ancestral sampling needs {needed} for that."
    return answer


def _of_student(frontier: Frontier) -> list[str]:
    """Whether the last student is better at equal entropy, where each is drawn in its best way."""
    if not frontier.students:
        return []
    name = frontier.last
    verdicts: dict[str, list[str]] = {"better than": [], "no better than": [], "worse than": []}
    for budget in frontier.budgets:
        if budget.ratio and budget.ratio.interval:
            low, high = budget.ratio.interval
            verdict = "better than" if high < 1 else "worse than" if low > 1 else "no better than"
            verdicts[verdict].append(str(budget.num_evaluations))
    parts = [f"{verdict} its teacher in {_listed(some)}" for verdict, some in verdicts.items() if some]
    if not parts:
        return [f"The student of round {name} and its teacher have no budget in which both reach that entropy."]
    more = "" if verdicts["better than"] else " Its rounds do no more than a temperature does."
    if str(ANSWER_BUDGET) in verdicts["better than"]:
        way = best_within(frontier.of(name), ANSWER_BUDGET)
        assert way is not None
        more = f" Within {ANSWER_BUDGET} it reaches {frontier.value(way)}, drawn by {frontier.describe(way)}."
    return [
        f"At equal entropy, each drawn in its best way, the student of round {name} is {_listed(parts)}"
        f" evaluations.{more}"
    ]


def _of_autoregressive(frontier: Frontier) -> list[str]:
    parts = [
        f"{frontier.describe(way).removeprefix('autoregressive, ')} {frontier.value(way)} at the cost of"
        f" {way.equivalent_evaluations:.0f} evaluations"
        for way in frontier.autoregressive
        if way.perplexity is not None
    ]
    return [f"Autoregressive models for comparison: {'; '.join(parts)}."] if parts else []


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


def write_rows(frontier: Frontier, folder: Path) -> None:
    """Write frontier.csv, every row, and frontier.json, every way at the text's entropy."""
    write_rows_csv([row for curve in frontier.curves for row in curve.rows], folder)
    ways = [_plain(way, frontier.entropy) for way in frontier.found]
    write_json(folder / "frontier.json", {"entropy": frontier.entropy, "ways": ways})


def write_rows_csv(rows: Sequence[FrontierRow], folder: Path) -> None:
    """Write frontier.csv."""
    write_csv(folder / "frontier.csv", ROW_COLUMNS, ([getattr(row, name) for name in ROW_COLUMNS] for row in rows))


def _plain(way: AtEntropy, entropy: float) -> dict[str, Any]:
    values = asdict(way)
    values["perplexity"] = way.perplexity and way.perplexity.as_dict()
    return {**values, "entropies": list(way.entropies), "reached": way.entropy == entropy}
