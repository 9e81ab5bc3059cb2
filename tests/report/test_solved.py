"""What the page says of puzzles."""

import re
import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from halfstep.metrics.frontier import FrontierRow, write_frontier
from halfstep.report.charts import charts_of
from halfstep.report.page import write_page
from halfstep.report.solved import Solved, budget_rows, sentences
from halfstep.report.table import terminal_solved


def row(sampler: str, setting: str, evaluations: float, solved: float, temperature: float = 0.0) -> FrontierRow:
    return FrontierRow(
        model="0", sampler=sampler, setting=setting, temperature=temperature, evaluations=evaluations,
        equivalent_evaluations=evaluations, seconds_per_sample=0.1, num_samples=400, givens=14, solved=solved,
    )  # fmt: skip


ORDERED = "score=entropy,noise=0.0,counts=even"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_each_budget_has_the_best_way_by_its_short_name_and_ancestral_sampling_at_any_temperature(
    temperature: float,
) -> None:
    solved = Solved([
        row("ancestral", "num_steps=4", 4.0, 0.45, temperature),
        row("ancestral", "num_steps=8", 7.6, 0.65, temperature),
        row("ordered", f"num_steps=4,{ORDERED}", 4.0, 0.6), row("ordered", f"num_steps=8,{ORDERED}", 8.0, 0.85),
        row("entropy_bound", "gamma=0.1", 4.6, 0.992), row("entropy_bound", "gamma=0.2", 5.5, 0.997),
    ])  # fmt: skip
    found = {budget: cells for budget, *cells in budget_rows(solved, 14)}
    # Nothing was drawn in 2 evaluations or fewer.
    assert min(found, key=int) == "4"
    assert found["4"][0] == "ordered (4 steps), likeliest token"
    assert found["4"][2].startswith("45 % [40.2, 49.9]")
    # Of two that solve 99 % or more the cheaper one, whichever solves more.
    assert found["8"][:2] == ["entropy_bound (gamma 0.1), likeliest token", "99.2 % [97.8, 99.7]"]
    assert found["8"][2].startswith("65 %")
    (sentence,) = sentences(solved)
    assert "drawn by entropy_bound (gamma 0.1), likeliest token, solves 99.2 %" in sentence
    assert "ancestral sampling solves 65 %" in sentence


def test_experiments_are_compared_by_the_share_they_solve(tmp_path: Path, make_project: Any) -> None:
    experiments = []
    for seed, share in ((0, 0.5), (1, 0.6)):
        project = make_project(tmp_path / str(seed))
        shutil.rmtree(project.root / "frontier")
        rows = [row("ancestral", "num_steps=4", 4.0, 0.4), row("ordered", "num_steps=8", 8.0, share)]
        rows += [row("ancestral", "num_steps=16", 16.0, 0.3)]
        write_frontier(project.root / "frontier" / "0", [replace(each, temperature=1.0) for each in rows], [])
        project.forget("data_entropy")
        project.set("ar", "validation_perplexity", 20.0 + seed)
        experiment = project.experiment(seed=seed, rounds=0, schedule={}, models=["ar", "0"])
        experiments.append(replace(experiment, params=experiment.params.model_copy(update={"num_givens": (14,)})))
    write_page(tmp_path / "compare.html", experiments)
    page = (tmp_path / "compare.html").read_text()
    assert (
        "seed=1 (60 % [55.1, 64.7] in 8.0) is best with 14 given, before seed=0 (50 % [45.1, 54.9] in 8.0); the" in page
    )
    assert "intervals are apart." in page
    assert re.search(r'<th scope="row">4</th><td>40 % .*?ancestral \(4 steps\), in 4\.0.*<td>40 %', page)
    assert "scored by different" not in page
    labelled = [replace(each, label=label) for each, label in zip(experiments, "AB", strict=True)]
    (chart,) = (chart for chart in charts_of(labelled) if chart.name == "frontier")
    (panel,) = chart.panels
    lines = {line.label: [(point.x, point.y.value) for point in line.points] for line in panel.lines}
    assert lines == {"A": [(4, 0.4), (8, 0.5)], "B": [(4, 0.4), (8, 0.6)]}
    write_page(tmp_path / "one.html", experiments[:1])
    assert '<th scope="col">ancestral</th></tr>' in (tmp_path / "one.html").read_text()


def test_without_a_student_there_is_no_column_of_it() -> None:
    solved = Solved([row("ancestral", "num_steps=4", 4.0, 0.45)])
    console = Console(width=100, record=True, file=StringIO())
    console.print(terminal_solved(solved))
    assert "student" not in console.export_text()
    with_student = Solved([*solved.rows, replace(solved.rows[0], model="1", solved=0.75)])
    console.print(terminal_solved(with_student))
    assert re.search(r"^ +4 .*75 % \[70\.5, 79\]", console.export_text(), re.MULTILINE)
