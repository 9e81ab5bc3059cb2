"""The page's figures as data: which lines, on which axes, and the sentences that they come to.

A chart is drawn by `halfstep.report.figures`, and its points are what `dvc plots` draws.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from halfstep.metrics.estimate import Estimate
from halfstep.metrics.frontier import AtEntropy, FrontierRow
from halfstep.metrics.record import Record
from halfstep.report import words
from halfstep.report.compared import Contender, contenders_of, kinds_of
from halfstep.report.experiment import Experiment
from halfstep.report.frontier import Frontier, lowest_front
from halfstep.report.records import (
    ANCESTRAL,
    Drawn,
    Records,
    autoregressive_of,
    denoisers_of,
    describe_drawn,
    describe_model,
    drawn_of,
    in_words,
    own_value,
    steps_of,
)
from halfstep.report.samples import tokens_together
from halfstep.report.solved import rising_front, share_of
from halfstep.run.files import write_csv
from halfstep.settings.graph import FIRST_TEACHER


@dataclass(frozen=True)
class Style:
    """What a line shows; colour, marker and dashes follow from it.

    Attributes:
        role: the teacher, one of an ordered series, one of unordered categories, or what these are compared with.
        index: place in the series or among the categories.
        count: how many there are.
        variant: which sampler drew its samples.
    """

    role: Literal["teacher", "series", "category", "autoregressive", "data"]
    index: int = 0
    count: int = 1
    variant: int = 0


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
    """One pair of axes: y's label with its unit, lines that may be empty, horizontal references."""

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
        caption: what its reader must know.
        absent: the sentence in its place when it has no points.
        x_label: with the unit.
        panels: row by row.
        takeaways: what its numbers come to, a sentence for each experiment.
        x_scale: `linear`, `log`, `steps` (logarithmic, base 2, labels at the points), `evaluations` (at powers of two)
            or `rounds` (0 is the teacher).
        num_columns: of panels.
        top_ticks: a second x axis of denoising steps, value to label.
    """

    name: str
    title: str
    caption: str
    absent: str
    x_label: str
    panels: Sequence[Panel]
    takeaways: Sequence[str] = ()
    x_scale: Literal["linear", "log", "steps", "evaluations", "rounds"] = "linear"
    num_columns: int = 1
    top_ticks: Mapping[float, str] = field(default_factory=dict)

    @property
    def has_points(self) -> bool:
        """Whether there is anything to draw."""
        return any(panel.has_points for panel in self.panels)


@dataclass(frozen=True)
class Member:
    """A denoiser that has a line and a row of its own."""

    label: str
    style: Style
    record: Record
    experiment: Experiment


def members_of(experiments: Sequence[Experiment]) -> list[Member]:
    """Of one experiment the teacher and every student; of several the last students, after their distinct teachers."""
    if len(experiments) == 1:
        (experiment,) = experiments
        denoisers = denoisers_of(experiment.records)
        styles = [TEACHER, *(Style("series", i, len(denoisers) - 1) for i in range(len(denoisers) - 1))]
        return [
            Member(describe_model(record), style, record, experiment)
            for record, style in zip(denoisers, styles, strict=True)
        ]
    teachers: list[Member] = []
    lasts = []
    for i, experiment in enumerate(experiments):
        teacher, *_ = [*_, last] = denoisers_of(experiment.records)
        if all(teacher.rows != known.record.rows for known in teachers):
            label = f"teacher of {experiment.label}"
            teachers.append(Member(label, Style("teacher", len(teachers)), teacher, experiment))
        lasts.append(Member(experiment.label, Style("category", i, len(experiments)), last, experiment))
    return [*([replace(teachers[0], label="teacher")] if len(teachers) == 1 else teachers), *lasts]


def shared_references(experiments: Sequence[Experiment]) -> Records:
    """The records of the first experiment if all have its autoregressive model and text, else none."""

    def compared(records: Records) -> object:
        autoregressive, any_model = autoregressive_of(records), next(iter(records.values()))
        of_text = any_model.get("data_generative_perplexity"), any_model.get("data_entropy")
        return autoregressive and autoregressive.rows, of_text

    first, *others = (experiment.records for experiment in experiments)
    return first if all(compared(records) == compared(first) for records in others) else {}


def common_drawn(experiments: Sequence[Experiment]) -> list[Drawn]:
    """The settings in which the last students of all experiments were drawn from."""
    first, *others = (drawn_of(denoisers_of(experiment.records)[-1:]) for experiment in experiments)
    return [drawn for drawn in first if all(drawn in other for other in others)]


BARS = "Bars: the 95 % interval where there is one, else a standard error."
ENTROPY_MATTERS = "A low perplexity at a low entropy is repetition, not quality."


def charts_of(experiments: Sequence[Experiment]) -> list[Chart]:
    """Every figure, in the order of the page; those without points too."""
    members, references = members_of(experiments), shared_references(experiments)
    charts = [
        _frontier_chart(experiments, references, "equivalent_evaluations"),
        _frontier_chart(experiments, references, "seconds_per_sample"),
        _latency_chart(members, references),
        _steps_chart(members, references),
        _rounds_chart(experiments, references),
        _cloze_chart(experiments, references),
        _time_loss_chart(members),
        _together_chart(experiments),
        _training_chart(members, references),
    ]
    return [replace(chart, takeaways=_takeaways(experiments, TAKEAWAYS.get(chart.name))) for chart in charts]


TAKEAWAYS: dict[str, Callable[[Experiment], str]] = {
    "cloze": words.of_cloze,
    "training": words.of_training,
}


def _takeaways(experiments: Sequence[Experiment], of: Callable[[Experiment], str] | None) -> list[str]:
    if of is None:
        return []
    found = [(f"{experiment.label}: " if experiment.label else "", of(experiment)) for experiment in experiments]
    return [label + sentence for label, sentence in found if sentence]


def _perplexity_and_entropy(lines_of: Callable[[str], list[Line]], references: Records) -> list[Panel]:
    """Perplexity and, under it, the entropy of the same samples: neither is shown without the other."""
    return [
        Panel(label, lines_of(metric), _references(references, metric, f"data_{metric}"), is_log=is_log)
        for label, metric, is_log in (
            ("generative perplexity", "generative_perplexity", True),
            ("entropy (nats)", "entropy", False),
        )
    ]


def _references(records: Records, metric: str, data_metric: str = "") -> list[Reference]:
    """The levels of the autoregressive model and of the validation text."""
    level = own_value(autoregressive_of(records), metric)
    found = [Reference("autoregressive", AUTOREGRESSIVE, level)] if level else []
    levels = (value for record in records.values() if (value := record.get(data_metric)) is not None)
    return [*found, *(Reference("validation text", DATA, level) for level in list(levels)[:1])]


Cost = Literal["equivalent_evaluations", "seconds_per_sample"]


def _solved_chart(experiments: Sequence[Experiment], cost: Cost) -> Chart:
    """Share of puzzles solved over what it costs, a panel for each kind."""
    contenders = contenders_of(experiments)
    panels = []
    for givens in kinds_of(contenders):
        named: list[tuple[str, Style, Sequence[FrontierRow]]] = []
        if len(experiments) > 1:
            for each, style in _styled(contenders):
                named += [(each.label, style, rising_front(rows)) for _, rows in each.puzzles(givens)]
        elif solved := experiments[0].solved:
            ways: dict[str, list[FrontierRow]] = {}
            for row in solved.of(FIRST_TEACHER, givens):
                if row.temperature in (0, 1):
                    ways.setdefault(row.sampler + ("" if row.temperature else ", likeliest"), []).append(row)
            named += [(name, Style("category", k), rows) for k, (name, rows) in enumerate(ways.items())]
            named += [
                (row.model, replace(AUTOREGRESSIVE, variant=k), [row])
                for k, row in enumerate(solved.autoregressive(givens))
            ]
            named += [
                (f"round {model}, best", TEACHER, rising_front(solved.of(model, givens)))
                for model in solved.students[-1:]
            ]
        lines = []
        for name, style, rows in named:
            points = [Point(getattr(row, cost), share_of(row)) for row in rows]
            lines.append(Line(name, style, sorted(points, key=lambda point: point.x)))
        panels.append(Panel("share solved", lines, title=f"{givens} given"))
    in_seconds = cost == "seconds_per_sample"
    return Chart(
        name="frontier_seconds" if in_seconds else "frontier",
        title="Puzzles solved against seconds" if in_seconds else "Puzzles solved for each network evaluation",
        caption="A puzzle is solved where every row, column and box is right and what was given is kept; higher is"
        " better. A line is one sampler of the teacher, or the last student in the ways that solve more than all"
        f" cheaper ones of its own. {BARS}",
        absent="No puzzles were drawn.",
        x_label="seconds per sample" if in_seconds else "equivalent evaluations",
        panels=panels,
        x_scale="log",
        num_columns=min(2, len(panels)),
    )


def _frontier_chart(
    experiments: Sequence[Experiment],
    references: Records,
    cost: Cost,
) -> Chart:
    """Perplexity at the entropy of the validation text over what it costs."""
    if any(experiment.solved for experiment in experiments):
        return _solved_chart(experiments, cost)
    if len(experiments) > 1:
        contenders = _styled(contenders_of(experiments))
        panels = [
            (title, [line for each, style in contenders for line in _lines_of_contender(each, style, sampler, cost)])
            for title, sampler in (("best sampler", None), ("ancestral sampling", ANCESTRAL))
        ]
    else:
        panels = [("", _lines_of_models(found, cost))] if (found := experiments[0].frontier) else []
    text = _references(references, "", "data_generative_perplexity")
    in_seconds = cost == "seconds_per_sample"
    cost_note = (
        "Seconds of wall-clock time, drawn in batches."
        if in_seconds
        else "An evaluation counts by its network's blocks; an autoregressive model makes one for every token."
    )
    best = "the best way within 1, 2, 4, ... evaluations."
    line_note = f"one sampler of the teacher; of the last student it is {best}" if len(experiments) == 1 else best
    return Chart(
        name="frontier_seconds" if in_seconds else "frontier",
        title="Quality for each second" if in_seconds else "Quality for each network evaluation",
        caption="Generative perplexity where a temperature has brought the samples to the entropy of the validation"
        f" text or above; lower is better. A line is {line_note} {cost_note} {BARS}",
        absent="Nothing was drawn at several temperatures, or nothing has the entropy of the validation text.",
        x_label="seconds per sample" if in_seconds else "equivalent evaluations",
        panels=[Panel("perplexity at equal entropy", lines, text, is_log=True, title=title) for title, lines in panels],
        x_scale="log" if in_seconds else "evaluations",
        num_columns=max(1, len(panels)),
    )


def _lines_of_models(frontier: Frontier, cost: Cost) -> list[Line]:
    """Of one experiment: a line for each sampler of the teacher, the last student's best, autoregressive models."""
    named: list[tuple[str, Style, Sequence[AtEntropy]]] = [
        (name, Style("category", k), some) for k, (name, some) in enumerate(frontier.families(FIRST_TEACHER).items())
    ]
    named += [
        (f"student of round {model}", TEACHER, lowest_front(frontier.of(model))) for model in frontier.students[-1:]
    ]
    named += [
        (frontier.describe(way), replace(AUTOREGRESSIVE, variant=k), [way])
        for k, way in enumerate(frontier.autoregressive)
    ]
    return [Line(name, style, _points(ways, cost)) for name, style, ways in named]


