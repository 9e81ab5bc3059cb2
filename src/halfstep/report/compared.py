"""Experiments side by side: of each the last model, drawn in its best way, and the teacher that they share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, geometric_mean

from halfstep.metrics.estimate import Estimate
from halfstep.metrics.frontier import AtEntropy, FrontierRow, best_within
from halfstep.report.experiment import Experiment
from halfstep.report.frontier import ANSWER_BUDGET, BUDGETS, Frontier, with_interval
from halfstep.report.records import ANCESTRAL, MISSING, format_number
from halfstep.report.solved import Solved, best, percent, share_of, worth
from halfstep.report.table import Cell, Table
from halfstep.settings.graph import FIRST_TEACHER

SPREAD = ("distinct_2", "self_bleu", "mauve", "parsed", "agreeing", "cast_entropy")
"""Columns of the frontier's rows that say what samples have in common with each other, or with the text."""


@dataclass(frozen=True)
class Contender:
    """A model that experiments with different seeds trained in one way.

    Attributes:
        label: what it is called.
        experiments: one for each seed.
        is_teacher: the first model of each, else the last.
    """

    label: str
    experiments: Sequence[Experiment]
    is_teacher: bool = False

    @property
    def name(self) -> str:
        """In a sentence."""
        return f"the {self.label}" if self.is_teacher else self.label

    def ways(self, sampler: str | None = None) -> list[tuple[Frontier, list[AtEntropy]]]:
        """In which ways the model of each seed was drawn, by all samplers or by one."""
        found = filter(None, (experiment.frontier for experiment in self.experiments))
        return [(each, each.of(FIRST_TEACHER if self.is_teacher else each.last, sampler)) for each in found]

    def best(self, budget: float, sampler: str | None = None) -> list[tuple[Frontier, AtEntropy]]:
        """The best way of each seed that has any within a budget."""
        found = [(frontier, best_within(ways, budget)) for frontier, ways in self.ways(sampler)]
        return [(frontier, way) for frontier, way in found if way]

    def puzzles(self, givens: int) -> list[tuple[Solved, list[FrontierRow]]]:
        """In which ways the model of each seed filled in puzzles of a kind."""
        found = filter(None, (experiment.solved for experiment in self.experiments))
        return [(each, each.of(FIRST_TEACHER if self.is_teacher else each.last, givens)) for each in found]

    def solving(self, givens: int, budget: float) -> list[tuple[Solved, FrontierRow]]:
        """The way of each seed that solves most puzzles of a kind within a budget."""
        found = [(solved, best(rows, budget)) for solved, rows in self.puzzles(givens)]
        return [(solved, row) for solved, row in found if row]


def contenders_of(experiments: Sequence[Experiment]) -> list[Contender]:
    """The teacher, where all with one seed share it, then what was trained; experiments that differ in their seed alone
    are one."""
    by_seed: dict[int, list[Experiment]] = {}
    by_label: dict[str, list[Experiment]] = {}
    for experiment in experiments:
        by_seed.setdefault(experiment.params.seed, []).append(experiment)
        parts = [part for part in experiment.label.split(", ") if not part.startswith("seed=")]
        by_label.setdefault(", ".join(parts) or experiment.label, []).append(experiment)
    is_shared = all(_teacher(each) == _teacher(some[0]) for some in by_seed.values() for each in some)
    found = [Contender(label, some) for label, some in by_label.items()]
    if is_shared and any(experiment.params.rounds for experiment in experiments):
        found.insert(0, Contender("teacher", [some[0] for some in by_seed.values()], is_teacher=True))
    return found


def _teacher(experiment: Experiment) -> list[FrontierRow]:
    """What was measured of it, but for the time it took."""
    rows: list[FrontierRow] = []
    if experiment.solved:
        rows += experiment.solved.rows
    elif experiment.frontier:
        rows += [row for curve in experiment.frontier.curves for row in curve.rows]
    return [replace(row, seconds_per_sample=0.0) for row in rows if row.model == FIRST_TEACHER]


def sentences(contenders: Sequence[Contender]) -> list[str]:
    """Which is best within ANSWER_BUDGET, of texts or of each kind of puzzle, and whether that is clear."""
    said = []
    if any(each.ways() for each in contenders):
        ranked: list[_Ranked] = []
        for each in contenders:
            if values := [way.perplexity for _, way in each.best(ANSWER_BUDGET) if way.perplexity]:
                mean = geometric_mean([value.value for value in values])
                ranked.append(((mean,), f"{each.name} ({'; '.join(map(with_interval, values))})", values))
        said.append(_first_two(ranked, "has the lowest perplexity at equal entropy"))
    for givens in kinds_of(contenders):
        ranked = []
        for each in contenders:
            if rows := [row for _, row in each.solving(givens, ANSWER_BUDGET)]:
                place = (-fmean(worth(row)[0] for row in rows), -fmean(worth(row)[1] for row in rows))
                words = "; ".join(f"{percent(row)} in {row.equivalent_evaluations:.1f}" for row in rows)
                ranked.append((place, f"{each.name} ({words})", [*map(share_of, rows)]))
        said.append(_first_two(ranked, f"is best with {givens} given"))
    return said


_Ranked = tuple[tuple[float, ...], str, Sequence[Estimate]]
"""(What ranks a contender, the lowest first; what it is called, and its values; these, one for each seed)."""


