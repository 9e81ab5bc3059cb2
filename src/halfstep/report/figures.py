"""Charts drawn by matplotlib, the same every time: the same results give the same bytes."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from halfstep.report.charts import Chart, Line, Panel, Reference, Style, bar
from halfstep.report.records import format_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 150
WIDTH_INCHES = 5.5
WIDTH_CHARACTERS, HANDLE_CHARACTERS = 60, 8
"""What surely fits the width of a figure, and what a line's sample takes of it."""
MARKERS = "s^DvPX<>ph"
DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (6, 2, 1.5, 2)), (0, (3, 1.5)), (0, (6, 1.5, 1, 1.5, 1, 1.5)))


FACE, TEXT, GRID = "#ffffff", "#1f2328", "#dde1e6"
TEACHER, AUTOREGRESSIVE = "#6e7781", "#c44601"
# Viridis, whose lightness alone orders it, without the end that the background swallows; for categories the colours of
# Okabe and Ito, which all kinds of colour vision distinguish. A dark page inverts lightness, and keeps both true.
RAMP = (0.72, 0.05)
FAR = 3.0
"""A level so many times below the lowest point, or above the highest, is a note: its line would flatten the others."""
ARROWS = {-1: " \u2193", 1: " \u2191"}
CATEGORIES = ("#0072b2", "#d08700", "#009e73", "#b0508d", "#4aa5dc", "#7a5c00", "#333333")
RC: Any = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "svg.hashsalt": "halfstep",
    "text.parse_math": False,
    "grid.color": GRID,
    **dict.fromkeys(("figure.facecolor", "savefig.facecolor", "axes.facecolor"), FACE),
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"), TEXT),
}


def draw_figures(charts: Sequence[Chart]) -> dict[str, dict[str, bytes]]:
    """Draw every chart that has points: by name of those drawn, the bytes of its `svg` and its `png`."""
    return {
        chart.name: {file_format: render(chart, file_format) for file_format in ("svg", "png")}
        for chart in charts
        if chart.has_points
    }


def render(chart: Chart, file_format: str) -> bytes:
    """One chart as a file's bytes, without a date or a version in them."""
    import matplotlib

    # Creator and Software hold matplotlib's version.
    metadata = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}[file_format]
    stream = io.BytesIO()
    with matplotlib.rc_context(RC):
        _draw(chart).savefig(stream, format=file_format, dpi=DOTS_PER_INCH, metadata=metadata)
    return stream.getvalue()