def _styled(contenders: Sequence[Contender]) -> list[tuple[Contender, Style]]:
    """Each with its style: of experiments with one seed, that of their members."""
    num_trained = sum(not each.is_teacher for each in contenders)
    # Teachers come first and do not count.
    return [
        (each, TEACHER if each.is_teacher else Style("category", i, num_trained))
        for i, each in enumerate(contenders, num_trained - len(contenders))
    ]


def _lines_of_contender(contender: Contender, style: Style, sampler: str | None, cost: Cost) -> list[Line]:
    """A line for each seed."""
    return [Line(contender.label, style, _points(lowest_front(ways), cost)) for _, ways in contender.ways(sampler)]


def _points(ways: Sequence[AtEntropy], cost: Cost) -> list[Point]:
    points = [Point(getattr(way, cost), way.perplexity) for way in ways if way.perplexity is not None]
    return sorted(points, key=lambda point: point.x)


def _steps_chart(members: Sequence[Member], references: Records) -> Chart:
    """Generative perplexity over denoising steps, and the entropy of the same samples under it."""
    samplers = list(dict.fromkeys(sampler for sampler, _ in drawn_of(member.record for member in members)))

    def lines_of(metric: str) -> list[Line]:
        lines = []
        for member in members:
            for variant, sampler in enumerate(samplers):
                points = []
                for drawn in drawn_of([member.record]):
                    y, nfe = member.record.get(metric, *drawn), member.record.get("nfe", *drawn)
                    x = steps_of(*drawn) or (nfe and nfe.value)
                    if drawn[0] == sampler and y and x:
                        points.append(Point(x, y))
                label = member.label if sampler == ANCESTRAL else f"{member.label}, {sampler}"
                style = replace(member.style, variant=variant)
                lines.append(Line(label, style, sorted(points, key=lambda point: point.x)))
        return lines

    is_ancestral = set(samplers) <= {ANCESTRAL}
    return Chart(
        name="steps",
        title="Quality against denoising steps, at temperature 1",
        caption=f"Above, lower is better. {ENTROPY_MATTERS} {BARS}",
        absent="No samples were scored, so quality is not drawn against denoising steps.",
        x_label="denoising steps" if is_ancestral else "denoising steps (ancestral), network evaluations (others)",
        panels=_perplexity_and_entropy(lines_of, references),
        x_scale="steps",
    )


