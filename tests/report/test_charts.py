"""What the figures hold: points, error bars, and the sentence each comes to."""

import csv
import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from halfstep.metrics.estimate import Estimate
from halfstep.report.charts import Chart, Line, Panel, Point, Reference, Style, bar, charts_of, members_of, write_points
from halfstep.report.figures import FACE, TEACHER, line_style, render


def charts(project: Any) -> dict[str, Chart]:
    return {chart.name: chart for chart in charts_of([project.experiment()])}


def test_every_round_is_drawn_at_every_number_of_steps_against_its_time(project: Any) -> None:
    (panel,) = charts(project)["latency"].panels
    # 0.04 s per step for a batch of 8; perplexities as in the records.
    drawn = {line.label: [(round(point.x, 6), point.y.value) for point in line.points] for line in panel.lines}
    assert drawn == {
        "teacher": [(0.02, 80), (0.08, 40)],
        "round 1": [(0.02, 50), (0.08, 36)],
        "round 2": [(0.02, 32), (0.08, 30)],
        "autoregressive, KV cache": [(0.07, 20)],
    }


def test_another_sampler_is_drawn_at_the_evaluations_it_made(project: Any) -> None:
    for threshold, evaluations, perplexity in ((0.9, 12.5, 33.0), (0.5, 6.0, 55.0)):
        drawn = ("confidence", f"threshold={threshold}")
        project.set("2", "nfe", evaluations, drawn=drawn)
        project.set("2", "generative_perplexity", perplexity, 1.0, drawn=drawn)
    chart = charts(project)["steps"]
    lines = {line.label: [(point.x, point.y.value) for point in line.points] for line in chart.panels[0].lines}
    assert lines["round 2"] == [(4, 32), (16, 30)]
    assert lines["round 2, confidence"] == [(6, 55), (12.5, 33)]
    assert lines["round 1, confidence"] == []
    assert "network evaluations" in chart.x_label
    assert "network evaluations" not in charts_of([project.experiment()])[0].x_label


def test_quality_by_round_has_a_line_for_each_setting(project: Any) -> None:
    perplexity, entropy, mauve = charts(project)["rounds"].panels
    lines = {line.label: [(point.x, point.y.value) for point in line.points] for line in perplexity.lines}
    assert lines == {"4 steps": [(0, 80), (1, 50), (2, 32)], "16 steps": [(0, 40), (1, 36), (2, 30)]}
    assert [reference.level.value for reference in entropy.references] == [4.3, 4.41]
    assert [point.y.value for point in mauve.lines[0].points] == [0.9] * 3


def test_error_bars_are_the_interval_where_there_is_one_else_a_standard_error() -> None:
    assert bar(Estimate(10.0, 2.0, 5, "1", (9.0, 14.0))) == (9, 14)
    assert bar(Estimate(10.0, 2.0, 5, "1")) == (8, 12)
    assert bar(Estimate(10.0, None, 1, "1")) == (10, 10)


@pytest.mark.parametrize(
    ("level", "text"), [(40.0, "text"), (30.0, "text: 30 \u2193"), (900.0, "text"), (1000.0, "text: 1000 \u2191")]
)
def test_a_reference_far_from_the_points_is_a_note(level: float, text: str) -> None:
    points = [Point(x, Estimate(y, None, 1, "1")) for x, y in ((4, 300.0), (8, 100.0))]
    panel = Panel(
        "y",
        [Line("line", Style("teacher"), points)],
        [Reference("text", Style("data"), Estimate(level, None, 1, "1"))],
        True,
    )
    svg = render(Chart("name", "", "", "", "x", [panel]), "svg").decode()
    assert re.findall(r"<!-- (text.*) -->", svg) == [text]


