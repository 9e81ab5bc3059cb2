"""Several experiments on one page: one line each, one table."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from halfstep.report import charts, takeaways
from halfstep.report.charts import Chart, Family, Line, Member, Style
from halfstep.report.experiments import Experiment, differing_params, labels_of
from halfstep.report.figures import draw_figures
from halfstep.report.headline import warnings_of
from halfstep.report.page import encode_images, table_notes, versions, write_page
from halfstep.report.results import Metrics, ModelMetrics
from halfstep.report.samples import browser_data
from halfstep.report.table import (
    RoundsTable,
    Row,
    autoregressive_of,
    denoisers_of,
    describe_model,
    sample_cell,
    single_cells,
)


def write_comparison(path: Path, experiments: Sequence[Experiment]) -> None:
    """Write the page that compares experiments by their last students.

    Args:
        path: the page; one file that loads nothing.
        experiments: two or more, in the order wanted.
    """
    labels = labels_of(experiments)
    drawn_charts = comparison_charts(experiments, labels)
    with TemporaryDirectory(prefix="halfstep-figures-") as folder:
        images = encode_images(draw_figures(drawn_charts, Path(folder)))
    counts = charts.common_step_counts([experiment.metrics for experiment in experiments])
    differing = differing_params(experiments)
    samples = [
        replace(sample, model=f"{i}/{sample.model}")
        for i, experiment in enumerate(experiments)
        for sample in experiment.samples
    ]
    titles = {
        f"{i}/{name}": f"{label}: {describe_model(model)}"
        for i, (label, experiment) in enumerate(zip(labels, experiments, strict=True))
        for name, model in experiment.metrics.items()
    }
    units = {
        f"{i}/{name}": "tokens" if model.round_index is None else "denoising steps"
        for i, experiment in enumerate(experiments)
        for name, model in experiment.metrics.items()
    }
    shown = [titles[f"{i}/{_last(experiment.metrics).model}"] for i, experiment in enumerate(experiments)]
    content = {
        "names": [experiment.name for experiment in experiments],
        "labels": labels,
        "params_rows": [(name, *map(str, row)) for name, row in differing.items()],
        "warnings": comparison_warnings(experiments, labels),
        "table": comparison_table(experiments, labels, counts),
        "table_notes": table_notes({label: _last(e.metrics) for label, e in zip(labels, experiments, strict=True)}),
        "charts": drawn_charts,
        "images": images,
        "browser": browser_data(samples, titles, units),
        "browser_start": {"models": [shown[0], shown[-1]], "steps": min(counts, default=0)},
        "versions": versions(),
    }
    write_page(path, "compare.html.j2", content)


def comparison_charts(experiments: Sequence[Experiment], labels: Sequence[str]) -> list[Chart]:
    """The figures: one line per experiment, and the teachers, of which equal ones are drawn once."""
    runs = [(label, experiment.metrics) for label, experiment in zip(labels, experiments, strict=True)]
    members, families = [], []
    for i, (label, experiment) in enumerate(zip(labels, experiments, strict=True)):
        style = Style("category", i, len(experiments))
        members.append(Member(label, style, _last(experiment.metrics), experiment.latencies))
        families.append(Family(label, style, denoisers_of(experiment.metrics)))
    members = [*_teachers(experiments, labels), *members]
    references = _shared_references(experiments)
    counts = charts.common_step_counts([metrics for _, metrics in runs])
    fewest = min(counts, default=0)

    def verdict(value_of: str, title: str, *, lower_is_better: bool, at: int | None = fewest) -> str:
        return takeaways.of_experiments(runs, value_of, at, title, lower_is_better=lower_is_better)

    perplexity = verdict("generative_perplexity", "generative perplexity", lower_is_better=True)
    entropy = verdict("entropy", "entropy of its samples", lower_is_better=False)
    mauve_lines = [
        Line(family.label, family.style, charts.mauve_by_round(family.denoisers, fewest)) for family in families
    ]
    mauve = charts.mauve_chart(
        mauve_lines,
        charts.mauve_references(references),
        takeaway=verdict("mauve", "MAUVE", lower_is_better=False),
    )
    return [
        charts.latency_chart(
            members,
            references,
            takeaway=verdict(
                "generative_perplexity", "generative perplexity", lower_is_better=True, at=max(counts, default=0)
            ),
        ),
        charts.steps_chart(members, references, takeaway=f"{perplexity} {entropy}".strip()),
        charts.rounds_chart(families, fewest, references, takeaway=f"{perplexity} {entropy}".strip()),
        charts.cloze_chart(
            families,
            references,
            takeaway=verdict("cloze_accuracy", "cloze accuracy", lower_is_better=False, at=None),
        ),
        replace(mauve, title=f"MAUVE by round, with {fewest} denoising steps"),
        charts.time_loss_chart(
            members,
            takeaway=verdict(
                "validation_perplexity", "bound on the validation perplexity", lower_is_better=True, at=None
            ),
        ),
    ]


def comparison_table(experiments: Sequence[Experiment], labels: Sequence[str], counts: Sequence[int]) -> RoundsTable:
    """One row per experiment, its last student, and the teachers before them."""
    header = ("round", *(f"{count} steps" for count in counts), "cloze accuracy", "validation perplexity")
    members = [
        *_teachers(experiments, labels),
        *(Member(label, charts.TEACHER, _last(e.metrics)) for label, e in zip(labels, experiments, strict=True)),
    ]
    rows = [
        Row(
            member.label,
            (
                (describe_model(member.model),),
                *(sample_cell(member.model.at(count)) for count in counts),
                *single_cells(member.model),
            ),
        )
        for member in members
    ]
    return RoundsTable(header, tuple(rows))


def comparison_warnings(experiments: Sequence[Experiment], labels: Sequence[str]) -> list[str]:
    """What makes the experiments differ in more than they say, or mean less than they seem to."""
    found = []
    scorers = {experiment.params.get("evaluate.scorer") for experiment in experiments}
    baselines = {autoregressive_of(experiment.metrics) for experiment in experiments}
    if len(scorers) > 1 or ("models/ar" in scorers and len(baselines) > 1):
        found.append(
            "The experiments were scored by different models: their generative perplexities and MAUVE are not on one"
            " scale, and no common reference is drawn."
        )
    rounds = {_last(experiment.metrics).round_index for experiment in experiments}
    if len(rounds) > 1:
        found.append(
            f"The last students are of different rounds ({', '.join(map(str, sorted(rounds, key=lambda k: k or 0)))})."
        )
    for label, experiment in zip(labels, experiments, strict=True):
        found += [f"{label}: {warning}" for warning in warnings_of(experiment.metrics)[:1]]
    return found


def last_student(metrics: Metrics) -> str:
    """Name of the student of the last round, of the teacher where there are no rounds."""
    return _last(metrics).model


def _last(metrics: Metrics) -> ModelMetrics:
    return denoisers_of(metrics)[-1]


def _teachers(experiments: Sequence[Experiment], labels: Sequence[str]) -> list[Member]:
    """The first teachers, each once; an experiment without rounds has its teacher for a last student."""
    distinct: list[tuple[str, Experiment, ModelMetrics]] = []
    for label, experiment in zip(labels, experiments, strict=True):
        teacher = denoisers_of(experiment.metrics)[0]
        if all(teacher != known for _, _, known in distinct):
            distinct.append((label, experiment, teacher))
    if len(distinct) == 1:
        _, experiment, teacher = distinct[0]
        return [Member("teacher", charts.TEACHER, teacher, experiment.latencies)]
    return [
        Member(f"teacher of {label}", Style("teacher", i, len(distinct)), teacher, experiment.latencies)
        for i, (label, experiment, teacher) in enumerate(distinct)
    ]


def _shared_references(experiments: Sequence[Experiment]) -> Metrics:
    """The metrics of the first experiment if all have its autoregressive model and text, else none."""

    def reference(metrics: Metrics) -> Any:
        return autoregressive_of(metrics), _last(metrics).data_perplexity, _last(metrics).data_entropy

    first, *others = (experiment.metrics for experiment in experiments)
    return first if all(reference(metrics) == reference(first) for metrics in others) else {}