def _latency_chart(members: Sequence[Member], references: Records) -> Chart:
    """Generative perplexity over the time one sample takes."""
    lines, ticks = [], {}
    # Where all share their timings, the range of the first one is that of all, and the time depends on steps alone.
    has_one_timing = len({id(member.experiment) for member in members}) == 1
    for i, member in enumerate(members):
        latency = member.experiment.latency
        points = []
        for timing in latency.denoiser if latency else ():
            # Random weights were timed: how many steps another sampler takes depends on what is predicted.
            y = member.record.get("generative_perplexity", *timing.drawn) if timing.drawn else None
            if y is not None and timing.drawn and (num_steps := steps_of(*timing.drawn)):
                x_range = None if i and has_one_timing else (timing.seconds_min, timing.seconds_max)
                points.append(Point(timing.seconds, y, x_range))
                ticks[timing.seconds] = str(num_steps)
        lines.append(Line(member.label, member.style, points))
    y = own_value(autoregressive_of(references), "generative_perplexity")
    if ticks and y and (latency := members[0].experiment.latency):
        timing = latency.autoregressive
        point = Point(timing.seconds, y, (timing.seconds_min, timing.seconds_max))
        lines.append(Line("autoregressive, KV cache", AUTOREGRESSIVE, [point]))
    return Chart(
        name="latency",
        title="Quality against time, at temperature 1",
        caption=f"Time of one sample: median, with the fastest and the slowest repeat. {BARS} Denoisers of a size have"
        " the same network, so one timing for each number of steps serves every round.",
        absent="No number of denoising steps was both sampled and timed, so quality is not drawn against time: let"
        " latency.num_steps and sample.num_steps share values.",
        x_label="seconds per sample",
        panels=[Panel("generative perplexity", lines, _references(references, "", "data_generative_perplexity"), True)],
        x_scale="log",
        top_ticks=ticks if has_one_timing else {},
    )


