"""The whole stage graph through DVC at the `smoke` preset, in a clean copy of the project."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from halfstep.tools.cli import app

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.pipeline

CANARY = "canary-4f1d9c"
SECRETS = dict.fromkeys(
    ("HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "MY_API_KEY"), CANARY
)
"""In the environment of every command, and to be found nowhere else."""

IDENTITY = {
    "GIT_AUTHOR_NAME": "test",
    "GIT_AUTHOR_EMAIL": "test@example.invalid",
    "GIT_COMMITTER_NAME": "test",
    "GIT_COMMITTER_EMAIL": "test@example.invalid",
}


class Project:
    """A copy of the project's files in a repository of its own, at a path with a space in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, path / name)
        for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "start"]):
            self.run("git", *command)

    def clone(self, path: Path) -> "Project":
        """What someone else gets from the Git repository."""
        self.run("git", "clone", "--quiet", str(self.path), str(path))
        clone = copy.copy(self)
        clone.path = path
        return clone

    def run(self, *command: str, code: int | None = 0) -> str:
        """Run a command in the project; its output, both streams together."""
        binaries = str(Path(sys.executable).parent)
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_", "GIT_", "AWS_"))
        }
        environment |= (
            SECRETS
            | IDENTITY
            | {
                "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
                "HF_HUB_OFFLINE": "1",
            }
        )
        done = subprocess.run(
            command,
            cwd=self.path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert code is None or done.returncode == code, done.stdout[-4000:]
        assert CANARY not in done.stdout
        return done.stdout

    def dvc(self, *arguments: str, code: int | None = 0) -> str:
        return self.run(sys.executable, "-m", "dvc", *arguments, code=code)


def stages_run(output: str) -> list[str]:
    """The stages that DVC ran, in order."""
    return re.findall(r"Running stage '([^']+)'", output)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project after its whole graph has run once."""
    project = Project(tmp_path_factory.mktemp("pipeline") / "a project")
    output = project.dvc("exp", "run", "-S", "preset=smoke")
    assert set(stages_run(output)) == {
        "prepare", "pretrain", "baseline", "latency", "report", "track",
        "distill@1", *(f"{stage}@{model}" for stage in ("sample", "evaluate") for model in ("ar", 0, 1)),
    }  # fmt: skip
    return project


def test_every_model_is_measured_and_reported(project: Project) -> None:
    for model in ("ar", "0", "1"):
        metrics = json.loads((project.path / f"metrics/{model}.json").read_text())
        assert metrics["model"] == model
        assert metrics["cloze"]["accuracy"]["count"] == 10
        assert 0 < metrics["validation"]["bits_per_byte"]["value"] < 8
        assert metrics["likelihood_on"] == metrics["downstream"] == {}
        for entry in metrics["samples"]:
            assert entry["generative_perplexity"]["value"] > 1
            assert entry["generative_perplexity"]["count"] > 0
            assert 0 < entry["entropy"]["value"] < 5
            assert entry["nfe"]["value"] <= entry["num_steps"]
    page = (project.path / "reports/index.html").read_text()
    assert "<img" in page
    assert (project.path / "reports/README.md").is_file()


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
    assert "tests/test_pipeline.py" in found


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
    new = ("objectives/other.py", "samplers/other.py", "data/other.py", "evaluation/metrics/other.py")
    assert stale_stages(project, *edited, *new) <= {"report", "track"}


def test_edited_mathematics_makes_the_models_stale_that_it_decides(project: Project) -> None:
    assert stale_stages(project, "diffusion/schedule.py") == {"pretrain", "distill", "sample", "latency", "evaluate"}


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
    assert children.keys() == {"ar", "0", "1"}
    assert parent.data.tags["halfstep.preset"] == "smoke"
    for model, run in children.items():
        assert run.info.status == "FINISHED"
        curve = client.get_metric_history(run.info.run_id, "generative_perplexity")
        metrics = json.loads((project.path / f"metrics/{model}.json").read_text())
        expected = {entry["num_steps"]: entry["generative_perplexity"]["value"] for entry in metrics["samples"]}
        assert {point.step: point.value for point in curve} == pytest.approx(expected)


SECONDS_A_STAGE = 8.0
"""About what a stage of the smoke preset takes; it decides only when the kills come."""


@pytest.mark.parametrize(
    ("target", "num_kills", "outs"),
    [
        ("distill", 1, ["data/tokens", "models/0", "models/1"]),
        pytest.param(
            "evaluate",
            3,
            ["data/tokens", "models/0", "models/ar", "models/1", "samples/1", "metrics/1.json"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_killed_at_random_moments_a_second_clone_gives_the_same_bytes(
    project: Project, tmp_path: Path, target: str, num_kills: int, outs: list[str]
) -> None:
    """Tokens, models, curves, samples and metrics; from a path of another length, and so at another time."""
    (tmp_path / "undisturbed").symlink_to(project.path)
    # Without the stages whose outputs hold times, which are not compared.
    stages = {"prepare", "pretrain", "distill@1"}
    if target == "evaluate":
        stages |= {f"{stage}@{model}" for stage in ("sample", "evaluate") for model in ("ar", "0", "1")} | {"baseline"}
    (tmp_path / "undisturbed.seconds.json").write_text(json.dumps(dict.fromkeys(stages, SECONDS_A_STAGE)))
    Project(tmp_path / "killed")
    script = str(ROOT / "tests/soak/soak.py")
    options = ["--preset", "smoke", "--target", target, "--num-kills", str(num_kills), "--seed", "3"]
    output = project.run(sys.executable, script, str(tmp_path), *options)
    assert f"{num_kills} kill" in output
    for out in outs:
        assert out in json.loads((tmp_path / "hashes.json").read_text())


def test_a_queued_experiment_runs_the_code_it_was_queued_with(tmp_path: Path) -> None:
    """What was edited since neither runs nor comes back from the run cache."""
    project = Project(tmp_path / "queue")
    command = ["prepare", "-S", "preset=smoke", "-S", "rounds=0", "-S", "seed=77"]
    project.dvc("exp", "run", "--queue", *command)
    corpora = project.path / "src/halfstep/data/corpora.py"
    text = corpora.read_text()
    edited = text.replace("stories(num_documents, seed)", "stories(num_documents // 2, seed)")
    assert edited != text
    corpora.write_text(edited)
    # As where the environment is installed from the workspace.
    project.run("env", f"PYTHONPATH={project.path / 'src'}", sys.executable, "-m", "dvc", "queue", "start")
    while re.search(r"Queued|Running", project.dvc("queue", "status")):
        time.sleep(0.5)
    corpora.write_text(text)
    output = project.dvc("exp", "run", *command)
    assert "Stage 'prepare' is cached" in output
    manifest = json.loads((project.path / "data/tokens/manifest.json").read_text())
    assert manifest["train"]["num_documents"] + manifest["valid"]["num_documents"] == 400


def test_one_round_more_runs_that_round_and_one_round_fewer_runs_none(project: Project) -> None:
    output = project.dvc("exp", "run", "-S", "preset=smoke", "-S", "rounds=2")
    assert stages_run(output) == ["distill@2", "sample@2", "evaluate@2", "report", "track"]
    output = project.dvc("exp", "run", "-S", "preset=smoke", "-S", "rounds=1")
    assert stages_run(output) in (["track"], ["report", "track"])


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


def test_an_edited_corpus_is_prepared_again_and_edited_back_it_is_restored(tmp_path: Path) -> None:
    project = Project(tmp_path / "a project")
    (project.path / "my").mkdir()
    text = "".join(f"The cat number {number} sat on a mat with cat {7 * number}.\n\n" for number in range(200))
    for name in ("a", "b"):
        (project.path / "my" / f"{name}.txt").write_text(text)
    edited = project.path / "my" / "a.txt"
    tokens = project.path / "data" / "tokens" / "manifest.json"

    def repro(project: Project = project) -> str:
        output = project.dvc("repro", "prepare")
        # A corpus without cloze passages.
        assert "is empty" not in output
        return output

    output = project.dvc("exp", "run", "prepare", "-S", "preset=smoke", "-S", "data=text", "-S", "data.path=my/*.txt")
    assert stages_run(output) == ["inputs@prepare", "prepare"]
    assert "is empty" not in output
    first = tokens.read_bytes()
    edited.touch()
    assert stages_run(repro()) == ["inputs@prepare"]
    assert project.run("git", "status", "--short", "--untracked-files=no") == " M params.yaml\n"
    project.run("git", "add", "params.yaml", "dvc.lock")
    project.run("git", "commit", "--quiet", "--message", "results")

    edited.write_text(text.replace("cat", "dog"))
    assert stages_run(repro()) == ["inputs@prepare", "prepare"]
    assert tokens.read_bytes() != first
    (project.path / "dvc.lock").unlink()
    edited.write_text(text)
    output = repro()
    assert stages_run(output) == ["inputs@prepare"]
    assert "Stage 'prepare' is cached" in output
    assert tokens.read_bytes() == first

    # Someone else's clone, which has the results and not the text.
    clone = project.clone(tmp_path / "clone")
    clone.dvc("cache", "dir", "--local", str(project.path / ".dvc" / "cache"))
    clone.dvc("checkout", "prepare", "inputs@prepare")
    output = repro(clone)
    assert stages_run(output) == ["inputs@prepare"]
    assert "data.path=my/*.txt is not on this machine: the hashes recorded before are kept" in output
    assert clone.run("git", "status", "--short") == ""


def test_text_is_generated_from_a_prompt(project: Project) -> None:
    output = project.run("halfstep", "generate", "--model", "models/1", "--num-steps", "4", "--prompt", "One day")
    assert output.startswith("One day")
    shown = project.run(
        "halfstep", "generate", "--model", "models/1", "--num-steps", "2", "--show", "--pause-seconds", "0"
    )
    assert "denoising step 2 of 2" in shown
    refused = project.run("halfstep", "generate", "--model", "models", code=2)
    assert "not a model's folder" in refused
    assert "Traceback" not in refused
