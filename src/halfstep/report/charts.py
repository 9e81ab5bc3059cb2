"""The report's figures as data: which lines, on which axes, and the sentence that they come to.

A chart is drawn by `halfstep.report.figures`, and its points are what `dvc plots` draws.
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from halfstep.metrics.estimate import Estimate
from halfstep.report import takeaways
from halfstep.report.results import Curve, Latencies, Metrics, ModelMetrics, SampleMetrics
from halfstep.report.table import autoregressive_of, denoisers_of, describe_model, step_counts
from halfstep.run.files import atomic_path

SampleValue = Callable[[SampleMetrics], Estimate | None]
ModelValue = Callable[[ModelMetrics], Estimate | None]
"""Picks a value out of a model's metrics, or of those of its samples; None is one that was not measured."""

Role = Literal["teacher", "series", "category", "autoregressive", "data"]


@dataclass(frozen=True)
class Style:
    """What a line stands for; colour, marker and dashes follow from it.

    Attributes:
        role: the teacher, one of an ordered series, one of unordered categories, or what these are compared with.
        index: place in the series or among the categories.
        count: how many there are.
    """

    role: Role
    index: int = 0
    count: int = 1


TEACHER, AUTOREGRESSIVE, DATA = Style("teacher"), Style("autoregressive"), Style("data")


@dataclass(frozen=True)
class Point:
    """One point: y with its error bar, x with its range where it was measured."""

    x: float
    y: Estimate
    x_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Line:
    """Points that belong together, by ascending x."""

    label: str
    style: Style
    points: Sequence[Point]
    has_markers: bool = True


