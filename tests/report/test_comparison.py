"""Several experiments on one page."""

import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.report.conftest import AT_ENTROPY

from halfstep.report.charts import Chart, charts_of
from halfstep.report.experiment import Experiment, checked_out, differing_params, labels_of, load_experiment
from halfstep.report.page import write_page
from halfstep.run.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def pair(tmp_path: Path, make_project: Any) -> tuple[Any, Any]:
    """Two equal runs."""
    return make_project(tmp_path / "a"), make_project(tmp_path / "b")


def charts(*experiments: Experiment) -> dict[str, Chart]:
    """Charts of two experiments that are called A and B."""
    labelled = [replace(experiment, label=label) for experiment, label in zip(experiments, "AB", strict=True)]
    return {chart.name: chart for chart in charts_of(labelled)}


def shown(path: Path, *experiments: Experiment) -> str:
    """The page's HTML without its figures."""
    write_page(path / "compare.html", experiments)
    return re.sub(r"data:image[^\"]*", "", (path / "compare.html").read_text())


def test_what_differs_names_the_lines(pair: Any, tmp_path: Path) -> None:
    first, second = pair
    zero, one = first.experiment("a", seed=0), second.experiment("b", seed=1)
    assert differing_params([zero, one]) == {"seed": ["0", "1"]}
    assert labels_of([zero, one]) == ["seed=0", "seed=1"]
    other = second.experiment("c", seed=1, noise__epsilon=0.01, runtime__num_threads=2)
    assert labels_of([zero, other]) == ["a", "c"]
    assert labels_of([zero, first.experiment("d")]) == ["a", "d"]
    # An objective brings settings of its own, and its name says enough.
    path = second.root / "params.yaml"
    values = yaml.safe_load(path.read_text())
    del values["distill"]["joint"]
    values["distill"] |= yaml.safe_load((ROOT / "pipeline/conf/objective/sdtt.yaml").read_text())
    values["frontier"]["student_samplers"] = [{"name": "ancestral", "num_steps": [4, 8]}]
    path.write_text(yaml.safe_dump(values))
    sdtt = load_experiment("sdtt", second.root)
    assert labels_of([zero, sdtt]) == ["objective=joint, seed=0", "objective=sdtt, seed=1"]
    differing = differing_params([zero, sdtt])
    assert differing["distill.joint.hidden_size"] == ["null", "–"]
    assert differing["distill.joint.train_trunk"] == ["true", "–"]
    trained = []
    for objective in ("gumbel", "nelbo"):
        section = yaml.safe_load((ROOT / f"pipeline/conf/objective/{objective}.yaml").read_text())
        distill = {key: value for key, value in values["distill"].items() if key not in ("sdtt", "gumbel")} | section
        path.write_text(yaml.safe_dump(values | {"distill": distill}))
        trained.append(load_experiment(objective, second.root))
        assert trained[-1].flat_params["distill.objective"] == objective  # read while it is there
    assert differing_params(trained)["distill.gumbel.noise_share"] == ["0.9", "–"]
    assert labels_of(trained) == ["objective=gumbel", "objective=nelbo"]
    assert differing["frontier.student_samplers"][1] == "[{name: ancestral, num_steps: [4, 8]}]"
    # What another version had no name for yet, or no longer has one for, is a difference as any other.
    del values["inputs"], values["launch"]
    path.write_text(yaml.safe_dump(values | {"once": 1}))
    other = differing_params([zero, load_experiment("older", second.root)])
    assert (other["once"], other["launch.strategy"][1]) == (["–", "1"], "–")
    del values["frontier"]["num_givens"]
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"params\.yaml: parameter frontier\.num_givens is missing"):
        load_experiment("oldest", second.root)


def test_every_experiment_has_a_line_and_equal_teachers_share_one(pair: Any, tmp_path: Path) -> None:
    first, second = pair
    second.set("2", "generative_perplexity", 25.0, 0.6, steps=4)
    figures = charts(first.experiment(), second.experiment())
    lines = {line.label: [point.y.value for point in line.points] for line in figures["steps"].panels[0].lines}
    assert lines == {"teacher": [80, 40], "A": [32, 30], "B": [25, 30]}
    rounds = {line.label: [(p.x, p.y.value) for p in line.points] for line in figures["rounds"].panels[0].lines}
    assert rounds == {"A": [(0, 80), (1, 50), (2, 32)], "B": [(0, 80), (1, 50), (2, 25)]}
    assert {line.label for line in figures["training"].panels[1].lines} == {"A", "B"}

    second.set("0", "generative_perplexity", 90.0, 1.0, steps=4)
    figures = charts(first.experiment(), second.experiment())
    assert [line.label for line in figures["steps"].panels[0].lines] == ["teacher of A", "teacher of B", "A", "B"]
    assert len(figures["loss_by_time"].panels) == 1