def _first_two(ranked: Sequence[_Ranked], what: str) -> str:
    """The first two in words, and whether their intervals are apart."""
    if not ranked:
        return f"Nothing was drawn in {ANSWER_BUDGET} evaluations or fewer that has the entropy of the validation text."
    (_, words, values), *others = sorted(ranked, key=lambda each: each[:2])
    first = f"In {ANSWER_BUDGET} evaluations or fewer, {words} {what}"
    if not others:
        return f"{first}."
    _, next_words, next_values = others[0]
    (low, high), (next_low, next_high) = _span(values), _span(next_values)
    return (
        f"{first}, before {next_words}; the intervals are {'' if high < next_low or next_high < low else 'not '}apart."
    )


def _span(values: Sequence[Estimate]) -> tuple[float, float]:
    """The ends of all intervals."""
    lows, highs = zip(*(each.interval or (each.value, each.value) for each in values), strict=True)
    return min(lows), max(highs)


def frontier_tables(contenders: Sequence[Contender]) -> list[Table]:
    """Perplexity by budget, in the best way and under ancestral sampling; what the best within ANSWER_BUDGET costs, and
    how its samples spread."""
    contenders = [each for each in contenders if each.ways()]
    if not contenders:
        return []
    return [
        _by_budget("evaluations, best sampler", contenders, _perplexity_cell),
        _by_budget(
            "evaluations, ancestral", contenders, lambda each, budget: _perplexity_cell(each, budget, ANCESTRAL)
        ),
        _spread_table(contenders),
    ]


def solved_tables(contenders: Sequence[Contender]) -> list[tuple[int, Table]]:
    """For each kind of puzzle the share solved by budget, each in its best way."""

    def table(givens: int) -> Table:
        return _by_budget("evaluations", contenders, lambda each, budget: _solved_cell(each, budget, givens))

    return [(givens, table(givens)) for givens in kinds_of(contenders)]


def kinds_of(contenders: Sequence[Contender]) -> list[int]:
    """The kinds of puzzles, easy ones first."""
    found = [solved for each in contenders for e in each.experiments if (solved := e.solved)]
    return sorted({givens for solved in found for givens in solved.givens}, reverse=True)


def _by_budget(title: str, contenders: Sequence[Contender], cell: Callable[[Contender, int], Cell]) -> Table:
    header = (title, *(each.label for each in contenders))
    rows = [(budget, [cell(each, budget) for each in contenders]) for budget in BUDGETS]
    return Table(header, [((str(budget),), *cells) for budget, cells in rows if set(cells) != {(MISSING,)}])


def _perplexity_cell(contender: Contender, budget: float, sampler: str | None = None) -> Cell:
    """Perplexity, way, and the ratio to its teacher's in the teacher's best way within the budget."""
    found = contender.best(budget, sampler)
    if not found:
        return (MISSING,)
    ratios = []
    for frontier, way in found:
        taught = best_within(frontier.of(FIRST_TEACHER, sampler), budget)
        if way.model != FIRST_TEACHER and taught:
            ratios += [ratio] if (ratio := frontier.ratio(way, taught)) else []
    if len(contender.experiments) == 1:
        ((frontier, way),) = found
        of_teacher = [f"{with_interval(ratio)} of the teacher's" for ratio in ratios]
        return (frontier.value(way), frontier.describe(way), *of_teacher)
    values = [way.perplexity.value for _, way in found if way.perplexity]
    lines = [f"{geometric_mean(values):.3g}", f"seeds: {', '.join(f'{value:.3g}' for value in values)}"]
    if ratios:
        better = sum(ratio.interval is not None and ratio.interval[1] < 1 for ratio in ratios)
        mean = geometric_mean([ratio.value for ratio in ratios])
        lines.append(f"{mean:.3g} of the teacher's, better with {better} of {len(ratios)}")
    return tuple(lines)


def _solved_cell(contender: Contender, budget: float, givens: int) -> Cell:
    found = contender.solving(givens, budget)
    if not found:
        return (MISSING,)
    if len(contender.experiments) == 1:
        ((solved, row),) = found
        return percent(row), f"{solved.describe(row)}, in {row.equivalent_evaluations:.1f}"
    shares = [100 * share_of(row).value for _, row in found]
    return f"{fmean(shares):.3g} %", f"seeds: {', '.join(f'{share:.3g}' for share in shares)}"


def _spread_table(contenders: Sequence[Contender]) -> Table:
    columns = ("evaluations", "equivalent_evaluations", "seconds_per_sample", "entropy", *SPREAD)
    rows: list[tuple[Cell, ...]] = []
    for contender in contenders:
        found = contender.best(ANSWER_BUDGET)
        by_column = [[frontier.column(way, name) for frontier, way in found] for name in columns]
        known = [[value for value in values if value is not None] for values in by_column]
        rows.append(((contender.label,), *((format_number(fmean(some)) if some else MISSING,) for some in known)))
    shown = [0, *(i for i in range(1, len(columns) + 1) if any(row[i] != (MISSING,) for row in rows))]
    header = (f"best within {ANSWER_BUDGET}", *(name.replace("_", " ") for name in columns))
    return Table([header[i] for i in shown], [[row[i] for i in shown] for row in rows])
