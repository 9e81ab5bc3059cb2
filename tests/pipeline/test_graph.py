"""The whole stage graph through DVC at the `smoke` preset, in a clean copy of the project."""

import csv
import json
import re
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from dvc.utils.hydra import compose_and_dump
from typer.testing import CliRunner

from halfstep.metrics.record import num_steps_of, read_record
from halfstep.settings.plugins import plugin_names
from halfstep.tools.cli import app
from tests.pipeline.project import CANARY, ROOT, Project, stages_run

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project after its whole graph has run once."""
    project = Project(tmp_path_factory.mktemp("pipeline") / "a project")
    output = project.dvc("exp", "run", "-S", "preset=smoke")
    assert set(stages_run(output)) == {
        "prepare", "pretrain", "baseline", "rival@1", "latency", "report", "track", "frontier@ar-1",
        "distill@1", *(f"{stage}@{model}" for stage in ("sample", "evaluate", "frontier") for model in ("ar", 0, 1)),
    }  # fmt: skip
    return project


def test_every_model_is_measured_and_reported(project: Project) -> None:
    for model in ("ar", "0", "1"):
        record = read_record(project.path / f"metrics/{model}.json")
        assert record.model == model
        accuracy, bits = record.get("cloze_accuracy"), record.get("bits_per_byte")
        assert accuracy is not None
        assert accuracy.count == 10
        assert bits is not None
        assert 0 < bits.value < 8
        assert {sampler for sampler, _ in record.drawn()} == {"autoregressive" if model == "ar" else "ancestral"}
        for drawn in record.drawn():
            perplexity, entropy, nfe = (
                record.get(name, *drawn) for name in ("generative_perplexity", "entropy", "nfe")
            )
            assert perplexity is not None
            assert perplexity.value > 1
            assert perplexity.count > 0
            assert entropy is not None
            assert 0 < entropy.value < 5
            assert nfe is not None
            assert nfe.value <= (num_steps_of(drawn[1]) or 64)
    assert "<img" in (project.path / "reports/index.html").read_text()


def test_the_frontier_has_every_sampler_and_every_model(project: Project) -> None:
    with (project.path / "reports/frontier.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} == {"ar", "0", "1", "ar-1"}
    assert {row["sampler"] for row in rows if row["model"] == "0"} == {*plugin_names("halfstep.samplers")}
    assert all(float(row["perplexity"]) > 1 and 0 < float(row["evaluations"]) <= 64 for row in rows)
    depth = {row["model"]: float(row["equivalent_evaluations"]) / float(row["evaluations"]) for row in rows}
    assert depth == {"ar": 1, "0": 1, "1": 1, "ar-1": 0.5}


@pytest.fixture
def bucket() -> Iterator[str]:
    """URL of a local S3 server with a bucket `halfstep`."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/halfstep", method="PUT")).close()
    yield f"http://{host}:{port}"
    server.stop()


def test_a_clone_that_pulls_reproduces_nothing_and_shows_every_round(
    project: Project, bucket: str, tmp_path: Path
) -> None:
    with (project.path / ".dvc" / "config").open("a") as config:
        config.write(f"['remote \"storage\"']\n    url = s3://halfstep/stories\n    endpointurl = {bucket}\n")
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message", "results")
    project.dvc("push", "--remote", "storage", "--run-cache")
    clone = project.clone(tmp_path / "clone")
    assert not (clone.path / "models").exists()
    clone.dvc("pull", "--remote", "storage", "--run-cache")
    output = clone.dvc("repro")
    assert stages_run(output) == []
    assert "up to date" in output
    assert clone.run("git", "status", "--short") == ""
    for file in ("models/1/model.safetensors", "samples/1/unconditional.parquet", "metrics/1.json"):
        assert (clone.path / file).read_bytes() == (project.path / file).read_bytes()
    shown = CliRunner().invoke(
        app, ["summary", "--metrics", f"{clone.path}/metrics", "--params", f"{clone.path}/params.yaml"]
    )
    assert "teacher" in shown.output
    assert "round 1" in shown.output
    # Without the lock file DVC has only its run cache to know the results by.
    (clone.path / "dvc.lock").unlink()
    output = clone.dvc("repro", "evaluate@1")
    assert stages_run(output) == []
    restored = re.findall(r"Stage '([^']+)' is cached", output)
    assert set(restored) == {"prepare", "pretrain", "baseline", "distill@1", "sample@1", "evaluate@1"}


def test_nothing_of_the_environment_is_written_down(project: Project) -> None:
    """No file of the run holds a secret: not MLflow's database and artifacts, no report, metrics, lock or cache."""
    files = [path for path in project.path.rglob("*") if path.is_file()]
    assert {"mlflow.db", "mlflow.json", "index.html", "summary.json", "dvc.lock"} <= {path.name for path in files}
    found = {path.relative_to(project.path).as_posix() for path in files if CANARY.encode() in path.read_bytes()}
    assert {name for name in found if not name.startswith("tests/")} == set()
    assert "tests/pipeline/project.py" in found


def test_a_second_run_has_nothing_to_do(project: Project) -> None:
    output = project.dvc("repro")
    assert stages_run(output) == []
    assert "up to date" in output


def stale_stages(project: Project, *edited: str) -> set[str]:
    """The stages, without what follows `@`, that DVC would run again if files of the package were edited or new."""
    files = [project.path / "src" / "halfstep" / name for name in edited]
    before = [file.read_bytes() if file.exists() else None for file in files]
    try:
        for file, content in zip(files, before, strict=True):
            file.parent.mkdir(exist_ok=True)
            file.write_bytes((content or b"") + b"# edited\n")
        return {stage.partition("@")[0] for stage in json.loads(project.dvc("status", "--json"))}
    finally:
        for file, content in zip(files, before, strict=True):
            if content is None:
                file.unlink()
            else:
                file.write_bytes(content)