def test_the_best_is_named_where_it_is_clear(pair: Any, tmp_path: Path) -> None:
    first, second = pair
    second.set("2", "validation_perplexity", 15.0, 0.2)
    page = shown(tmp_path, first.experiment("a"), second.experiment("b"))
    assert "b is clearly lowest in validation perplexity: 15.00 ± 0.20, before a" in page
    assert "No last student is clearly lowest in cloze perplexity" in page


def test_frontiers_are_side_by_side_with_the_teacher_they_share(pair: Any, tmp_path: Path) -> None:
    first, second = pair
    second.set_curves("2", {("ordered", 4): 12.0})
    # It is the same one though it was drawn faster.
    second.set_curves("0", AT_ENTROPY["0"], seconds=0.005)
    experiments = first.experiment("a"), second.experiment("b")
    page = shown(tmp_path, *experiments)
    lowest = (
        r"or fewer, b \(12\.0\d* \[.*?\]\) has the lowest .*, before the teacher \(22\.0\d* \[.*?\]\); the intervals "
    )
    assert re.search(lowest + r"are apart\.", page)
    cells = [r"60\.0.*ordered \(4 steps\)", r"48\.0.*0\.80\d* \[.* of the teacher", r"12\.0.*0\.20\d* \[.* of"]
    assert re.search(r'<th scope="row">4</th>' + "".join(f"<td>{cell}.*?</td>" for cell in cells), page)
    # Of nobody anything is known within 1 or 2.
    assert not re.search(r'<th scope="row">[12]</th>', page)
    # By ancestral sampling: b was not drawn so.
    assert re.search(r'<th scope="row">4</th><td>90\.0.*<td>50\.0.*<td>–</td>', page)
    # What the best within 16 costs; both have the text's entropy.
    assert re.search(r'<th scope="row">b</th><td>4</td><td>4</td><td>0\.04</td><td>4\.41</td><td>0\.5</td>', page)
    figures = charts(*experiments)
    best, ancestral = figures["frontier"].panels
    styles = {line.label: line.style for line in figures["steps"].panels[0].lines}
    assert {line.label: line.style for line in best.lines} == styles, "an experiment looks the same in every figure"
    assert {line.label: [(point.x, round(point.y.value, 6)) for point in line.points] for line in best.lines} == {
        "teacher": [(4, 60), (16, 22)],
        "A": [(4, 48), (16, 22.5)],
        "B": [(4, 12)],
    }
    assert [[point.x for point in line.points] for line in ancestral.lines] == [[4, 16], [4], []]
    second.set_curves("2", {("ordered", 4): 21.9})
    page = shown(tmp_path, first.experiment("a"), second.experiment("b"))
    assert re.search(lowest.replace(r"12\.0", r"21\.9") + r"are not apart\.", page)
    second.set_curves("0", {("ordered", 4): 61.0})
    experiments = first.experiment("a"), second.experiment("b")
    assert [line.label for line in charts(*experiments)["frontier"].panels[0].lines] == ["A", "B"]


def test_published_numbers_stand_beside_a_comparison_of_texts(pair: Any, tmp_path: Path) -> None:
    first, second = pair
    page = shown(tmp_path, first.experiment("a"), second.experiment("b"))
    # Of arXiv:2610.06648: 43.5 / 282.5 at 8 steps; MDLM's at 16 are not in it.
    row = (
        r'<th scope="row">MDLM-MMD.*?</th><td>–</td><td>43\.5 \(5\.43\).*?0\.15 of MDLM.*?</td><td>26\.8 \(5\.42\)</td>'
    )
    assert re.search(row, page)
    assert "published: steps" not in shown(tmp_path, first.experiment("a"))


