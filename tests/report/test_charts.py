"""What the figures hold: points, error bars, and the sentence each comes to."""

import csv
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from halfstep.metrics.estimate import Estimate
from halfstep.report import takeaways
from halfstep.report.charts import Chart, Style, bar, charts_of, members_of, write_points
from halfstep.report.figures import DARK, LIGHT, Palette, line_style
from halfstep.report.results import load_latency


def charts(project: Any, **changes: Any) -> dict[str, Chart]:
    metrics = project.metrics()
    latencies = load_latency(project.root / "metrics" / "latency.json")
    settings = {"distance": "mse", "preset": "laptop", "curves": {}, "together": {}} | changes
    return {chart.name: chart for chart in charts_of(metrics, latencies, **settings)}


def test_every_round_is_drawn_at_every_number_of_steps_against_its_time(project: Any) -> None:
    (panel,) = charts(project)["latency"].panels
    # 0.04 s per step for a batch of 8; perplexities as in the metrics files.
    drawn = {line.label: [(round(point.x, 6), point.y.value) for point in line.points] for line in panel.lines}
    assert drawn == {
        "teacher": [(0.02, 80), (0.08, 40)],
        "round 1": [(0.02, 50), (0.08, 36)],
        "round 2": [(0.02, 32), (0.08, 30)],
        "autoregressive, KV cache": [(0.07, 20)],
    }


def test_error_bars_are_the_interval_where_there_is_one_else_a_standard_error() -> None:
    assert bar(Estimate(10.0, 2.0, 5, "1", (9.0, 14.0))) == (9, 14)
    assert bar(Estimate(10.0, 2.0, 5, "1")) == (8, 12)
    assert bar(Estimate(10.0, None, 1, "1")) == (10, 10)


def test_points_for_dvc_are_those_of_the_figure(project: Any, tmp_path: Path) -> None:
    chart = charts(project)["steps"]
    write_points(chart, tmp_path / "steps.csv")
    with (tmp_path / "steps.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    perplexities = {
        (row["series"], float(row["x"])): (float(row["y"]), float(row["y_low"]), float(row["y_high"]))
        for row in rows
        if row["panel"] == "generative perplexity"
    }
    assert perplexities["round 1", 4] == (50, 49.2, 50.8)
    assert perplexities["autoregressive", 4] == perplexities["autoregressive", 16] == (20, 19.7, 20.3)
    entropies = {(row["series"], float(row["x"])): float(row["y"]) for row in rows if "entropy" in row["panel"]}
    assert entropies["round 2", 16] == 4.36
    assert entropies["validation text", 4] == 4.41
    assert len(rows) == 2 * (3 * 2 + 2 * 2)


def test_a_chart_without_points_is_a_header(project: Any, tmp_path: Path) -> None:
    chart = charts(project)["training"]
    assert not chart.has_points
    write_points(chart, tmp_path / "training.csv")
    assert (tmp_path / "training.csv").read_text() == "panel,series,x,y,y_low,y_high\n"


def test_the_difference_by_time_is_that_to_the_teacher(project: Any) -> None:
    _, below = charts(project)["loss_by_time"].panels
    assert [line.label for line in below.lines] == ["round 1", "round 2"]
    assert [point.y.value for point in below.lines[1].points] == [pytest.approx(0.2), 0]


def test_takeaways_follow_the_numbers(project: Any, make_estimate: Callable[..., dict[str, Any]]) -> None:
    found = {name: chart.takeaway for name, chart in charts(project).items()}
    assert "generative perplexity falls (from 80.0 ± 1.0 to 32.00 ± 0.60, 40 % of it)" in found["steps"]
    # 32 at 4 steps is below the teacher's 40 at 16, which take four times as long.
    assert "is not clearly behind" in found["latency"]
    assert "4 times less time: 0.02 instead of 0.08 seconds" in found["latency"]
    assert "cloze accuracy stays at 25.0 ± 3.0 %" in found["cloze"]
    assert "between the times 0 and 0.5, where it rises (from 2.000 ± 0.010 nats per token to" in found["loss_by_time"]

    project.values["2"]["samples"][0]["generative_perplexity"] = make_estimate(95.0, 1.0)
    project.values["2"]["cloze"]["accuracy"] = make_estimate(0.1, 0.03, 200)
    found = {name: chart.takeaway for name, chart in charts(project).items()}
    assert "generative perplexity rises" in found["steps"]
    assert "does not reach" in found["latency"]
    assert "cloze accuracy falls (from 25.0 ± 3.0 % to 10.0 ± 3.0 %)" in found["cloze"]


def test_tokens_drawn_together_are_counted_without_the_token_itself() -> None:
    together = {4: Estimate(17.0, None, 64, "tokens"), 128: Estimate(1.5, None, 64, "tokens")}
    assert takeaways.of_together(together) == (
        "With 4 denoising steps a token is drawn together with 16 others on average, with 128 denoising steps with 0.5."
    )


def lightness(colour: Any) -> float:
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize(("palette", "sign"), [(LIGHT, -1), (DARK, 1)])
def test_rounds_are_ordered_by_lightness_away_from_the_page(palette: Palette, sign: int) -> None:
    shades = [lightness(line_style(Style("series", i, 7), palette)["color"]) for i in range(7)]
    steps = [sign * (after - before) for before, after in itertools.pairwise(shades)]
    assert min(steps) > 0.02
    assert min(abs(shade - lightness(palette.face)) for shade in shades) > 0.2


def test_neighbours_differ_without_colour(project: Any) -> None:
    styles = [line_style(member.style, LIGHT) for member in members_of(project.metrics(), None)]
    looks = [(style["marker"], str(style["linestyle"])) for style in styles]
    assert len(set(looks)) == len(looks)
    assert styles[0]["color"] == LIGHT.teacher