def test_points_for_dvc_are_those_of_the_figure(project: Any, tmp_path: Path) -> None:
    write_points(charts(project)["steps"], tmp_path / "steps.csv")
    with (tmp_path / "steps.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    found = {
        (row["panel"], row["series"], float(row["x"])): tuple(float(row[name]) for name in ("y", "y_low", "y_high"))
        for row in rows
    }
    assert found["generative perplexity", "round 1", 4] == (50, 49.2, 50.8)
    assert found["generative perplexity", "autoregressive", 4] == (20, 19.7, 20.3)
    assert found["generative perplexity", "autoregressive", 16] == (20, 19.7, 20.3)
    assert found["entropy (nats)", "round 2", 16][0] == 4.36
    assert found["entropy (nats)", "validation text", 4][0] == 4.41
    assert len(rows) == 2 * (3 * 2 + 2 * 2)


def test_a_chart_without_points_is_a_header(project: Any, tmp_path: Path) -> None:
    for path in (project.root / "curves").iterdir():
        path.write_text("step,loss,learning_rate,grad_norm,valid_loss\n")
    chart = charts(project)["training"]
    assert not chart.has_points
    write_points(chart, tmp_path / "training.csv")
    assert (tmp_path / "training.csv").read_text() == "panel,series,x,y,y_low,y_high\n"


def test_the_difference_by_time_is_that_to_the_teacher(project: Any) -> None:
    _, below = charts(project)["loss_by_time"].panels
    assert [line.label for line in below.lines] == ["round 1", "round 2"]
    assert [point.y.value for point in below.lines[1].points] == [pytest.approx(0.2), 0]


def test_takeaways_follow_the_numbers(project: Any) -> None:
    for accuracy, words in (
        (0.25, "stays at 25.0 ± 3.0 %"),
        (0.2, "does not change clearly (from 25.0 ± 3.0 % to 20.0 ± 3.0 %)"),
        (0.1, "falls (from 25.0 ± 3.0 % to 10.0 ± 3.0 %)"),
        (0.4, "rises (from 25.0 ± 3.0 % to 40.0 ± 3.0 %)"),
    ):
        project.set("2", "cloze_accuracy", accuracy, 0.03, count=200)
        assert words in " ".join(charts(project)["cloze"].takeaways)


def test_the_frontier_has_a_line_for_each_sampler_the_best_of_the_student_and_rivals_as_points(project: Any) -> None:
    found = charts(project)
    (panel,) = found["frontier"].panels
    assert {line.label: [(point.x, round(point.y.value, 6)) for point in line.points] for line in panel.lines} == {
        "ancestral": [(4, 90), (16, 40)],
        "ordered": [(4, 60), (16, 22)],
        "student of round 2": [(4, 48), (16, 22.5)],
        "autoregressive, 4 blocks": [(63, 20)],
        "autoregressive, 1 block": [(15.75, 21)],
    }
    assert [(reference.label, reference.level.value) for reference in panel.references] == [("validation text", 18)]
    low, high = bar(panel.lines[0].points[0].y)
    assert low < 90 < high
    (panel,) = found["frontier_seconds"].panels
    assert [point.x for point in panel.lines[1].points] == pytest.approx([0.04, 0.16])
    assert next(iter(found)) == "frontier"


def test_what_never_has_the_entropy_is_not_drawn(project: Any) -> None:
    for model in ("ar", "0", "1", "2", "ar-1"):
        project.set_curves(model, {("ancestral", 4): 90.0}, entropy=3.0)
    assert not charts(project)["frontier"].has_points


def lightness(colour: Any) -> float:
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_rounds_are_ordered_by_lightness_away_from_the_page() -> None:
    shades = [lightness(line_style(Style("series", i, 7))["color"]) for i in range(7)]
    assert min(before - after for before, after in itertools.pairwise(shades)) > 0.02
    assert min(lightness(FACE) - shade for shade in shades) > 0.2


def test_neighbours_differ_without_colour(project: Any) -> None:
    styles = [line_style(member.style) for member in members_of([project.experiment()])]
    looks = [(style["marker"], str(style["linestyle"])) for style in styles]
    assert len(set(looks)) == len(looks)
    assert styles[0]["color"] == TEACHER