def _by_round(records: Records, metric: str, drawn: Drawn | tuple[None, None]) -> list[Point]:
    values = [(record.round_index or 0, record.get(metric, *drawn)) for record in denoisers_of(records)]
    return [Point(round_index, value) for round_index, value in values if value is not None]


def _families(experiments: Sequence[Experiment], metric: str, drawn: Drawn | tuple[None, None]) -> list[Line]:
    """One line for each experiment."""
    count = len(experiments)
    return [
        Line(
            experiment.label or "denoiser",
            Style("category", i, count) if count > 1 else Style("series"),
            _by_round(experiment.records, metric, drawn),
        )
        for i, experiment in enumerate(experiments)
    ]


def _rounds_chart(experiments: Sequence[Experiment], references: Records) -> Chart:
    """Quality over rounds: of one experiment in every setting, of several in that of the fewest common steps."""
    drawn = common_drawn(experiments)
    is_one = len(experiments) == 1

    def lines_of(metric: str) -> list[Line]:
        if not is_one:
            return [line for each in drawn[:1] for line in _families(experiments, metric, each)]
        records = experiments[0].records
        found = [(describe_drawn(*each), _by_round(records, metric, each)) for each in drawn_of(denoisers_of(records))]
        return [Line(label, Style("series", i, len(found)), points) for i, (label, points) in enumerate(found)]

    return Chart(
        name="rounds",
        title="Quality by round, at temperature 1" + (f", with {in_words(drawn[0])}" if drawn and not is_one else ""),
        caption=f"{ENTROPY_MATTERS} MAUVE: similarity of continuations to the validation text, 1 for the same"
        f" distribution; its bars are the deviation over clustering seeds alone. {BARS}",
        absent="There are no samples to compare by round, or none that were drawn in the same number of denoising"
        " steps.",
        x_label="distillation round",
        panels=[
            *_perplexity_and_entropy(lines_of, references),
            Panel("MAUVE", lines_of("mauve"), _references(references, "mauve")),
        ],
        x_scale="rounds",
    )


