"""The page: one self-contained HTML file about one experiment, or about several side by side."""

import base64
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from halfstep.data.tokenizer import load_tokenizer
from halfstep.metrics.record import Record
from halfstep.report import compared, frontier, solved
from halfstep.report.charts import Chart, Member, charts_of, members_of, shared_references, write_points
from halfstep.report.compared import contenders_of
from halfstep.report.experiment import Experiment, Latency, differing_params, labels_of
from halfstep.report.figures import draw_figures
from halfstep.report.frontier import not_reached, sentences, write_rows
from halfstep.report.published import published_table
from halfstep.report.records import (
    MISSING,
    autoregressive_of,
    denoisers_of,
    describe_drawn,
    describe_model,
    drawn_of,
    format_number,
)
from halfstep.report.render import render
from halfstep.report.samples import Sample, browser_data, load_samples
from halfstep.report.solved import SOLVED_HEADER, Solved, write_solved
from halfstep.report.table import NOTES, Table, further_tables, results_table, summarize, write_steps
from halfstep.report.words import best_of, warnings_of
from halfstep.run.files import atomic_path, write_json

UNKNOWN_TIME = "restored from cache: it did not run on this machine, or its record is gone"


def write_report(folder: Path, experiment: Experiment) -> None:
    """Write the report of one experiment: index.html, figures/, plots/, steps.csv, summary.json and the frontier.

    Args:
        folder: gets them; other files in it are left alone.
        experiment: what the stages before wrote.
    """
    charts = charts_of([experiment])
    for chart in charts:
        write_points(chart, folder / "plots" / f"{chart.name}.csv")
    images = draw_figures(charts)
    with atomic_path(folder / "figures") as figures_folder:
        figures_folder.mkdir()
        for name, formats in images.items():
            for ending, content in formats.items():
                (figures_folder / f"{name}.{ending}").write_bytes(content)
    write_steps(experiment.records, folder / "steps.csv")
    write_json(folder / "summary.json", summarize(experiment.records))
    if experiment.frontier is not None:
        write_rows(experiment.frontier, folder)
    if experiment.solved is not None:
        write_solved(experiment.solved, folder)
    _write(folder / "index.html", [experiment], charts, images)


def write_page(path: Path, experiments: Sequence[Experiment]) -> None:
    """Write the page about experiments, in the order wanted: one file that loads nothing."""
    labelled = [replace(e, label=label) for e, label in zip(experiments, labels_of(experiments), strict=True)]
    charts = charts_of(labelled)
    _write(path, labelled, charts, draw_figures(charts))


def _write(
    path: Path, experiments: Sequence[Experiment], charts: Sequence[Chart], images: Mapping[str, Mapping[str, bytes]]
) -> None:
    members, references = members_of(experiments), shared_references(experiments)
    further = [(member.label, member.record) for member in members]
    if autoregressive := autoregressive_of(references):
        further.insert(0, (describe_model(autoregressive), autoregressive))
    differing, tables = differing_params(experiments), _frontier_tables(experiments)
    if any(experiment.solved for experiment in experiments):
        # A task is solved or not: what is said of texts was not measured.
        charts = [replace(chart, absent="") for chart in charts if chart.name in images or chart.name == "latency"]
    content = {
        "experiments": experiments,
        "headline": _headline(experiments),
        "warnings": [*_unlike(experiments), *warnings_of(experiments)],
        "differing": Table(
            ("parameter", *(experiment.name for experiment in experiments)),
            [((name,), *((value,) for value in row)) for name, row in differing.items()],
        ),
        "results": results_table(
            [(tuple(dict.fromkeys((m.label, describe_model(m.record)))), m.record) for m in members], references
        ),
        "notes": NOTES,
        "further": further_tables(further),
        "charts": charts,
        "images": {name: base64.b64encode(image["svg"]).decode("ascii") for name, image in images.items()},
        "latencies": _latencies(experiments),
        "browser": _browser(experiments, members),
        "frontier_tables": tables,
        "not_reached": [
            _labelled(experiment, sentence)
            for experiment in experiments
            if experiment.frontier and (sentence := not_reached(experiment.frontier))
        ],
        "published": published_table() if len(experiments) > 1 and tables else None,
        "puzzles": _puzzles(experiments),
        "counts": [_labelled(experiment, line) for experiment in experiments for line in counts_of(experiment)],
        "stages": [(experiment.label, stages_table(experiment)) for experiment in experiments],
        "versions": versions(),
    }
    with atomic_path(path) as temporary:
        temporary.write_text(render("page.html.j2", content), encoding="utf-8")


