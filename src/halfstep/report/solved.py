"""The frontier of a task that is solved or not: the share of puzzles solved, for each evaluation of the network."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from halfstep.metrics.estimate import Estimate, share_estimate
from halfstep.metrics.frontier import FrontierRow, read_rows
from halfstep.report.frontier import BUDGETS, name_of, shared_settings, students_in, write_rows_csv
from halfstep.report.records import ANCESTRAL, MISSING
from halfstep.run.files import write_json
from halfstep.settings.graph import BASELINE, FIRST_TEACHER

ENOUGH = 0.99
"""Of a way that solves this share, what counts is how few evaluations it takes."""

SOLVED_HEADER = ("evaluations", "teacher's best", "ancestral", "last student's best")


@dataclass(frozen=True)
class Solved:
    """Every way in which puzzles were filled in, of one experiment."""

    rows: Sequence[FrontierRow]

    @property
    def givens(self) -> list[int]:
        """The kinds of puzzles, easy ones first."""
        return sorted({int(row.givens) for row in self.rows if row.givens is not None}, reverse=True)

    @property
    def students(self) -> list[str]:
        """Names of the students, by round."""
        return students_in(row.model for row in self.rows)

    @property
    def last(self) -> str:
        """The last student, or the teacher if there is none."""
        return [FIRST_TEACHER, *self.students][-1]

    def of(self, model: str, givens: int, sampler: str | None = None) -> list[FrontierRow]:
        """The ways of a model on one kind of puzzle, by all samplers or by one, the cheapest first."""
        of_kind = [row for row in self.rows if (row.model, row.givens) == (model, givens)]
        found = [row for row in of_kind if sampler in (None, row.sampler)]
        return sorted(found, key=lambda row: row.equivalent_evaluations)

    def describe(self, row: FrontierRow) -> str:
        """What a way is called, and its temperature."""
        at = {0.0: ", likeliest token", 1.0: ""}.get(row.temperature, f", temperature {row.temperature:g}")
        return name_of(row, self._shared) + at

    @cached_property
    def _shared(self) -> Mapping[str, set[str]]:
        return shared_settings(self.rows)

    def autoregressive(self, givens: int) -> list[FrontierRow]:
        """The best way of each autoregressive model on one kind of puzzle."""
        names = dict.fromkeys(row.model for row in self.rows if row.model.startswith(BASELINE))
        return [row for name in names if (row := best(self.of(name, givens)))]


def read_solved(folder: Path, models: Iterable[str]) -> Solved | None:
    """Read what the stages `frontier@MODEL` wrote; None where they drew no puzzles.

    Raises:
        UserError: a file is broken.
    """
    rows = [row for model in models if (folder / model).is_dir() for row in read_rows(folder / model)]
    return Solved(found) if (found := [row for row in rows if row.givens is not None]) else None


def share_of(row: FrontierRow) -> Estimate:
    """The share of puzzles solved, with its interval."""
    assert row.solved is not None
    return share_estimate(round(row.solved * row.num_samples), int(row.num_samples))


def best(rows: Sequence[FrontierRow], budget: float = float("inf")) -> FrontierRow | None:
    """The way that solves most within a budget of evaluations, the cheapest of those that solve `ENOUGH`."""
    affordable = [row for row in rows if row.equivalent_evaluations <= budget + 0.5]
    return max(affordable, key=worth, default=None)


def worth(row: FrontierRow) -> tuple[float, float]:
    """What counts of a way, the greater the better: the share it solves up to `ENOUGH`, then how few evaluations."""
    return min(row.solved or 0, ENOUGH), -row.equivalent_evaluations


def rising_front(rows: Sequence[FrontierRow]) -> list[FrontierRow]:
    """Of some ways, the cheapest first, those that solve more than all cheaper ones."""
    front: list[FrontierRow] = []
    for row in rows:
        if not front or (row.solved or 0) > (front[-1].solved or 0):
            front.append(row)
    return front


def budget_rows(solved: Solved, givens: int) -> list[tuple[str, ...]]:
    """(budget, the teacher's best way, its share, ancestral sampling's, the last student's best way, its share), from
    the cheapest way on."""
    teacher = solved.of(FIRST_TEACHER, givens)
    student = solved.of(solved.students[-1], givens) if solved.students else []
    rows: list[tuple[str, ...]] = []
    for budget in BUDGETS:
        ours, theirs = best(teacher, budget), best(student, budget)
        ancestral = best(solved.of(FIRST_TEACHER, givens, ANCESTRAL), budget)
        if ours or theirs:
            rows.append((str(budget), *_described(solved, ours), percent(ancestral), *_described(solved, theirs)))
    return rows


def sentences(solved: Solved) -> list[str]:
    """What the puzzles say, one sentence for each kind."""
    return [sentence for givens in solved.givens if (sentence := _sentence(solved, givens))]


def _sentence(solved: Solved, givens: int) -> str | None:
    teacher = solved.of(FIRST_TEACHER, givens)
    ours, ancestral = best(teacher), best(solved.of(FIRST_TEACHER, givens, ANCESTRAL))
    if ours is None:
        return None
    parts = [
        f"Of puzzles with {givens} given the teacher, drawn by {solved.describe(ours)}, solves {percent(ours)} with"
        f" {ours.evaluations:.1f} evaluations each"
    ]
    if ancestral:
        parts.append(f"ancestral sampling solves {percent(ancestral)} with {ancestral.evaluations:.1f}")
    if solved.students and (theirs := best(solved.of(solved.students[-1], givens))):
        parts.append(f"the student of round {theirs.model} solves {percent(theirs)} with {theirs.evaluations:.1f}")
    parts += [
        f"{row.model}, which reads the puzzle and writes the grid from left to right, solves {percent(row)} with"
        f" {row.evaluations:.1f} passes"
        for row in solved.autoregressive(givens)
    ]
    return "; ".join(parts) + "."


def percent(row: FrontierRow | None) -> str:
    """The share solved, with its 95 % interval in brackets."""
    if row is None:
        return MISSING
    share = share_of(row)
    assert share.interval is not None
    low, high = share.interval
    return f"{100 * share.value:.3g} % [{100 * low:.3g}, {100 * high:.3g}]"


def _described(solved: Solved, row: FrontierRow | None) -> tuple[str, str]:
    return (solved.describe(row) if row else MISSING), percent(row)


def write_solved(solved: Solved, folder: Path) -> None:
    """Write frontier.csv, every row, and frontier.json, the same with intervals."""
    write_rows_csv(solved.rows, folder)
    ways = [
        {key: value for key, value in asdict(row).items() if value is not None} | {"solved": share_of(row).as_dict()}
        for row in solved.rows
    ]
    write_json(folder / "frontier.json", {"ways": ways})
