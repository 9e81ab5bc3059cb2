"""Several experiments on one page."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from halfstep.report.comparison import comparison_charts, comparison_warnings, write_comparison
from halfstep.report.experiments import Experiment, checked_out, differing_params, labels_of, load_experiment
from halfstep.run.errors import UserError

ROOT = Path(__file__).parents[2]


def write_params(folder: Path, **changes: Any) -> None:
    """The project's parameters with two rounds and some values changed, by dotted name with __ for dots."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values |= {
        "rounds": 2,
        "schedule": {"1": {"teacher": "0"}, "2": {"teacher": "1"}},
        "models": ["ar", "0", "1", "2"],
    }
    for name, value in changes.items():
        *groups, last = name.split("__")
        place = values
        for group in groups:
            place = place[group]
        place[last] = value
    (folder / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")


def experiment(project: Any, name: str, **changes: Any) -> Experiment:
    """The project's present metrics under other parameters."""
    project.metrics()
    write_params(project.root, **changes)
    return load_experiment(name, project.root)


def test_what_differs_names_the_lines(project: Any) -> None:
    reverse = experiment(project, "a", distill__distance="kl_student_teacher")
    squared = experiment(project, "b", distill__distance="mse")
    assert differing_params([reverse, squared]) == {"distill.distance": ["kl_student_teacher", "mse"]}
    assert labels_of([reverse, squared]) == ["distance=kl_student_teacher", "distance=mse"]
    other = experiment(project, "c", distill__distance="mse", seed=1, noise__epsilon=0.01)
    assert labels_of([reverse, other]) == ["a", "c"]
    assert labels_of([reverse, experiment(project, "d", distill__distance="kl_student_teacher")]) == ["a", "d"]


def test_every_experiment_has_a_line_and_equal_teachers_share_one(project: Any) -> None:
    first = experiment(project, "a")
    project.values["2"]["samples"][0]["generative_perplexity"]["value"] = 25.0
    second = experiment(project, "b", distill__distance="mse")
    figures = {chart.name: chart for chart in comparison_charts([first, second], ["A", "B"])}
    lines = {line.label: [point.y.value for point in line.points] for line in figures["steps"].panels[0].lines}
    assert lines == {"teacher": [80, 40], "A": [32, 30], "B": [25, 30]}
    rounds = {line.label: [(p.x, p.y.value) for p in line.points] for line in figures["rounds"].panels[0].lines}
    assert rounds == {"A": [(0, 80), (1, 50), (2, 32)], "B": [(0, 80), (1, 50), (2, 25)]}
    assert figures["rounds"].takeaway.startswith(
        "The last student of B is clearly lowest in generative perplexity with 4 denoising steps: 25.00 ± 0.60, before"
        " A with 32.00 ± 0.60."
    )
    assert "No last student is clearly highest in cloze accuracy" in figures["cloze"].takeaway

    project.values["0"]["samples"][0]["generative_perplexity"]["value"] = 90.0
    third = experiment(project, "c", seed=1)
    steps = next(c for c in comparison_charts([first, third], ["A", "C"]) if c.name == "steps")
    assert [line.label for line in steps.panels[0].lines] == ["teacher of A", "teacher of C", "A", "C"]


def test_scores_by_different_models_are_not_put_on_one_scale(project: Any) -> None:
    first = experiment(project, "a")
    assert comparison_warnings([first, first], ["A", "B"]) == []
    project.values["ar"]["samples"][0]["entropy"]["value"] = 4.0
    second = experiment(project, "b")
    assert "scored by different models" in comparison_warnings([first, second], ["A", "B"])[0]
    steps = next(c for c in comparison_charts([first, second], ["A", "B"]) if c.name == "steps")
    assert steps.panels[0].references == []


def test_the_page_compares_and_states_what_is_missing(project: Any) -> None:
    first = experiment(project, "a")
    for values in project.values.values():
        values["cloze"] = None
        for entry in values["samples"]:
            entry["num_steps"] += 1
    experiment(project, "b", distill__distance="mse", seed=3, noise__epsilon=0.01)
    (project.root / "metrics" / "latency.json").unlink()
    second = load_experiment("b<script>", project.root)
    assert second.latencies is None
    path = project.root / "compare.html"
    write_comparison(path, [first, second])
    page = path.read_text()
    assert "<script>" not in page.replace("<script>{", "")
    assert "b&lt;script&gt;" in page
    assert "no number of denoising steps in common" in page
    assert "No samples were drawn." in page
    rows = re.findall(r'<tr><th scope="row">([\w.]+)</th><td>(.*?)</td><td>(.*?)</td></tr>', page)
    assert ("distill.distance", "kl_student_teacher", "mse") in rows
    assert not re.search(r"https?://", page)


def run(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def test_a_revision_is_read_from_the_cache_and_the_workspace_left_alone(project: Any, tmp_path: Path) -> None:
    from dvc.repo import Repo

    root = project.root
    run(root, "git", "init", "--quiet")
    run(root, "git", "config", "user.name", "test")
    run(root, "git", "config", "user.email", "test@example.invalid")
    for perplexity, tag in ((32.0, "first"), (25.0, "second")):
        project.values["2"]["samples"][0]["generative_perplexity"]["value"] = perplexity
        project.metrics()
        write_params(root, seed=int(perplexity))
        with Repo.init(str(root), force=True) if tag == "first" else Repo(str(root)) as repo:
            repo.add([str(root / "metrics"), str(root / "samples")])
        run(root, "git", "add", "--all")
        run(root, "git", "commit", "--quiet", "--message", tag)
        run(root, "git", "tag", tag)
    (root / "metrics" / "2.json").write_text("{}")
    found = {}
    for tag in ("first", "second"):
        with checked_out(tag, root) as folder:
            assert (folder / "samples" / "2" / "unconditional.parquet").is_file()
            found[tag] = load_experiment(tag, folder)
        assert not folder.exists()
    sampled = {tag: found[tag].metrics["2"].samples[0].generative_perplexity for tag in found}
    assert {tag: estimate.value for tag, estimate in sampled.items() if estimate} == {"first": 32, "second": 25}
    assert found["first"].params["seed"] == 32
    assert json.loads((root / "metrics" / "2.json").read_text()) == {}
    with pytest.raises(UserError, match="no experiment or revision 'third'"), checked_out("third", root):
        pass
    run(root, "git", "rm", "--quiet", "--cached", "metrics.dvc")
    (root / "metrics.dvc").unlink()
    run(root, "git", "commit", "--quiet", "--message", "bare")
    with pytest.raises(UserError, match="HEAD has no metrics at hand"), checked_out("HEAD", root):
        pass