@dataclass(frozen=True)
class Reference:
    """A level that the lines are compared with."""

    label: str
    style: Style
    level: Estimate


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        y_label: with the unit.
        lines: may be empty.
        references: horizontal lines.
        is_log: whether y is logarithmic.
        title: over the panel; empty for none.
    """

    y_label: str
    lines: Sequence[Line]
    references: Sequence[Reference] = ()
    is_log: bool = False
    title: str = ""

    @property
    def has_points(self) -> bool:
        """Whether any line has one."""
        return any(line.points for line in self.lines)


@dataclass(frozen=True)
class Chart:
    """One figure.

    Attributes:
        name: file name without ending.
        title: heading over it.
        takeaway: the sentence that its numbers come to.
        caption: what is seen.
        absent: the sentence in its place when it has no points.
        x_label: with the unit.
        panels: row by row.
        x_scale: `linear`, `log`, `steps` (logarithmic, base 2) or `rounds` (0 is the teacher).
        num_columns: of panels.
        top_ticks: a second x axis, value to label, and its title `top_label`.
        orientation: what the paper found in the setting of this run; empty in any other setting.
    """

    name: str
    title: str
    takeaway: str
    caption: str
    absent: str
    x_label: str
    panels: Sequence[Panel]
    x_scale: Literal["linear", "log", "steps", "rounds"] = "linear"
    num_columns: int = 1
    top_ticks: Mapping[float, str] = field(default_factory=dict)
    top_label: str = ""
    orientation: str = ""

    @property
    def has_points(self) -> bool:
        """Whether there is anything to draw."""
        return any(panel.has_points for panel in self.panels)


@dataclass(frozen=True)
class Member:
    """A denoiser that has a line of its own."""

    label: str
    style: Style
    model: ModelMetrics
    latencies: Latencies | None = None


@dataclass(frozen=True)
class Family:
    """A teacher and its students, who have a line over the rounds."""

    label: str
    style: Style
    denoisers: Sequence[ModelMetrics]


def members_of(metrics: Metrics, latencies: Latencies | None) -> list[Member]:
    """The denoisers of one run: the teacher in its own style, the rounds as an ordered series."""
    denoisers = denoisers_of(metrics)
    num_rounds = sum(1 for model in denoisers if model.round_index)
    return [
        Member(
            describe_model(model),
            Style("series", (model.round_index or 0) - 1, num_rounds) if model.round_index else TEACHER,
            model,
            latencies,
        )
        for model in denoisers
    ]


BARS = "Bars show the confidence interval where one was measured, else the standard error."


def steps_chart(members: Sequence[Member], references: Metrics, *, takeaway: str) -> Chart:
    """Generative perplexity over denoising steps, and the entropy of the same samples under it."""

    def lines_of(value_of: SampleValue) -> list[Line]:
        return [Line(member.label, member.style, _by_steps(member.model, value_of)) for member in members]

    return Chart(
        name="steps",
        title="Quality against denoising steps",
        takeaway=takeaway,
        caption=f"Generative perplexity of the samples (above, lower is better) and the entropy of the same samples"
        f" (below). {BARS} A low perplexity at a low entropy is repetition, not quality: read both together, against"
        " the validation text's own values.",
        absent="No samples were scored, so quality is not drawn against denoising steps.",
        x_label="denoising steps",
        panels=_perplexity_and_entropy(lines_of, references),
        x_scale="steps",
    )


def latency_chart(members: Sequence[Member], references: Metrics, *, takeaway: str) -> Chart:
    """Generative perplexity over the time one sample takes."""
    lines, ticks = [], {}
    # Where all share their timings, the range of the first one is that of all.
    has_one_timing = len({id(member.latencies) for member in members}) == 1
    for i, member in enumerate(members):
        timed = {latency.num_steps: latency for latency in (member.latencies.denoiser if member.latencies else ())}
        points = []
        for sampled in member.model.samples:
            latency = timed.get(sampled.num_steps)
            if latency is not None and sampled.generative_perplexity is not None:
                spread = (latency.seconds_min, latency.seconds_max)
                x_range = None if i and has_one_timing else spread
                points.append(Point(latency.seconds, sampled.generative_perplexity, x_range))
                ticks[latency.seconds] = str(sampled.num_steps)
        lines.append(Line(member.label, member.style, points))
    latencies = members[0].latencies if members else None
    autoregressive = autoregressive_of(references)
    if any(line.points for line in lines) and latencies and autoregressive and autoregressive.samples:
        timing, perplexity = latencies.autoregressive, autoregressive.samples[0].generative_perplexity
        if perplexity is not None:
            spread = (timing.seconds_min, timing.seconds_max)
            point = Point(timing.seconds, perplexity, spread)
            lines.append(Line("autoregressive, KV cache", AUTOREGRESSIVE, [point]))
    return Chart(
        name="latency",
        title="Quality against time",
        takeaway=takeaway,
        caption="Generative perplexity against the time for one sample: median, with the fastest and the slowest"
        f" repeat. {BARS} All denoisers of a size have the same network, so one timing per number of steps serves"
        " every round. Entropy stands under the perplexities of the same samples in the figure against denoising"
        " steps.",
        absent="No number of denoising steps was both sampled and timed, so quality is not drawn against time: let"
        " latency.num_steps and sample.num_steps share values.",
        x_label="seconds per sample",
        panels=[
            Panel(
                "generative perplexity",
                lines,
                _data_reference(references, lambda model: model.data_perplexity),
                is_log=True,
            )
        ],
        x_scale="log",
        # The numbers of steps stand over the points where the time depends on them alone.
        top_ticks=ticks if has_one_timing else {},
        top_label="denoising steps",
    )


def mauve_chart(lines: Sequence[Line], references: Sequence[Reference], *, takeaway: str) -> Chart:
    """MAUVE over rounds."""
    return Chart(
        name="mauve",
        title="MAUVE by round",
        takeaway=takeaway,
        caption="Similarity of continuations to the validation text, 1 for the same distribution, with the deviation"
        " over clustering seeds.",
        absent="MAUVE was not measured.",
        x_label="distillation round",
        panels=[Panel("MAUVE", lines, references)],
        x_scale="rounds",
    )


def mauve_lines(denoisers: Sequence[ModelMetrics]) -> list[Line]:
    """One line per number of denoising steps."""
    counts = [
        count
        for count in sorted({sampled.num_steps for model in denoisers for sampled in model.samples})
        if any((at := model.at(count)) and at.mauve for model in denoisers)
    ]
    return [
        Line(f"{count} steps", Style("series", i, len(counts)), _by_round(denoisers, count, _mauve))
        for i, count in enumerate(counts)
    ]


def mauve_by_round(denoisers: Sequence[ModelMetrics], num_steps: int) -> list[Point]:
    """MAUVE over the rounds at one number of denoising steps."""
    return _by_round(denoisers, num_steps, _mauve)


def mauve_references(metrics: Metrics) -> list[Reference]:
    """The teacher at its most denoising steps, and the autoregressive model."""
    teacher = next(iter(denoisers_of(metrics)), None)
    measured = [sampled for sampled in (teacher.samples if teacher else ()) if sampled.mauve is not None]
    found = []
    if measured and measured[-1].mauve is not None:
        found.append(Reference(f"teacher, {measured[-1].num_steps} steps", TEACHER, measured[-1].mauve))
    return [*found, *_autoregressive_reference(metrics, _mauve)]


def rounds_chart(families: Sequence[Family], count: int, references: Metrics, *, takeaway: str) -> Chart:
    """Generative perplexity at one number of steps over rounds, and the entropy of the same samples under it."""

    def lines_of(value_of: SampleValue) -> list[Line]:
        return [Line(family.label, family.style, _by_round(family.denoisers, count, value_of)) for family in families]

    return Chart(
        name="rounds",
        title=f"Quality by round, with {count} denoising step{'' if count == 1 else 's'}",
        takeaway=takeaway,
        caption=f"Generative perplexity (above, lower is better) and the entropy of the same samples (below). {BARS}",
        absent="The experiments have no number of denoising steps in common, so their rounds are not compared.",
        x_label="distillation round",
        panels=_perplexity_and_entropy(lines_of, references),
        x_scale="rounds",
    )


def cloze_chart(families: Sequence[Family], references: Metrics, *, takeaway: str) -> Chart:
    """Accuracy and perplexity of the last word of passages over rounds."""
    panels = []
    for label, value_of, is_log in (
        ("cloze accuracy (%)", _cloze_percent, False),
        ("cloze perplexity", lambda model: model.cloze_perplexity, True),
    ):
        lines = [
            Line(
                family.label,
                family.style,
                [
                    Point(model.round_index or 0, value)
                    for model in family.denoisers
                    if (value := value_of(model)) is not None
                ],
            )
            for family in families
        ]
        autoregressive = autoregressive_of(references)
        level = value_of(autoregressive) if autoregressive else None
        found = [] if level is None else [Reference("autoregressive", AUTOREGRESSIVE, level)]
        panels.append(Panel(label, lines, found, is_log=is_log))
    return Chart(
        name="cloze",
        title="Cloze accuracy and perplexity by round",
        takeaway=takeaway,
        caption="The last word of passages in LAMBADA's form: the share that the model completes (above, higher is"
        f" better), and the perplexity of the right word (below, lower is better). {BARS}",
        absent="There are no cloze passages in this data, so cloze accuracy was not measured.",
        x_label="distillation round",
        panels=panels,
        x_scale="rounds",
    )


def time_loss_chart(members: Sequence[Member], *, takeaway: str) -> Chart:
    """The validation loss over the diffusion time."""
    lines = [
        Line(
            member.label,
            member.style,
            [
                Point((bucket.t_low + bucket.t_high) / 2, bucket.nats_per_token)
                for bucket in member.model.loss_by_time
                if bucket.nats_per_token is not None
            ],
        )
        for member in members
    ]
    panels = [Panel("validation loss (nats per token)", lines)]
    taught = {point.x: point.y.value for line in lines[:1] for point in line.points if line.style == TEACHER}
    if taught and len(lines) > 1:
        differences = [
            Line(
                line.label,
                line.style,
                [_bare_point(point.x, point.y.value - taught[point.x]) for point in line.points if point.x in taught],
            )
            for line in lines[1:]
        ]
        zero = Reference("teacher", TEACHER, Estimate(0.0, None, 0, "nats"))
        panels.append(Panel("difference to the teacher (nats)", differences, [zero]))
    return Chart(
        name="loss_by_time",
        title="Validation loss by diffusion time",
        takeaway=takeaway,
        caption="The integrand of the bound on the negative log-likelihood, averaged in equal parts of the time: 0 is"
        f" clean text, 1 all masked. The mean over the parts is the validation loss. {BARS} The"
        " differences (below) have none: every model sees the same noise, which makes them more certain than the bars"
        " above.",
        absent="The loss by diffusion time was not measured.",
        x_label="diffusion time t",
        panels=panels,
    )


def together_chart(together: Mapping[int, Estimate], *, takeaway: str) -> Chart:
    """How many tokens come at once."""
    points = [Point(num_steps, spread) for num_steps, spread in together.items()]
    one = Estimate(1.0, None, 0, "tokens")
    return Chart(
        name="unmasking",
        title="Tokens that unmask together",
        takeaway=takeaway,
        caption="Tokens of a sample that are drawn in the same denoising step, without regard to one another: mean over"
        " tokens, with the range of the middle 90 % of them. Which tokens these are is drawn from the seed and does"
        " not depend on the model, so this holds for every round.",
        absent="No unconditional samples were drawn, so the tokens that unmask together were not counted.",
        x_label="denoising steps",
        panels=[
            Panel(
                "tokens drawn together",
                [Line("denoisers", Style("series", 0, 1), points)],
                [Reference("one at a time (autoregressive)", AUTOREGRESSIVE, one)] if points else [],
                is_log=True,
            )
        ],
        x_scale="steps",
    )


def training_chart(members: Sequence[Member], curves: Mapping[str, Curve], distance: str, *, takeaway: str) -> Chart:
    """Loss and validation loss over optimizer steps: models trained on the data left, students right."""

    def lines(of: Sequence[tuple[str, Style, str]], column: str) -> list[Line]:
        return [
            Line(
                label, style, [_bare_point(*point) for point in curves.get(name, {}).get(column, ())], column != "loss"
            )
            for label, style, name in of
        ]

    on_data = [(m.label, m.style, m.model.model) for m in members if not m.model.round_index]
    on_data += [("autoregressive", AUTOREGRESSIVE, name) for name in curves if name == "ar"]
    students = [(m.label, m.style, m.model.model) for m in members if m.model.round_index]
    unit = ", nats" if distance.startswith("kl") else ""
    columns = [("trained on the data", "loss (nats per token)", on_data, False)]
    if students:
        columns.append(("distilled", f"{distance}{unit}", students, True))
    above = [Panel(label, lines(of, "loss"), title=title, is_log=log) for title, label, of, log in columns]
    below = [Panel("validation loss (nats per token)", lines(of, "valid_loss")) for _, _, of, _ in columns]
    return Chart(
        name="training",
        title="Training",
        takeaway=takeaway,
        caption="Loss over optimizer steps, and the loss on validation text. Of denoisers the latter is an upper"
        " bound of the negative log-likelihood, for students too; the training loss of a student is its distance"
        " from its teacher.",
        absent="No model was trained here: all were given.",
        x_label="optimizer steps",
        panels=[*above, *below],
        num_columns=len(columns),
    )


PAPER = {
    "latency": "In the paper a student with 16 steps is up to 8 times as fast as the autoregressive model with its KV"
    " cache, with 32 steps 4 times: untrained models of 1.3B parameters, batches of 8, on an A100"
    " (arXiv:2410.21035v2, Section 4.4).",
    "steps": "In the paper the last student with 32 steps has a lower generative perplexity than its teacher with 1024"
    " (arXiv:2410.21035v2, Section 3.1 and Figure 4). Its samples were drawn in bfloat16; exact draws, as here, give"
    " higher values (its Appendix A and Figure 9).",
    "cloze": "In the paper the students trained with reverse KL come out slightly above their teacher in LAMBADA"
    " accuracy (arXiv:2410.21035v2, Section 4.1 and Figure 2).",
    "mauve": "In the paper the teacher at 128 steps is the line to compare with (arXiv:2410.21035v2, Section 4.1 and"
    " Figure 5).",
}
"""By chart, what the paper states in words; its figures print no values that could be drawn in."""


def charts_of(
    metrics: Metrics,
    latencies: Latencies | None,
    curves: Mapping[str, Curve],
    together: Mapping[int, Estimate],
    *,
    distance: str,
    preset: str,
) -> list[Chart]:
    """Every figure of the report of one run, in the order of the page; those without points too.

    Args:
        metrics: of every model.
        latencies: None if they were not measured.
        curves: of every model.
        together: of `tokens_together`, of a denoiser.
        distance: name of the distillation loss.
        preset: whose name begins with `paper` where the setting is the paper's.
    """
    members = members_of(metrics, latencies)
    denoisers = denoisers_of(metrics)
    family = Family(f"denoiser, {distance}", Style("series", 0, 1), denoisers)
    charts = [
        latency_chart(members, metrics, takeaway=takeaways.of_latency(metrics, latencies)),
        steps_chart(members, metrics, takeaway=takeaways.of_steps(metrics)),
        cloze_chart([family], metrics, takeaway=takeaways.of_cloze(metrics)),
        mauve_chart(mauve_lines(denoisers), mauve_references(metrics), takeaway=takeaways.of_mauve(metrics)),
        time_loss_chart(members, takeaway=takeaways.of_time_loss(metrics)),
        together_chart(together, takeaway=takeaways.of_together(together)),
        training_chart(members, curves, distance, takeaway=takeaways.of_training(metrics, curves)),
    ]
    if preset.startswith("paper"):
        charts = [replace(chart, orientation=PAPER.get(chart.name, "")) for chart in charts]
    return charts


POINT_COLUMNS = ("panel", "series", "x", "y", "y_low", "y_high")


def write_points(chart: Chart, path: Path) -> None:
    """Write a chart's points as CSV for `dvc plots`; a reference is a line between the ends of the panel."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(POINT_COLUMNS)
        for i, panel in enumerate(chart.panels):
            column = chart.panels[i % chart.num_columns].title
            name = f"{column}: {panel.y_label}" if column else panel.y_label
            for line in panel.lines:
                for point in line.points:
                    writer.writerow([name, line.label, point.x, point.y.value, *bar(point.y)])
            ends = sorted({point.x for line in panel.lines for point in line.points})
            for reference in panel.references if ends else ():
                for x in {ends[0]: None, ends[-1]: None}:
                    writer.writerow([name, reference.label, x, reference.level.value, *bar(reference.level)])


