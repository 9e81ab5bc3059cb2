"""Tables of what was measured: for the page, the terminal, and as files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfstep.metrics.estimate import Estimate
from halfstep.metrics.record import AUTOREGRESSIVE, Record
from halfstep.report import solved
from halfstep.report.frontier import Frontier, budget_rows, sentences
from halfstep.report.records import (
    MISSING,
    Drawn,
    Records,
    autoregressive_of,
    denoisers_of,
    describe_drawn,
    describe_model,
    drawn_of,
    format_number,
    format_value,
    steps_of,
)
from halfstep.report.solved import Solved
from halfstep.run.files import write_csv

if TYPE_CHECKING:
    from rich.console import Group

Cell = tuple[str, ...]
"""Lines of text."""

SAMPLE_METRICS = ("nfe", "generative_perplexity", "entropy", "mauve")
IN_TABLE = (*SAMPLE_METRICS, "cloze_accuracy", "validation_perplexity", "data_generative_perplexity", "data_entropy")
"""Metrics that have a place of their own. Every other one is among the further measurements, by its name."""

NOTES = (
    "Cells: generative perplexity ± standard error, under it the entropy of the same samples (nats), their MAUVE, and"
    " network evaluations per sample.",
    "≤ marks an upper bound: a denoiser's likelihood comes from the evidence bound, the autoregressive model's is"
    " exact, so the two are not on one scale.",
    f"A dash ({MISSING}) marks what was not measured.",
)


@dataclass(frozen=True)
class Table:
    """A table as text; the first cell of a row names it."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def results_table(named: Sequence[tuple[Cell, Record]], references: Records) -> Table:
    """One row per denoiser, then the autoregressive model and the validation text.

    Args:
        named: denoisers, and what each is called.
        references: records that hold the other two, if any.
    """
    columns = drawn_of(record for _, record in named)
    header = ("model", *(describe_drawn(*drawn) for drawn in columns))
    rows = [
        (name, *(_sample_cell(record, drawn) for drawn in columns), (MISSING,), *_single_cells(record))
        for name, record in named
    ]
    empty = [(MISSING,)] * len(columns)
    if autoregressive := autoregressive_of(references):
        cell = next((_sample_cell(autoregressive, drawn) for drawn in autoregressive.drawn()), (MISSING,))
        rows.append(((describe_model(autoregressive),), *empty, cell, *_single_cells(autoregressive)))
    if record := next(iter(references.values()), None):
        cell = (format_value(record, "data_generative_perplexity"), f"entropy {format_value(record, 'data_entropy')}")
        rows.append((("validation text",), *empty, cell, (MISSING,), (MISSING,)))
    return Table((*header, "without denoising", "cloze accuracy", "validation perplexity"), rows)


def further_tables(named: Sequence[tuple[str, Record]]) -> list[Table]:
    """Whatever else was measured: of models, with a row for each metric, and of sets of samples, with a column."""
    rows = [row for _, record in named for row in record.rows if row.metric not in IN_TABLE]
    of_models = sorted({row.metric for row in rows if row.sampler is None})
    of_samples = sorted({row.metric for row in rows if row.sampler is not None})
    by_metric = [((metric,), *((format_value(record, metric),) for _, record in named)) for metric in of_models]
    by_samples = []
    for name, record in named:
        for drawn in drawn_of([record]):
            cells = (format_value(record, metric, drawn) for metric in of_samples)
            by_samples.append((tuple(dict.fromkeys((name, describe_drawn(*drawn)))), *((cell,) for cell in cells)))
    tables = [Table(("", *(name for name, _ in named)), by_metric), Table(("samples of", *of_samples), by_samples)]
    return [table for table, metrics in zip(tables, (of_models, of_samples), strict=True) if metrics]


def _sample_cell(record: Record, drawn: Drawn) -> Cell:
    """Perplexity, and under it what qualifies it."""
    if drawn not in record.drawn():
        return (MISSING,)
    nfe = record.get("nfe", *drawn)
    return (
        format_value(record, "generative_perplexity", drawn),
        f"entropy {format_value(record, 'entropy', drawn)}",
        f"MAUVE {format_value(record, 'mauve', drawn)}",
        f"{format_number(nfe.value)} evaluations" if nfe else f"{MISSING} evaluations",
    )


def _single_cells(record: Record) -> tuple[Cell, Cell]:
    """What does not depend on how samples are drawn."""
    return (format_value(record, "cloze_accuracy"),), (format_value(record, "validation_perplexity"),)


def terminal_frontier(frontier: Frontier) -> "Group":
    """The answer in sentences, and what each budget of evaluations buys, for the terminal."""
    from rich import box
    from rich.console import Group
    from rich.table import Table as TerminalTable

    table = TerminalTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    header = ("evals", "teacher, drawn by", "perplexity", "ancestral needs", "student / teacher")
    for title in header:
        table.add_column(title, justify="left" if title == header[1] else "right")
    for evaluations, way, perplexity, needed, _, _, ratio in budget_rows(frontier):
        table.add_row(evaluations, way, perplexity, needed, ratio)
    note = (
        "at the entropy of the validation text or above, with 95 % intervals; student: the last, in its best way;"
        " ratios where both have the same entropy"
    )
    return Group(*sentences(frontier), table, note)