def test_what_decides_no_result_and_what_is_new_makes_no_finished_stage_stale(project: Project) -> None:
    edited = ("run/errors.py", "report/page.py", "tracking/client.py", "tools/cli.py")
    new = ("objectives/other.py", "samplers/other.py", "data/corpora/other.py", "evaluation/metrics/other.py")
    assert stale_stages(project, *edited, *new) <= {"report", "track"}


def test_edited_mathematics_makes_the_models_stale_that_it_decides(project: Project) -> None:
    stale = stale_stages(project, "diffusion/schedule.py")
    assert stale == {"pretrain", "distill", "sample", "latency", "evaluate", "frontier"}


def test_metrics_plots_and_experiments_are_shown(project: Project, tmp_path: Path) -> None:
    shown = json.loads(project.dvc("metrics", "show", "--json"))
    assert shown
    assert "smoke" in project.dvc("exp", "show", "--csv")
    project.dvc("plots", "show", "--out", str(tmp_path / "plots"))
    assert "vega" in (tmp_path / "plots" / "index.html").read_text()


def test_mlflow_holds_a_parent_and_a_child_for_every_model(project: Project) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project.path}/mlflow.db")
    experiment = client.get_experiment_by_name("halfstep")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    children = {run.data.tags["halfstep.model"]: run for run in runs if "mlflow.parentRunId" in run.data.tags}
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    assert children.pop("ar-1").info.status == "FINISHED"
    assert children.keys() == {"ar", "0", "1"}
    assert parent.data.tags["halfstep.preset"] == "smoke"
    for model, run in children.items():
        assert run.info.status == "FINISHED"
        curve = client.get_metric_history(run.info.run_id, "generative_perplexity")
        rows = read_record(project.path / f"metrics/{model}.json").rows
        expected = [row.estimate.value for row in rows if row.metric == "generative_perplexity"]
        assert sorted(point.value for point in curve) == pytest.approx(sorted(expected))


def stale_after(project: Project, *overrides: str) -> set[str]:
    """The stages that DVC would run again with other parameters, which stay in place."""
    conf, plugins = project.path / "pipeline" / "conf", project.path / "pipeline" / "plugins"
    composed = ["preset=smoke", *overrides]
    compose_and_dump(project.path / "params.yaml", str(conf), None, "config", str(plugins), composed)
    return set(json.loads(project.dvc("status", "--json")))


def test_one_round_more_needs_that_round_and_one_round_fewer_none(project: Project) -> None:
    added = {"distill@2", "sample@2", "evaluate@2", "frontier@2", "report", "track"}
    assert stale_after(project, "rounds=2") == added
    assert stages_run(project.dvc("repro", "distill@2")) == ["distill@2"]
    # They read the folders in which the second round lies.
    assert stale_after(project, "rounds=1") <= {"report", "track"}


def test_other_samplers_of_students_leave_the_frontiers_of_the_others(project: Project) -> None:
    ways = "frontier.student_samplers=[{name: ancestral, num_steps: [2]}]"
    assert stale_after(project, "rounds=1", ways) - {"report", "track"} == {"frontier@1"}
    assert stale_after(project, "rounds=1") <= {"report", "track"}


def test_parameters_edited_by_hand_so_that_they_contradict_themselves_are_refused(project: Project) -> None:
    params = project.path / "params.yaml"
    text = params.read_text()
    params.write_text(re.sub(r"^rounds: \d+", "rounds: 5", text, flags=re.MULTILINE))
    try:
        output = project.dvc("repro", code=None)
    finally:
        params.write_text(text)
    assert "contradicts itself" in output
    assert "dvc exp run -S rounds=5" in output
    assert "Traceback" not in output


def test_text_is_generated_from_a_prompt(project: Project) -> None:
    output = project.run("halfstep", "generate", "--model", "models/1", "--num-steps", "4", "--prompt", "One day")
    assert output.startswith("One day")


MEASURED = [f"{stage}@{model}" for stage in ("sample", "evaluate") for model in ("ar", 0, 1)]


@pytest.mark.parametrize(
    ("target", "num_kills", "stages", "out"),
    [
        ("distill", 1, ["prepare", "pretrain", "distill@1"], "models/1"),
        pytest.param(
            "evaluate", 3, ["prepare", "pretrain", "baseline", "distill@1", *MEASURED], "metrics/1.json",
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_killed_at_random_moments_another_copy_gives_the_same_bytes(
    project: Project, tmp_path: Path, target: str, num_kills: int, stages: list[str], out: str
) -> None:
    """Tokens, models, curves, samples and metrics; from a path of another length, and so at another time."""
    (tmp_path / "undisturbed").symlink_to(project.path)
    (tmp_path / "undisturbed.seconds.json").write_text(json.dumps(dict.fromkeys(stages, 7)))
    Project(tmp_path / "killed")
    script = str(ROOT / "tests/soak/soak.py")
    options = ["--preset", "smoke", "--target", target, "--num-kills", str(num_kills), "--seed", "3"]
    output = project.run(sys.executable, script, str(tmp_path), *options)
    assert f"{num_kills} kill" in output
    hashes = json.loads((tmp_path / "hashes.json").read_text())
    assert {"data/tokens", "models/0", out} <= hashes.keys()