def bar(estimate: Estimate) -> tuple[float, float]:
    """Ends of the error bar: the confidence interval if it was measured, else one standard error either way."""
    if estimate.interval is not None:
        return estimate.interval
    error = estimate.standard_error or 0.0
    return estimate.value - error, estimate.value + error


def common_step_counts(runs: Sequence[Metrics]) -> list[int]:
    """Every number of denoising steps that all runs have samples of, ascending."""
    counts = [set(step_counts(metrics)) for metrics in runs]
    return sorted(set.intersection(*counts)) if counts else []


def _perplexity(sampled: SampleMetrics) -> Estimate | None:
    return sampled.generative_perplexity


def _entropy(sampled: SampleMetrics) -> Estimate | None:
    return sampled.entropy


def _mauve(sampled: SampleMetrics) -> Estimate | None:
    return sampled.mauve


def _cloze_percent(model: ModelMetrics) -> Estimate | None:
    accuracy = model.cloze_accuracy
    if accuracy is None:
        return None
    error = None if accuracy.standard_error is None else 100 * accuracy.standard_error
    interval = accuracy.interval and (100 * accuracy.interval[0], 100 * accuracy.interval[1])
    return Estimate(100 * accuracy.value, error, accuracy.count, "%", interval)


def _perplexity_and_entropy(lines_of: Callable[[SampleValue], list[Line]], references: Metrics) -> list[Panel]:
    """Perplexity and, under it, the entropy of the same samples: neither is shown without the other."""
    return [
        Panel(
            label,
            lines_of(value_of),
            [*_autoregressive_reference(references, value_of), *_data_reference(references, data_of)],
            is_log=is_log,
        )
        for label, value_of, data_of, is_log in (
            ("generative perplexity", _perplexity, lambda model: model.data_perplexity, True),
            ("entropy (nats)", _entropy, lambda model: model.data_entropy, False),
        )
    ]


def _by_steps(model: ModelMetrics, value_of: SampleValue) -> list[Point]:
    return [Point(sampled.num_steps, value) for sampled in model.samples if (value := value_of(sampled)) is not None]


def _by_round(denoisers: Sequence[ModelMetrics], count: int, value_of: SampleValue) -> list[Point]:
    return [
        Point(model.round_index or 0, value)
        for model in denoisers
        if (sampled := model.at(count)) is not None and (value := value_of(sampled)) is not None
    ]


def _autoregressive_reference(metrics: Metrics, value_of: SampleValue) -> list[Reference]:
    autoregressive = autoregressive_of(metrics)
    if autoregressive is None or not autoregressive.samples:
        return []
    level = value_of(autoregressive.samples[0])
    return [] if level is None else [Reference("autoregressive", AUTOREGRESSIVE, level)]


def _data_reference(metrics: Metrics, value_of: ModelValue) -> list[Reference]:
    level = next((value for model in metrics.values() if (value := value_of(model)) is not None), None)
    return [] if level is None else [Reference("validation text", DATA, level)]


def _bare_point(step: float, value: float) -> Point:
    return Point(step, Estimate(value, None, 1, "nats"))