def _labelled(experiment: Experiment, sentence: str) -> str:
    return f"{experiment.label}: {sentence}" if experiment.label else sentence


def _headline(experiments: Sequence[Experiment]) -> list[str]:
    """The answer first."""
    absent = "Nothing was drawn at several temperatures, so models cannot be compared at equal entropy."
    without = [_labelled(each, absent) for each in experiments if each.solved is None and each.frontier is None]
    if len(experiments) > 1:
        metrics = ("validation_perplexity", "cloze_perplexity")
        best = filter(None, (best_of(experiments, metric) for metric in metrics))
        return [*compared.sentences(contenders_of(experiments)), *without, *best]
    (experiment,) = experiments
    if experiment.solved is not None:
        return solved.sentences(experiment.solved)
    return sentences(experiment.frontier) if experiment.frontier else without


def _frontier_tables(experiments: Sequence[Experiment]) -> list[Table]:
    """By budget, and of one experiment by round; of several the last models side by side."""
    if len(experiments) > 1:
        return compared.frontier_tables(contenders_of(experiments))
    tables = []
    for found in filter(None, (experiment.frontier for experiment in experiments)):
        num_columns = 5 if found.students else 3
        budgets = []
        for budget, way, perplexity, needed, its_way, its_perplexity, ratio in frontier.budget_rows(found):
            cells = (budget,), (perplexity, way), (needed,), (its_perplexity, its_way), (ratio,)
            # What was not measured is one dash.
            budgets.append([tuple(dict.fromkeys(cell)) for cell in cells[:num_columns]])
        tables.append(Table(frontier.BUDGET_HEADER[:num_columns], budgets))
        if found.students:
            header, rows = frontier.round_rows(found)
            tables.append(Table(header, [tuple((cell,) for cell in row) for row in rows]))
    return tables


def _puzzles(experiments: Sequence[Experiment]) -> list[tuple[int, Table]]:
    """For each kind of puzzle: shares, and under them the ways."""
    if len(experiments) > 1:
        return compared.solved_tables(contenders_of(experiments))
    (experiment,) = experiments
    return _solved_tables(experiment.solved) if experiment.solved else []


def _solved_tables(found: Solved) -> list[tuple[int, Table]]:
    tables = []
    for givens in found.givens:
        rows = []
        for budget, way, share, ancestral, its_way, its_share in solved.budget_rows(found, givens):
            cells = (budget,), (share, way), (ancestral,), (its_share, its_way)
            # What was not measured is one dash.
            rows.append([tuple(dict.fromkeys(cell)) for cell in cells[: 4 if found.students else 3]])
        tables.append((givens, Table(SOLVED_HEADER[: len(rows[0])], rows)))
    return tables


def _unlike(experiments: Sequence[Experiment]) -> list[str]:
    """What makes the experiments differ in more than they say."""
    found = []
    scorers = {denoisers_of(experiment.records)[-1].scorer for experiment in experiments}
    baselines = [autoregressive_of(experiment.records) for experiment in experiments]
    same_baseline = all(each and baselines[0] and each.rows == baselines[0].rows for each in baselines[1:])
    is_judged = not any(experiment.solved for experiment in experiments)
    if is_judged and (len(scorers) > 1 or (scorers == {"models/ar"} and not same_baseline)):
        found.append(
            "The experiments were scored by different models: their generative perplexities and MAUVE are not on one"
            " scale, and no common reference is drawn."
        )
    rounds = {denoisers_of(experiment.records)[-1].round_index or 0 for experiment in experiments}
    if len(rounds) > 1:
        found.append(f"The last students are of different rounds ({', '.join(map(str, sorted(rounds)))}).")
    return found