def _cloze_chart(experiments: Sequence[Experiment], references: Records) -> Chart:
    """Accuracy and perplexity of the last word of passages over rounds."""
    panels = []
    autoregressive = autoregressive_of(references)
    for metric in ("cloze_accuracy", "cloze_perplexity"):
        level = autoregressive and autoregressive.get(metric)
        found = [Reference("autoregressive", AUTOREGRESSIVE, level)] if level else []
        lines = _families(experiments, metric, (None, None))
        panels.append(Panel(metric.replace("_", " "), lines, found, is_log=metric == "cloze_perplexity"))
    return Chart(
        name="cloze",
        title="Cloze accuracy and perplexity by round",
        caption="The last word of passages in LAMBADA's form: the share that the model completes (above, higher is"
        f" better), and the perplexity of the right word (below, lower is better). {BARS}",
        absent="There are no cloze passages in this data, so cloze accuracy was not measured.",
        x_label="distillation round",
        panels=panels,
        x_scale="rounds",
    )


def _time_loss_chart(members: Sequence[Member]) -> Chart:
    """The validation loss over the diffusion time."""
    lines = [
        Line(
            member.label,
            member.style,
            [
                Point(
                    (bucket["t_low"] + bucket["t_high"]) / 2,
                    Estimate(bucket["value"], bucket["error"], bucket["count"], "nats"),
                )
                for bucket in member.record.loss_by_time
                if bucket["value"] is not None
            ],
        )
        for member in members
    ]
    panels = [Panel("validation loss (nats per token)", lines)]
    if [line.style.role for line in lines].count("teacher") == 1 and len(lines) > 1:
        taught = {point.x: point.y.value for point in lines[0].points}
        differences = [
            replace(line, points=[_bare_point(p.x, p.y.value - taught[p.x]) for p in line.points if p.x in taught])
            for line in lines[1:]
        ]
        panels.append(Panel("difference to the teacher (nats)", differences, [Reference("teacher", TEACHER, _bare(0))]))
    return Chart(
        name="loss_by_time",
        title="Validation loss by diffusion time",
        caption="The integrand of the bound on the negative log-likelihood, averaged in equal parts of the time: 0 is"
        f" clean text, 1 all masked. Their mean is the validation loss. {BARS} The differences (below) have none: every"
        " model sees the same noise, which makes them more certain than the bars above.",
        absent="The loss by diffusion time was not measured.",
        x_label="diffusion time t",
        panels=panels,
    )


