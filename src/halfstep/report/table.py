"""The table of rounds: one row per model, for the page and for the terminal."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from halfstep.metrics.estimate import Estimate
from halfstep.report.results import AUTOREGRESSIVE, Metrics, ModelMetrics, SampleMetrics
from halfstep.run.files import atomic_path

if TYPE_CHECKING:
    from rich.table import Table

MISSING = "–"


@dataclass(frozen=True)
class Row:
    """One row of the table of rounds.

    Attributes:
        name: of the model.
        cells: lines of text per column.
    """

    name: str
    cells: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class RoundsTable:
    """The table of rounds as text.

    Attributes:
        header: of the columns after the name.
        rows: teacher, students, autoregressive model, the data itself.
    """

    header: tuple[str, ...]
    rows: tuple[Row, ...]


def describe_model(metrics: ModelMetrics) -> str:
    """What a model is called on the page."""
    if metrics.kind == AUTOREGRESSIVE:
        return "autoregressive"
    return "teacher" if metrics.round_index == 0 else f"round {metrics.round_index}"


def denoisers_of(metrics: Metrics) -> list[ModelMetrics]:
    """The teacher and its students, by round."""
    denoisers = [model for model in metrics.values() if model.round_index is not None]
    return sorted(denoisers, key=lambda model: model.round_index or 0)


def autoregressive_of(metrics: Metrics) -> ModelMetrics | None:
    """The autoregressive model; None if the models hold none."""
    return next((model for model in metrics.values() if model.kind == AUTOREGRESSIVE), None)


def step_counts(metrics: Metrics) -> list[int]:
    """Every number of denoising steps that samples were drawn with, ascending."""
    return sorted({sampled.num_steps for model in denoisers_of(metrics) for sampled in model.samples})


def format_estimate(estimate: Estimate | None, *, scale: float = 1.0) -> str:
    """A value and its standard error, with two digits of the error; a dash if it was not measured.

    Args:
        estimate: the value.
        scale: both are multiplied by it, as with 100 for percent.
    """
    if estimate is None:
        return MISSING
    value = estimate.value * scale
    if not estimate.standard_error:
        return format_number(value)
    error = estimate.standard_error * scale
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def format_number(value: float) -> str:
    """A number with four digits, without an exponent below a million."""
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e6 else f"{value:.4g}"


def make_table(metrics: Metrics) -> RoundsTable:
    """Lay out the table: perplexity, entropy and MAUVE of a cell belong to the same samples."""
    counts = step_counts(metrics)
    header = (
        *(f"{count} steps" for count in counts),
        "without denoising",
        "cloze accuracy",
        "validation perplexity",
    )
    rows = []
    for model in denoisers_of(metrics):
        cells = [sample_cell(model.at(count)) for count in counts]
        rows.append(Row(describe_model(model), (*cells, (MISSING,), *single_cells(model))))
    autoregressive = autoregressive_of(metrics)
    if autoregressive is not None:
        sampled = next(iter(autoregressive.samples), None)
        cell = sample_cell(sampled) if sampled is None else (*sample_cell(sampled), f"{sampled.num_steps} tokens")
        rows.append(
            Row(
                describe_model(autoregressive),
                (*[(MISSING,)] * len(counts), cell, *single_cells(autoregressive)),
            )
        )
    if metrics:
        data = next(iter(metrics.values()))
        cell = (format_estimate(data.data_perplexity), f"entropy {format_estimate(data.data_entropy)}")
        rows.append(Row("validation text", (*[(MISSING,)] * len(counts), cell, (MISSING,), (MISSING,))))
    return RoundsTable(header, tuple(rows))


def sample_cell(sampled: SampleMetrics | None) -> tuple[str, ...]:
    """Lines of the cell for one model at one number of steps: perplexity, and under it what qualifies it."""
    if sampled is None:
        return (MISSING,)
    return (
        format_estimate(sampled.generative_perplexity),
        f"entropy {format_estimate(sampled.entropy)}",
        f"MAUVE {format_estimate(sampled.mauve)}",
        *(f"{title} {format_estimate(estimate)}" for title, estimate in sampled.extras.items()),
    )


def single_cells(model: ModelMetrics) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The cells of what does not depend on the number of steps: cloze accuracy and validation perplexity."""
    cloze = f"{format_estimate(model.cloze_accuracy, scale=100)} %" if model.cloze_accuracy else MISSING
    bound = "≤ " if model.validation_is_bound and model.validation_perplexity else ""
    return (cloze,), (bound + format_estimate(model.validation_perplexity),)