def test_seeds_of_one_way_are_one_column(tmp_path: Path, make_project: Any) -> None:
    experiments = []
    for rate, found in ((0.1, (30.0, 40.0)), (0.2, (90.0, 10.0))):
        for seed, perplexity in enumerate(found):
            project = make_project(tmp_path / f"{rate}-{seed}")
            project.set_curves("2", {("ordered", 4): perplexity})
            experiments.append(project.experiment(seed=seed, distill__learning_rate=rate))
    page = shown(tmp_path, *experiments)
    names = ["teacher", "learning_rate=0.1", "learning_rate=0.2"]
    assert "".join(f'<th scope="col">{name}</th>' for name in names) in page
    row = re.search(r'<th scope="row">4</th>(.*)</tr>', page)
    assert row
    seeds = [("60", "60, 60"), ("34.6", "30, 40"), ("30", "90, 10")]
    assert re.findall(r"<td>([\d.]+)<span class=\"below\">seeds: ([\d., ]+)<", row[1]) == seeds
    assert "0.5 of the teacher&#39;s, better with 1 of 2" in row[1]
    assert page.count('<th scope="row">autoregressive, KV cache</th>') == 1, "all have the same times"
    labelled = [replace(e, label=label) for e, label in zip(experiments, labels_of(experiments), strict=True)]
    (frontier,) = (chart for chart in charts_of(labelled) if chart.name == "frontier")
    assert [line.label for line in frontier.panels[0].lines] == [name for name in names for _ in range(2)]


def test_teachers_are_compared_where_no_round_was_distilled(pair: Any) -> None:
    first, second = (each.experiment(rounds=0, schedule={}, models=["ar", "0"]) for each in pair)
    panel = charts(first, second)["frontier"].panels[0]
    assert [[point.x for point in line.points] for line in panel.lines] == [[4, 16], [4, 16]]


def test_scores_by_different_models_are_not_put_on_one_scale(pair: Any, tmp_path: Path) -> None:
    first, second = pair
    assert "scored by different models" not in shown(tmp_path, first.experiment("a"), second.experiment("b"))
    second.set("ar", "entropy", 4.0, 0.01)
    experiments = first.experiment("a"), second.experiment("b")
    assert "scored by different models" in shown(tmp_path, *experiments)
    assert charts(*experiments)["steps"].panels[0].references == []


def test_the_page_compares_and_states_what_is_missing(pair: Any, tmp_path: Path) -> None:
    first, second = pair
    second.forget("cloze_accuracy", "cloze_perplexity")
    second.rows["2"] = {
        (name, sampler, setting and setting.replace("num_steps=", "num_steps=1")): value
        for (name, sampler, setting), value in second.rows["2"].items()
    }
    second.experiment(seed=3, noise__epsilon=0.01, runtime__num_threads=2)
    (second.root / "metrics" / "latency.json").unlink()
    for folder in ("samples", "curves", "frontier"):
        (second.root / folder).rename(second.root / f"no {folder}")
    page = shown(tmp_path, first.experiment("a"), load_experiment("b<script>", second.root))
    assert "<script>" not in page.replace("<script>\n", "")
    assert "b&lt;script&gt;: Nothing was drawn at several temperatures" in page
    assert "drawn in the same number" in page
    rows = re.findall(r'<tr><th scope="row">([\w.]+)</th><td>(.*?)</td><td>(.*?)</td></tr>', page)
    assert ("seed", "0", "3") in rows
    assert not re.search(r"https?://", page)
    # Samples of the first one are there.
    assert '"models": ["teacher", "a"]' in page or '"models": ["teacher of a", "a"]' in page


def run(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def test_a_revision_is_read_from_the_cache_and_the_workspace_left_alone(
    project: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from dvc.repo import Repo

    root = project.root
    run(root, "git", "init", "--quiet")
    run(root, "git", "config", "user.name", "test")
    run(root, "git", "config", "user.email", "test@example.invalid")
    for perplexity, tag in ((32.0, "first"), (25.0, "second")):
        project.set("2", "generative_perplexity", perplexity, 0.6, steps=4)
        project.experiment(seed=int(perplexity))
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
    values = {tag: e.records["2"].get("generative_perplexity", "ancestral", "num_steps=4") for tag, e in found.items()}
    assert {tag: value.value for tag, value in values.items() if value} == {"first": 32, "second": 25}
    assert found["first"].params.seed == 32
    assert (root / "metrics" / "2.json").read_text() == "{}"
    with pytest.raises(UserError, match="no experiment or revision 'third'"), checked_out("third", root):
        pass
    nowhere = tmp_path_factory.mktemp("nowhere")
    with pytest.raises(UserError, match="nowhere0 has no experiments: run in"), checked_out("first", nowhere):
        pass
    run(root, "git", "rm", "--quiet", "--cached", "metrics.dvc")
    (root / "metrics.dvc").unlink()
    run(root, "git", "commit", "--quiet", "--message", "bare")
    with pytest.raises(UserError, match="HEAD has no metrics at hand"), checked_out("HEAD", root):
        pass