def _latencies(experiments: Sequence[Experiment]) -> list[tuple[str, str, Table]]:
    """What was timed, in words, and the times: once for the experiments that share them, named unless all do."""
    sharing: dict[Latency, list[str]] = {}
    for experiment in experiments:
        if experiment.latency:
            sharing.setdefault(experiment.latency, []).append(experiment.label)
    return [
        ("" if len(labels) == len(experiments) else ", ".join(labels), latency.conditions, latency_table(latency))
        for latency, labels in sharing.items()
    ]


def latency_table(latency: Latency) -> Table:
    """The table of times, the autoregressive model last."""
    reference = latency.autoregressive
    header = ("", "network evaluations", "seconds per sample", "tokens per second", "times as fast")
    rows = []
    for timing in (*latency.denoiser, reference):
        name = describe_drawn(*timing.drawn) if timing.drawn else "autoregressive, KV cache"
        numbers = (timing.nfe, timing.seconds, timing.tokens_per_second)
        speed = f"{reference.seconds / timing.seconds:.2f}"
        rows.append(((name,), *((format_number(number),) for number in numbers), (speed,)))
    return Table(header, rows)


def stages_table(experiment: Experiment) -> Table:
    """How long each stage took, on what; a stage without a record says so."""
    rows = []
    for stage, found in experiment.stage_times.items():
        where = f"{found.hardware}; {found.versions}" if found else UNKNOWN_TIME
        rows.append(((stage,), (f"{found.seconds:,.1f}" if found else MISSING,), (where,)))
    return Table(("stage", "seconds", "on"), rows)


def counts_of(experiment: Experiment) -> list[str]:
    """What was measured on how much, in words."""
    records = list(experiment.records.values())
    retokenized = (
        ", which has another tokenizer: samples were decoded and tokenized again" if records[0].is_retokenized else ""
    )
    lines = [f"Scorer of generative perplexity: {records[0].scorer}{retokenized}."]
    for title, metric in (
        ("Samples of each model in each setting", "generative_perplexity"),
        ("Samples behind each MAUVE", "mauve"),
        ("Cloze passages", "cloze_accuracy"),
        ("Count behind each validation perplexity", "validation_perplexity"),
    ):
        counts = {row.estimate.count for record in records for row in record.rows if row.metric == metric}
        if counts:
            lines.append(f"{title}: {' to '.join(f'{count:,}' for count in sorted({min(counts), max(counts)}))}.")
    sizes = {record.kind: record.num_parameters for record in records}
    return [*lines, *(f"Parameters of the {kind}: {size:,}." for kind, size in sizes.items())]


def versions() -> dict[str, str]:
    """Of what makes the page."""
    packages = ("halfstep", "torch", "transformers", "mauve-text", "matplotlib", "dvc")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _in_lines(pieces: Sequence[str]) -> tuple[str, ...]:
    """BOS, and beneath it the rows of a grid; two EOS end it."""
    size = math.isqrt(len(pieces) - 3)
    return tuple(piece + "\n" if i in range(0, size**2, size) else piece for i, piece in enumerate(pieces))


def _browser(experiments: Sequence[Experiment], members: Sequence[Member]) -> dict[str, Any]:
    """The first samples of every model on the page whose samples are at hand.

    The player begins with the last student at its fewest steps, beside the first model.
    """
    samples: list[Sample] = []
    titles: dict[str, str] = {}
    for i, experiment in enumerate(experiments):
        folder, tokenizer = experiment.folder / "samples", experiment.folder / "data" / "tokenizer"
        shown: list[tuple[str, Record]] = [(m.label, m.record) for m in members if m.experiment is experiment]
        if len(experiments) == 1 and (autoregressive := autoregressive_of(experiment.records)):
            shown.append((describe_model(autoregressive), autoregressive))
        if folder.is_dir() and tokenizer.is_dir():
            models = [record.model for _, record in shown]
            found = load_samples(folder, models, load_tokenizer(tokenizer).decode)
            if experiment.solved:
                found = [replace(sample, pieces=_in_lines(sample.pieces)) for sample in found]
            samples += [replace(sample, model=f"{i}/{sample.model}") for sample in found]
            titles |= {f"{i}/{record.model}": label for label, record in shown}
    last = members[-1].label
    few = [describe_drawn(*drawn) for drawn in drawn_of([members[-1].record])[:1]]
    start = {"models": [members[0].label, last], "setting": few[0] if few else ""}
    return {**browser_data(samples, titles), "start": start}