def _together_chart(experiments: Sequence[Experiment]) -> Chart:
    """How many tokens come at once."""
    lines = []
    for line, experiment in zip(_families(experiments, "", (None, None)), experiments, strict=True):
        model, folder = denoisers_of(experiment.records)[-1].model, experiment.folder / "samples"
        together = tokens_together(folder, model) if (folder / model).is_dir() else {}
        lines.append(replace(line, points=[Point(num_steps, spread) for num_steps, spread in together.items()]))
    return Chart(
        name="unmasking",
        title="Tokens that unmask together",
        caption="Tokens of a sample that are drawn in the same denoising step, without regard to one another: mean over"
        " tokens, with the range of the middle 90 % of them. Which tokens these are is drawn from the seed and does"
        " not depend on the model, so this holds for every round.",
        absent="There are no unconditional samples, so the tokens that unmask together were not counted.",
        x_label="denoising steps",
        panels=[
            Panel(
                "tokens drawn together",
                lines,
                [Reference("one at a time (autoregressive)", AUTOREGRESSIVE, _bare(1))],
                is_log=True,
            )
        ],
        x_scale="steps",
    )


def _training_chart(members: Sequence[Member], references: Records) -> Chart:
    """Loss and validation loss over optimizer steps: models trained on the data left, students right."""
    of_members = [(m.label, m.style, m.experiment.curves.get(m.record.model, {}), m.record) for m in members]
    on_data = [line for line in of_members if not line[3].round_index]
    students = [line for line in of_members if line[3].round_index]
    if members and (record := autoregressive_of(references)):
        curve = members[0].experiment.curves.get(record.model, {})
        on_data.append(("autoregressive", AUTOREGRESSIVE, curve, record))
    columns = [("trained on the data", "loss (nats per token)", on_data)]
    columns += [("distilled", "distillation loss", students)] if students else []

    def panel(label: str, column: str, of: Sequence[tuple[str, Style, Mapping, Record]], **options: Any) -> Panel:
        lines = [
            Line(name, style, [_bare_point(*point) for point in curve.get(column, ())], column != "loss")
            for name, style, curve, _ in of
        ]
        return Panel(label, lines, **options)

    above = [panel(label, "loss", of, title=title, is_log=of is students) for title, label, of in columns]
    below = [panel("validation loss (nats per token)", "valid_loss", of) for _, _, of in columns]
    return Chart(
        name="training",
        title="Training",
        caption="The validation loss of a denoiser, of a student too, is an upper bound of the negative log-likelihood;"
        " the training loss of a student is its divergence from its teacher.",
        absent="No model was trained here: all were given.",
        x_label="optimizer steps",
        panels=[*above, *below],
        num_columns=len(columns),
    )


def write_points(chart: Chart, path: Path) -> None:
    """Write a chart's points as CSV for `dvc plots`; a reference is a line between the ends of the panel."""

    def rows() -> Iterator[list[Any]]:
        for i, panel in enumerate(chart.panels):
            column = chart.panels[i % chart.num_columns].title
            name = f"{column}: {panel.y_label}" if column else panel.y_label
            for line in panel.lines:
                for point in line.points:
                    yield [name, line.label, point.x, point.y.value, *bar(point.y)]
            ends = sorted({point.x for line in panel.lines for point in line.points})
            for reference in panel.references if ends else ():
                for x in {ends[0]: None, ends[-1]: None}:
                    yield [name, reference.label, x, reference.level.value, *bar(reference.level)]

    write_csv(path, ["panel", "series", "x", "y", "y_low", "y_high"], rows())


def bar(estimate: Estimate) -> tuple[float, float]:
    """Ends of the error bar: the confidence interval if it was measured, else one standard error either way."""
    error = estimate.standard_error or 0.0
    return estimate.interval or (estimate.value - error, estimate.value + error)


def _bare(value: float) -> Estimate:
    return Estimate(value, None, 1, "1")


def _bare_point(x: float, value: float) -> Point:
    return Point(x, _bare(value))