def rounds_table(metrics: Metrics) -> "Table":
    """The table of rounds for the terminal, narrow enough for 80 columns at five numbers of steps.

    The autoregressive model and the validation text, which have no denoising steps, stand beneath it.

    Args:
        metrics: of `load_metrics`.
    """
    from rich import box
    from rich.table import Table

    table = make_table(metrics)
    num_counts = len(step_counts(metrics))
    shown = Table(box=box.SIMPLE_HEAD, show_lines=False, caption_justify="left", padding=(0, 1, 1, 0))
    shown.add_column("model", no_wrap=True)
    for title in (*table.header[:num_counts], "cloze", "validation"):
        shown.add_column(title, justify="right", no_wrap=True)
    notes = []
    for row in table.rows:
        without_denoising = row.cells[num_counts]
        if without_denoising == (MISSING,):
            # Entropy and MAUVE, but not the extras: those are on the page.
            cells = [*row.cells[:num_counts], *row.cells[num_counts + 1 :]]
            shown.add_row(row.name, *("\n".join(map(_narrow, cell[:3])) for cell in cells))
        else:
            cloze, validation = (cell[0] for cell in row.cells[num_counts + 1 :])
            singles = [] if cloze == MISSING else [f"cloze {cloze}", f"validation {validation}"]
            notes.append(f"{row.name}: perplexity {', '.join([*without_denoising, *singles])}")
    legend = "generative perplexity ± standard error, H entropy in nats, M MAUVE; validation: perplexity, ≤ a bound"
    shown.caption = "\n".join([legend, *notes])
    return shown


def _narrow(line: str) -> str:
    """A line of a cell for the terminal: short names, and errors only of perplexities and accuracies."""
    for name, letter in (("entropy ", "H "), ("MAUVE ", "M ")):
        if line.startswith(name):
            return letter + line.removeprefix(name).split(" ±")[0]
    return line.replace(" ± ", "±").replace("≤ ", "≤")


STEPS_COLUMNS = ("model", "num_steps", "nfe", "generative_perplexity", "entropy", "mauve")


def write_steps(metrics: Metrics, path: Path) -> None:
    """Write what every model measures at every number of steps as one CSV; what was not measured is empty."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(STEPS_COLUMNS)
        for model in metrics.values():
            for sampled in model.samples:
                measured = (getattr(sampled, column) for column in STEPS_COLUMNS[2:])
                values = ["" if estimate is None else estimate.value for estimate in measured]
                writer.writerow([model.model, sampled.num_steps, *values])


def summarize(metrics: Metrics) -> dict[str, dict[str, float]]:
    """Plain numbers for `dvc metrics show`: every model at its fewest and its most steps.

    What was not measured has no key.
    """
    return {name: _summarize_model(model) for name, model in metrics.items()}


def _summarize_model(model: ModelMetrics) -> dict[str, float]:
    summary: dict[str, float] = {}
    for sampled in (*model.samples[:1], *model.samples[-1:]):
        for key in ("generative_perplexity", "entropy", "mauve"):
            _put(summary, f"{key}_{sampled.num_steps}", getattr(sampled, key))
    _put(summary, "cloze_accuracy", model.cloze_accuracy)
    _put(summary, "validation_perplexity", model.validation_perplexity)
    return summary


def _put(summary: dict[str, float], key: str, estimate: Estimate | None) -> None:
    if estimate is not None:
        summary[key] = estimate.value