def _draw(chart: Chart) -> "Figure":
    from matplotlib.figure import Figure

    num_rows = -(-len(chart.panels) // chart.num_columns)
    entries = _legend_entries(chart)
    num_legend_columns = _num_legend_columns(list(entries))
    legend_inches = 0.19 * -(-len(entries) // num_legend_columns)
    height = {1: 3.7}.get(num_rows, 2.8 * num_rows) + legend_inches
    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    grid = figure.subplots(num_rows, chart.num_columns, sharex="col", squeeze=False)
    for i, panel in enumerate(chart.panels):
        axes = grid[i // chart.num_columns][i % chart.num_columns]
        _draw_panel(axes, chart, panel)
        if i // chart.num_columns == num_rows - 1:
            axes.set_xlabel(chart.x_label)
    for column in range(chart.num_columns):
        panels = chart.panels[column :: chart.num_columns]
        _scale_x(
            grid[-1][column], chart, {point.x for panel in panels for line in panel.lines for point in line.points}
        )
    if chart.top_ticks:
        _top_axis(grid[0][0], chart)
    _legend_below(figure, entries, num_legend_columns)
    return figure


def _draw_panel(axes: "Axes", chart: Chart, panel: Panel) -> None:
    for line in panel.lines:
        if line.points:
            _draw_line(axes, line)
    notes: dict[int, list[str]] = {-1: [], 1: []}
    for reference in panel.references:
        if side := _side(panel, reference):
            notes[side].append(f"{reference.label}: {format_number(reference.level.value)}{ARROWS[side]}")
        else:
            axes.axhline(reference.level.value, zorder=1.5, **{**line_style(reference.style), "marker": None})
    axes.text(0.02, 0.03, "\n".join(notes[-1]), transform=axes.transAxes, va="bottom")
    axes.text(0.02, 0.97, "\n".join(notes[1]), transform=axes.transAxes, va="top")
    if panel.is_log:
        _log_ticks(axes, axes.yaxis)
    if not panel.has_points:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center")
    axes.set_ylabel(panel.y_label)
    if panel.title:
        axes.set_title(panel.title)


def _side(panel: Panel, reference: Reference) -> int:
    """-1 if a reference is far below the points, 1 if far above them, or else 0: it is drawn among them."""
    values = [point.y.value for line in panel.lines for point in line.points]
    if not panel.is_log or not values:
        return 0
    level = reference.level.value
    return (level > FAR * max(values)) - (level < min(values) / FAR)


def _draw_line(axes: "Axes", line: Line) -> None:
    style = line_style(line.style)
    if not line.has_markers:
        # Dashes of a noisy line are noise themselves.
        style |= {"marker": None, "linestyle": "-", "linewidth": 1.2}
    if len(line.points) == 1:
        style["zorder"] = 3
    x, y = [point.x for point in line.points], [point.y.value for point in line.points]
    bars = [bar(point.y) for point in line.points]
    # An interval need not hold the point estimate, but matplotlib takes no negative length.
    y_error = [
        [max(value - low, 0.0) for value, (low, _) in zip(y, bars, strict=True)],
        [max(high - value, 0.0) for value, (_, high) in zip(y, bars, strict=True)],
    ]
    ranges = [point.x_range or (point.x, point.x) for point in line.points]
    x_error = [
        [value - low for value, (low, _) in zip(x, ranges, strict=True)],
        [high - value for value, (_, high) in zip(x, ranges, strict=True)],
    ]
    axes.errorbar(
        x,
        y,
        yerr=y_error if any(map(any, y_error)) else None,
        xerr=x_error if any(map(any, x_error)) else None,
        capsize=2,
        elinewidth=1,
        **style,
    )


def line_style(style: Style) -> dict[str, Any]:
    """Colour, marker and dashes: neighbours differ in all three, so that they differ in grey too."""
    import matplotlib

    place = style.index + 3 * style.variant
    marker, dashes = MARKERS[place % len(MARKERS)], DASHES[place % len(DASHES)]
    match style.role:
        case "teacher":
            return {"color": TEACHER, "marker": marker if style.variant else "o", "linestyle": dashes, "linewidth": 2.2}
        case "autoregressive":
            return {
                "color": AUTOREGRESSIVE,
                "marker": "*PX"[style.variant % 3],
                "linestyle": (0, (7, 3)),
                "markersize": 10 if style.variant else 13,
                "markeredgecolor": FACE,
            }
        case "data":
            return {"color": TEXT, "marker": None, "linestyle": (0, (1, 2))}
        case "category":
            return {"color": CATEGORIES[style.index % len(CATEGORIES)], "marker": marker, "linestyle": dashes}
    first, last = RAMP
    share = style.index / (style.count - 1) if style.count > 1 else 1.0
    return {
        "color": matplotlib.colormaps["viridis"](first + (last - first) * share),
        "marker": marker,
        "linestyle": dashes,
    }


def _scale_x(axes: "Axes", chart: Chart, values: set[float]) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator, NullLocator

    if not values:
        return
    ticks = sorted(values)
    if chart.x_scale in ("steps", "evaluations"):
        axes.set_xscale("log", base=2)
        # Evaluations that are no whole number are means, among the steps that others ask for.
        ticks = [tick for tick in ticks if tick == int(tick)] or ticks
        if chart.x_scale == "evaluations":
            ticks = [2.0**k for k in range(math.floor(math.log2(min(values))), math.ceil(math.log2(max(values))) + 1)]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    elif chart.x_scale == "rounds":
        last = int(max(ticks))
        axes.set_xticks(range(last + 1), ["0\n(teacher)", *(str(k) for k in range(1, last + 1))])
        axes.set_xlim(-0.35, last + 0.35)
    elif chart.x_scale == "log":
        axes.set_xscale("log")
        _log_ticks(axes, axes.xaxis)
    else:
        if max(ticks) > 1000:
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(6 // chart.num_columns + 1, steps=[1, 2, 2.5, 5, 10]))


def _top_axis(axes: "Axes", chart: Chart) -> None:
    top = axes.secondary_xaxis("top")
    low, high = (math.log(value) for value in axes.get_xlim())
    # A label that would touch the one before it gives way.
    shown, last = {}, -math.inf
    for value, label in sorted(chart.top_ticks.items()):
        place = (math.log(value) - low) / (high - low)
        if place - last > 0.035:
            shown[value], last = label, place
    top.set_xticks(list(shown), list(shown.values()))
    top.minorticks_off()
    top.set_xlabel("denoising steps")


def _log_ticks(axes: "Axes", axis: Any) -> None:
    """A logarithmic axis with plain numbers, dense enough to be read where it spans less than a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    if high > 1000 * low:
        axis.set_major_locator(LogLocator())
    else:
        axis.set_major_locator(MaxNLocator(6) if high < 4 * low else LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _legend_entries(chart: Chart) -> dict[str, Mapping[str, Any]]:
    """Label and style of all panels' lines in their order, then of what they are compared with."""
    entries: dict[str, Mapping[str, Any]] = {}
    for panel in chart.panels:
        entries |= {line.label: line_style(line.style) for line in panel.lines if line.points}
    for panel in chart.panels:
        for reference in panel.references:
            if not _side(panel, reference):
                entries.setdefault(reference.label, {**line_style(reference.style), "marker": None})
    return entries


def _legend_below(figure: "Figure", entries: Mapping[str, Mapping[str, Any]], num_columns: int) -> None:
    from matplotlib.lines import Line2D

    figure.legend(
        [Line2D([], [], **{"linewidth": 1.6, **style}) for style in entries.values()],
        list(entries),
        loc="outside lower center",
        ncols=num_columns,
        frameon=False,
        handlelength=2.8,
    )


def _num_legend_columns(labels: Sequence[str]) -> int:
    """As many columns as surely fit the width, evenly filled; a legend is filled column by column."""
    for num_columns in range(min(len(labels), 5), 1, -1):
        num_rows = -(-len(labels) // num_columns)
        columns = [labels[start : start + num_rows] for start in range(0, len(labels), num_rows)]
        if sum(max(map(len, column)) + HANDLE_CHARACTERS for column in columns) <= WIDTH_CHARACTERS:
            return len(columns)
    return 1
