"""The report's figures: each is drawn from the results alone and comes out the same every time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfstep.report.results import Curve, Estimate, Latencies, Metrics
from halfstep.report.table import autoregressive_of, denoisers_of, describe_model, step_counts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 150
MARKERS = "os^DvPX*<>p"
LINE_STYLES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)))
REFERENCES = ("autoregressive", "validation text")
"""What the legend's last entries begin with."""
AR_STYLE: dict[str, Any] = {"color": "#d55e00", "linestyle": (0, (7, 3)), "linewidth": 1.6}
DATA_STYLE: dict[str, Any] = {"color": "#555555", "linestyle": (0, (1, 2)), "linewidth": 1.6}
STYLE: Any = {
    "font.size": 9.5,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "lines.linewidth": 1.5,
    "lines.markersize": 5.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def draw_figures(
    metrics: Metrics, latencies: Latencies, curves: Mapping[str, Curve], *, distance: str, folder: Path
) -> list[str]:
    """Draw every figure that the results allow.

    Args:
        metrics: of every model.
        latencies: of every number of steps.
        curves: of every model.
        distance: name of the distillation loss, for its axis.
        folder: exists; gets one PNG per figure.
    Returns:
        names of the figures drawn, without ending: `steps`, `latency`, `mauve`, `cloze`, `training`. A figure
        that has nothing to show (no MAUVE, no cloze, no number of steps both sampled and timed, no training)
        is not drawn.
    """
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figures = {
            "steps": _steps_figure(metrics),
            "latency": _latency_figure(metrics, latencies),
            "mauve": _mauve_figure(metrics),
            "cloze": _cloze_figure(metrics),
            "training": _training_figure(metrics, curves, distance),
        }
        for name, figure in figures.items():
            if figure is not None:
                # Software holds matplotlib's version: without it the same results give the same bytes.
                figure.savefig(folder / f"{name}.png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return [name for name, figure in figures.items() if figure is not None]


def _steps_figure(metrics: Metrics) -> "Figure":
    """Generative perplexity over denoising steps, and the entropy of the same samples under it."""
    figure, (upper, lower) = _figure(height=6.6, rows=2, sharex=True, height_ratios=(3, 2))
    denoisers = denoisers_of(metrics)
    for index, model in enumerate(denoisers):
        steps = [sampled.num_steps for sampled in model.samples]
        style = series_style(index, len(denoisers))
        label = describe_model(model)
        _error_line(upper, steps, [sampled.generative_perplexity for sampled in model.samples], style, label)
        _error_line(lower, steps, [sampled.entropy for sampled in model.samples], style, label)
    autoregressive = autoregressive_of(metrics)
    if autoregressive is not None:
        sampled = autoregressive.samples[0]
        upper.axhline(sampled.generative_perplexity.value, label="autoregressive", **AR_STYLE)
        lower.axhline(sampled.entropy.value, **AR_STYLE)
    data = denoisers[0]
    upper.axhline(data.data_perplexity.value, label="validation text", **DATA_STYLE)
    lower.axhline(data.data_entropy.value, **DATA_STYLE)
    _log_scale(upper.yaxis)
    _steps_axis(lower, step_counts(metrics))
    upper.set_ylabel("generative perplexity")
    lower.set_ylabel(f"entropy ({data.data_entropy.unit})")
    lower.set_xlabel("denoising steps")
    _legend_below(figure, upper)
    return figure


def _latency_figure(metrics: Metrics, latencies: Latencies) -> "Figure | None":
    """Generative perplexity over the time one sample takes."""
    timed = {latency.num_steps: latency for latency in latencies.denoiser}
    common = [count for count in step_counts(metrics) if count in timed]
    if not common:
        return None
    figure, (axes,) = _figure(height=4.6)
    denoisers = denoisers_of(metrics)
    for index, model in enumerate(denoisers):
        points = [(timed[sampled.num_steps], sampled) for sampled in model.samples if sampled.num_steps in timed]
        style = series_style(index, len(denoisers))
        axes.errorbar(
            [latency.seconds for latency, _ in points],
            [sampled.generative_perplexity.value for _, sampled in points],
            yerr=[sampled.generative_perplexity.standard_error or 0.0 for _, sampled in points],
            xerr=[
                [latency.seconds - latency.seconds_min for latency, _ in points],
                [latency.seconds_max - latency.seconds for latency, _ in points],
            ],
            label=describe_model(model),
            capsize=2,
            elinewidth=1,
            **style,
        )
    autoregressive = autoregressive_of(metrics)
    if autoregressive is not None:
        latency = latencies.autoregressive
        perplexity = autoregressive.samples[0].generative_perplexity
        axes.errorbar(
            [latency.seconds],
            [perplexity.value],
            yerr=[perplexity.standard_error or 0.0],
            xerr=[[latency.seconds - latency.seconds_min], [latency.seconds_max - latency.seconds]],
            label="autoregressive, KV cache",
            color=AR_STYLE["color"],
            marker="*",
            markersize=13,
            linestyle="none",
            capsize=2,
        )
    axes.axhline(denoisers[0].data_perplexity.value, label="validation text", **DATA_STYLE)
    _log_scale(axes.xaxis)
    _log_scale(axes.yaxis)
    # The numbers of steps stand over the points: the time depends on them alone.
    top = axes.secondary_xaxis("top")
    top.set_xscale("log")
    top.set_xticks([timed[count].seconds for count in common], [str(count) for count in common])
    top.minorticks_off()
    top.set_xlabel("denoising steps")
    axes.set_xlabel("seconds per sample")
    axes.set_ylabel("generative perplexity")
    _legend_below(figure, axes)
    return figure


def _mauve_figure(metrics: Metrics) -> "Figure | None":
    """MAUVE over rounds, one line per number of denoising steps."""
    denoisers = denoisers_of(metrics)
    counts = [
        count for count in step_counts(metrics) if any((at := model.at(count)) and at.mauve for model in denoisers)
    ]
    if not counts:
        return None
    figure, (axes,) = _figure(height=4.2)
    for index, count in enumerate(counts):
        points = [
            (model.round_index or 0, sampled.mauve)
            for model in denoisers
            if (sampled := model.at(count)) is not None and sampled.mauve is not None
        ]
        style = series_style(index, len(counts))
        _error_line(axes, [k for k, _ in points], [mauve for _, mauve in points], style, f"{count} steps")
    autoregressive = autoregressive_of(metrics)
    if autoregressive is not None and (mauve := autoregressive.samples[0].mauve) is not None:
        axes.axhline(mauve.value, label="autoregressive", **AR_STYLE)
    _rounds_axis(axes, len(denoisers))
    axes.set_ylabel("MAUVE (1 = like the validation text)")
    _legend_below(figure, axes)
    return figure


def _cloze_figure(metrics: Metrics) -> "Figure | None":
    """Accuracy of the last word over rounds."""
    denoisers = [model for model in denoisers_of(metrics) if model.cloze_accuracy is not None]
    if not denoisers:
        return None
    figure, (axes,) = _figure(height=3.6)
    accuracies = [model.cloze_accuracy for model in denoisers if model.cloze_accuracy is not None]
    rounds = [model.round_index or 0 for model in denoisers]
    style = series_style(0, 1)
    _error_line(axes, rounds, [_percent(accuracy) for accuracy in accuracies], style, "denoiser")
    autoregressive = autoregressive_of(metrics)
    if autoregressive is not None and autoregressive.cloze_accuracy is not None:
        axes.axhline(_percent(autoregressive.cloze_accuracy).value, label="autoregressive", **AR_STYLE)
    _rounds_axis(axes, len(denoisers_of(metrics)))
    axes.set_ylabel("cloze accuracy (%)")
    _legend_below(figure, axes)
    return figure


def _training_figure(metrics: Metrics, curves: Mapping[str, Curve], distance: str) -> "Figure | None":
    """Loss and validation loss over optimizer steps: models trained on the data left, students right."""
    if not any(curve.get("loss") for curve in curves.values()):
        return None
    denoisers = denoisers_of(metrics)
    students = [model for model in denoisers if model.round_index]
    figure, axes = _figure(height=5.6, rows=2, columns=2 if students else 1, sharex="col")
    losses, valid_losses = axes[: len(axes) // 2], axes[len(axes) // 2 :]
    for index, model in enumerate(denoisers):
        column = 1 if model.round_index else 0
        style = series_style(index, len(denoisers))
        _curve_line(
            losses[column],
            curves[model.model].get("loss", ()),
            style | {"marker": None},
            describe_model(model),
        )
        _curve_line(valid_losses[column], curves[model.model].get("valid_loss", ()), style, describe_model(model))
    autoregressive = autoregressive_of(metrics)
    if autoregressive is not None:
        curve = curves[autoregressive.model]
        style = AR_STYLE | {"marker": None}
        _curve_line(losses[0], curve.get("loss", ()), style, "autoregressive")
        _curve_line(valid_losses[0], curve.get("valid_loss", ()), style | {"marker": "*"}, "autoregressive")
    losses[0].set_ylabel("loss (nats per token)")
    valid_losses[0].set_ylabel("validation loss (nats per token)")
    for axis in valid_losses:
        axis.set_xlabel("optimizer steps")
    losses[0].set_title("trained on the data")
    if students:
        losses[1].set_title("distilled")
        losses[1].set_ylabel(f"{distance}, nats" if distance.startswith("kl") else distance)
        valid_losses[1].set_ylabel("validation loss (nats per token)")
    _legend_below(figure, *losses)
    return figure


def series_style(index: int, count: int) -> dict[str, Any]:
    """Colour, marker and line of one of `count` ordered series.

    The colours run from light to dark, the last series being darkest, so that the order survives in grey and
    in every kind of colour vision; the markers and lines tell neighbours apart.
    """
    import matplotlib

    shade = 0.75 * (1 - index / max(count - 1, 1))
    return {
        "color": matplotlib.colormaps["viridis"](shade),
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": LINE_STYLES[index % len(LINE_STYLES)],
    }


def _figure(
    *,
    height: float,
    rows: int = 1,
    columns: int = 1,
    sharex: Any = False,
    height_ratios: Sequence[float] | None = None,
) -> "tuple[Figure, list[Axes]]":
    """A figure of page width, and its panels row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, height), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=sharex, squeeze=False, height_ratios=height_ratios)
    return figure, list(axes.flat)


def _error_line(
    axes: "Axes", x: Sequence[float], estimates: Sequence[Estimate], style: Mapping[str, Any], label: str
) -> None:
    axes.errorbar(
        x,
        [estimate.value for estimate in estimates],
        yerr=[estimate.standard_error or 0.0 for estimate in estimates],
        label=label,
        capsize=2,
        elinewidth=1,
        **style,
    )


def _curve_line(axes: "Axes", points: Sequence[tuple[int, float]], style: Mapping[str, Any], label: str) -> None:
    if points:
        axes.plot([step for step, _ in points], [value for _, value in points], label=label, **style)


def _percent(estimate: Estimate) -> Estimate:
    error = None if estimate.standard_error is None else 100 * estimate.standard_error
    return Estimate(100 * estimate.value, error, estimate.count, "%")


def _steps_axis(axes: "Axes", counts: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()


def _rounds_axis(axes: "Axes", num_models: int) -> None:
    axes.set_xticks(range(num_models), ["0 (teacher)", *(str(k) for k in range(1, num_models))])
    axes.set_xlabel("distillation round")


def _log_scale(axis: Any) -> None:
    """A logarithmic axis with plain numbers, dense enough to be read where it spans less than a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    subs = (1, 2, 3, 5, 7) if high < 30 * low else (1, 2, 5)
    axis.set_major_locator(MaxNLocator(6) if high < 4 * low else LogLocator(subs=subs))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _legend_below(figure: "Figure", *panels: "Axes") -> None:
    """One legend for some panels: the series in their order, then what they are compared with."""
    entries = [entry for axes in panels for entry in zip(*axes.get_legend_handles_labels(), strict=True)]
    entries.sort(key=lambda entry: str(entry[1]).startswith(REFERENCES))
    num_rows = -(-len(entries) // 5)
    figure.legend(
        [handle for handle, _ in entries],
        [label for _, label in entries],
        loc="outside lower center",
        ncols=-(-len(entries) // num_rows),
        frameon=False,
    )