def terminal_solved(found: Solved) -> "Group":
    """The answer in sentences, and what each budget of evaluations solves, for the terminal."""
    from rich import box
    from rich.console import Group
    from rich.table import Table as TerminalTable

    shown: list[Any] = [*solved.sentences(found)]
    for givens in found.givens:
        table = TerminalTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=f"{givens} given", title_justify="left")
        titles = ("evals", "teacher, drawn by", "solved", "ancestral", *(("student",) if found.students else ()))
        for title in titles:
            table.add_column(title, justify="left" if title.startswith("teacher") else "right")
        for evaluations, way, share, ancestral, _, its_share in solved.budget_rows(found, givens):
            table.add_row(*(evaluations, way, share, ancestral, its_share)[: len(titles)])
        shown.append(table)
    return Group(*shown, f"with 95 % intervals{'; student: the last, in its best way' if found.students else ''}")


def terminal_tables(records: Records) -> "Group":
    """The table for the terminal, one for each sampler, narrow enough for 80 columns at five settings.

    The autoregressive model and the validation text, which have no denoising steps, come last.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table as TerminalTable

    denoisers = denoisers_of(records)
    columns = drawn_of(denoisers)
    shown: list[TerminalTable] = []
    for sampler in dict.fromkeys(sampler for sampler, _ in columns) or ("",):
        own = [drawn for drawn in columns if drawn[0] == sampler]
        table = TerminalTable(box=box.SIMPLE_HEAD, padding=(0, 1, 1, 0))
        table.add_column("model", no_wrap=True)
        for drawn in own:
            table.add_column(
                describe_drawn(*drawn).replace(" ", "\n" if not steps_of(*drawn) else " "), justify="right"
            )
        for title in ("cloze", "validation") if not shown else ():
            table.add_column(title, justify="right")
        for record in denoisers:
            # The evaluations of ancestral steps are on the page.
            cells = [_sample_cell(record, drawn)[: 3 if steps_of(*drawn) else 4] for drawn in own]
            cells += [] if shown else _single_cells(record)
            table.add_row(describe_model(record), *("\n".join(map(_narrow, cell)) for cell in cells))
        shown.append(table)
    notes = ["generative perplexity ± standard error, H entropy in nats, M MAUVE; validation: perplexity, ≤ a bound"]
    for name, *cells in results_table([], records).rows:
        (*without_denoising,), (cloze,), (validation,) = cells
        singles = [] if name == ("validation text",) else [f"cloze {cloze}", f"validation {validation}"]
        notes.append(f"{name[0]}: perplexity {', '.join([*without_denoising, *singles])}")
    return Group(*shown, *notes)


def _narrow(line: str) -> str:
    """A line of a cell for the terminal: short names, and errors only of perplexities and accuracies."""
    for name, letter in (("entropy ", "H "), ("MAUVE ", "M ")):
        if line.startswith(name):
            return letter + line.removeprefix(name).split(" ±")[0]
    return line.replace(" ± ", "±").replace("≤ ", "≤").replace(" evaluations", " eval.")


def write_steps(records: Records, path: Path) -> None:
    """Write what every set of samples measures as one CSV; what was not measured is empty."""
    others = (row.metric for record in records.values() for row in record.rows if row.sampler)
    metrics = list(dict.fromkeys((*SAMPLE_METRICS, *others)))
    rows = []
    for record in records.values():
        for drawn in drawn_of([record]):
            estimates = (record.get(metric, *drawn) for metric in metrics)
            values = [None if estimate is None else estimate.value for estimate in estimates]
            rows.append([record.model, *drawn, steps_of(*drawn), *values])
    write_csv(path, ["model", "sampler", "setting", "num_steps", *metrics], rows)


def summarize(records: Records) -> dict[str, dict[str, float]]:
    """Plain numbers for `dvc metrics show`: every model at its fewest and its most steps, and by other samplers.

    What was not measured has no key.
    """
    return {name: _summarize_model(record) for name, record in records.items()}


def _summarize_model(record: Record) -> dict[str, float]:
    found: dict[str, Estimate | None] = {}
    ancestral = [drawn for drawn in drawn_of([record]) if steps_of(*drawn)]
    others = [drawn for drawn in drawn_of([record]) if not steps_of(*drawn)]
    for drawn in (*ancestral[:1], *ancestral[-1:], *others):
        # An autoregressive model has one set of samples.
        suffix = "" if record.kind == AUTOREGRESSIVE else f"_{steps_of(*drawn) or '_'.join(filter(None, drawn))}"
        found |= {f"{metric}{suffix}": record.get(metric, *drawn) for metric in SAMPLE_METRICS[1:]}
    found |= {metric: record.get(metric) for metric in ("cloze_accuracy", "validation_perplexity")}
    return {key: estimate.value for key, estimate in found.items() if estimate is not None}
