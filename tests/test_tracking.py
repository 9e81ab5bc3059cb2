"""MLflow shows what the files hold: once, completely, and whatever happened on the way."""

import errno
import json
import logging
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from stages import track
from typer.testing import CliRunner, Result

from halfstep import tracking
from halfstep.run.errors import Interrupted, UserError
from halfstep.run.faults import STORAGE_FAULTS
from halfstep.settings import TrackingSettings
from halfstep.tools import cli
from halfstep.tools.cli import app

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # within MLflow

MODELS = ["ar", "0", "1"]
CURVE = {10: 4.0, 20: 3.5, 30: 3.25, 40: 3.125}
COLUMNS = ("loss", "learning_rate")


def estimate(value: float) -> dict[str, Any]:
    return {"value": value, "standard_error": 0.1, "count": 16, "unit": "1"}


def make_params(seed: int = 0) -> dict[str, Any]:
    return {
        "preset": "smoke",
        "seed": seed,
        "models": MODELS,
        "model": {"hidden_size": 32},
        "pretrain": {"learning_rate": 0.003},
        "baseline": {"learning_rate": 0.002},
        "distill": {"learning_rate": 0.001, "distance": "mse"},
        "sample": {"num_steps": [4, 16]},
        "tracking": {"experiment": "halfstep", "log_models": True},
    }


class Project:
    """The files of a finished pipeline run, and MLflow's view of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.params = make_params()
        for name in ("metrics", "curves", "reports/figures"):
            (root / name).mkdir(parents=True)
        for name in ("index.html", "README.md", "summary.json", "steps.csv", "figures/steps.png"):
            (root / "reports" / name).write_text(name)
        (root / "params.yaml").write_text("seed: 0\n")
        for model in MODELS:
            self.write_curve(model, CURVE)
            self.write_metrics(model)
            for kind in ("unconditional", "continuations"):
                path = root / "samples" / model / f"{kind}.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(
                    pa.table({"num_steps": [4, 4], "sample_index": [0, 9], "text": ["shown", "not shown"]}),
                    path,
                )
            folder = root / "models" / model
            folder.mkdir(parents=True)
            (folder / "config.json").write_text(model)
            (folder / "train_state.safetensors").write_text("large")

    def write_curve(self, model: str, losses: dict[int, float]) -> None:
        rows = [f"{step},{loss},0.001," for step, loss in losses.items()]
        path = self.root / "curves" / f"{model}.csv"
        path.write_text("\n".join(["step,loss,learning_rate,valid_loss", *rows]) + "\n")

    def write_metrics(self, model: str) -> None:
        samples = [
            {
                "num_steps": steps,
                "nfe": estimate(steps),
                "generative_perplexity": estimate(100.0 / steps),
                "entropy": estimate(4.5),
                "mauve": None,
            }
            for steps in (4, 16)
        ]
        values = {
            "num_parameters": 1000,
            "validation": {"nll_per_token": estimate(3.0), "perplexity": estimate(20.0), "is_bound": True},
            "cloze": None if model == "1" else {"accuracy": estimate(0.5), "perplexity": estimate(9.0)},
            "samples": samples,
        }
        (self.root / "metrics" / f"{model}.json").write_text(json.dumps(values))

    def complete(self) -> tracking.TrackedRuns:
        return tracking.complete(
            self.params,
            params_path=self.root / "params.yaml",
            **{f"{name}_path": self.root / name for name in ("metrics", "curves", "samples", "models", "reports")},
        )

    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking.tracking_uri())

    def histories(self, run_id: str) -> dict[str, list[tuple[int, float]]]:
        """Every point of every metric of a run: (step, value) by name, by step."""
        client = self.client()
        return {
            name: sorted((metric.step, metric.value) for metric in client.get_metric_history(run_id, name))
            for name in client.get_run(run_id).data.metrics
        }

    def snapshot(self) -> dict[str, Any]:
        """All that MLflow holds of all runs."""
        client = self.client()
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        return {
            run.info.run_id: (
                dict(run.info),
                run.data.tags,
                run.data.params,
                self.histories(run.info.run_id),
                artifacts(client, run.info.run_id),
            )
            for run in client.search_runs(experiments)
        }


def artifacts(client: Any, run_id: str, folder: str | None = None) -> list[str]:
    found = []
    for entry in client.list_artifacts(run_id, folder):
        found += artifacts(client, run_id, entry.path) if entry.is_dir else [entry.path]
    return found


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: making one takes seconds, copying it does not."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    tracking._set_defaults()
    tracking._create_database(path)
    return path


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project root with a space in its path, named by DVC_ROOT; the working directory is another one."""
    folder = tmp_path / "a project"
    folder.mkdir()
    elsewhere = tmp_path / "temporary copy"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("DVC_ROOT", str(folder))
    for name in ("MLFLOW_TRACKING_URI", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def project(root: Path, database: Path) -> Project:
    shutil.copyfile(database, root / "mlflow.db")
    return Project(root)


def test_runs_hold_what_the_files_hold(project: Project) -> None:
    runs = project.complete()
    client = project.client()
    assert runs.tracking_uri == "sqlite:///mlflow.db"
    parent = client.get_run(runs.parent_run_id)
    assert parent.data.tags["halfstep.experiment"] == "workspace"
    assert parent.data.tags["halfstep.preset"] == "smoke"
    assert parent.data.params["distill.learning_rate"] == "0.001"
    assert parent.data.params["sample.num_steps"] == "[4, 16]"
    names = ("README.md", "figures/steps.png", "index.html", "steps.csv", "summary.json")
    assert artifacts(client, runs.parent_run_id) == ["params.yaml", *(f"report/{name}" for name in names)]
    assert list(runs.run_ids) == MODELS
    student = client.get_run(runs.run_ids["1"])
    assert student.data.tags["mlflow.parentRunId"] == runs.parent_run_id
    assert (student.data.tags["halfstep.model"], student.data.tags["halfstep.round"]) == ("1", "1")
    assert "halfstep.round" not in client.get_run(runs.run_ids["ar"]).data.tags
    assert student.data.params == {
        "distill.learning_rate": "0.001",
        "distill.distance": "mse",
        "model.hidden_size": "32",
        "seed": "0",
    }
    assert artifacts(client, runs.run_ids["1"]) == ["model/config.json", "samples.txt"]
    assert {run[0]["status"] for run in project.snapshot().values()} == {"FINISHED"}
    assert project.histories(runs.run_ids["1"]) == {
        "loss": list(CURVE.items()),
        "learning_rate": [(step, 0.001) for step in CURVE],
        "generative_perplexity": [(4, 25.0), (16, 6.25)],
        "entropy": [(4, 4.5), (16, 4.5)],
        "nfe": [(4, 4.0), (16, 16.0)],
        "validation_perplexity": [(0, 20.0)],
        "validation_nll_per_token": [(0, 3.0)],
        "num_parameters": [(0, 1000.0)],
    }
    assert project.histories(runs.run_ids["0"])["cloze_accuracy"] == [(0, 0.5)]


def test_files_stay_in_the_project_that_dvc_names(project: Project) -> None:
    runs = project.complete()
    preview = project.root / "mlartifacts" / runs.run_ids["0"] / "artifacts" / "samples.txt"
    assert preview.read_text().count("shown") == 2
    assert "not shown" not in preview.read_text()
    assert list(Path.cwd().iterdir()) == []


def test_completing_twice_changes_nothing(project: Project) -> None:
    runs = project.complete()
    before = project.snapshot()
    assert len(before) == 1 + len(MODELS)
    assert project.complete() == runs
    assert project.snapshot() == before


def test_live_points_are_completed_and_none_is_doubled(project: Project) -> None:
    with tracking.live_run(project.params, model="1") as log:
        for step, loss in list(CURVE.items())[:2]:
            log(step, {"loss": loss, "learning_rate": 0.001, "valid_loss": None})
    (live,) = (run_id for run_id, run in project.snapshot().items() if "halfstep.model" in run[1])
    assert project.histories(live) == {
        "loss": [(10, 4.0), (20, 3.5)],
        "learning_rate": [(10, 0.001), (20, 0.001)],
    }
    assert project.complete().run_ids["1"] == live
    assert project.histories(live)["loss"] == list(CURVE.items())
    assert len(project.snapshot()) == 1 + len(MODELS)


def test_a_gap_in_the_live_points_is_filled(project: Project) -> None:
    with tracking.live_run(project.params, model="1") as log:
        log(10, {"loss": CURVE[10]})
        log(40, {"loss": CURVE[40]})
    assert project.histories(project.complete().run_ids["1"])["loss"] == list(CURVE.items())


def test_a_training_that_goes_on_continues_its_run(project: Project) -> None:
    def train_until_stopped() -> None:
        with tracking.live_run(project.params, model="0") as log:
            log(10, {"loss": CURVE[10]})
            raise Interrupted(15, "stopped")

    with pytest.raises(Interrupted):
        train_until_stopped()
    assert {run[0]["status"] for run in project.snapshot().values()} == {"KILLED"}
    with tracking.live_run(project.params, model="0") as log:
        log(10, {"loss": CURVE[10]})
        log(20, {"loss": CURVE[20]})
    statuses = {run[1]["halfstep.kind"]: run[0]["status"] for run in project.snapshot().values()}
    assert statuses == {"pipeline": "RUNNING", "model": "FINISHED"}
    (run_id,) = (run_id for run_id, run in project.snapshot().items() if "halfstep.model" in run[1])
    assert project.histories(run_id)["loss"] == [(10, 4.0), (20, 3.5)]


def test_a_failing_training_is_marked_and_its_error_is_not_touched(project: Project) -> None:
    with pytest.raises(ZeroDivisionError), tracking.live_run(project.params, model="0"):
        _ = 1 / 0
    assert {run[0]["status"] for run in project.snapshot().values()} == {"FAILED"}


def test_a_run_of_an_earlier_training_is_replaced(project: Project) -> None:
    first = project.complete()
    project.write_curve("1", {10: 9.0, 20: 8.0})
    second = project.complete()
    assert second.parent_run_id == first.parent_run_id
    assert second.run_ids["0"] == first.run_ids["0"]
    assert second.run_ids["1"] != first.run_ids["1"]
    assert project.histories(second.run_ids["1"])["loss"] == [(10, 9.0), (20, 8.0)]
    assert len(project.snapshot()) == 1 + len(MODELS)
    # Live, a model whose run was complete trains anew.
    with tracking.live_run(project.params, model="1") as log:
        log(10, {"loss": 7.0})
    (live,) = (run_id for run_id, run in project.snapshot().items() if run[1].get("halfstep.model") == "1")
    assert project.histories(live) == {"loss": [(10, 7.0)]}


def test_only_changed_files_are_sent_again(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    project.complete()
    sent: list[str] = []
    send = MlflowClient.log_artifact

    def record(client: Any, run_id: str, local_path: str, artifact_path: str | None = None) -> None:
        sent.append(Path(local_path).name)
        send(client, run_id, local_path, artifact_path)

    monkeypatch.setattr(MlflowClient, "log_artifact", record)
    (project.root / "params.yaml").write_text("seed: 0 # the same\n")
    (project.root / "models" / "0" / "train_state.safetensors").write_text("other")
    project.complete()
    assert sent == ["params.yaml"]


def test_each_experiment_and_each_set_of_parameters_has_its_run(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    parents = {project.complete().parent_run_id}
    monkeypatch.setenv("DVC_EXP_NAME", "it's-an-experiment")
    parents.add(project.complete().parent_run_id)
    parents.add(project.complete().parent_run_id)
    assert len(parents) == 2
    project.params = make_params(seed=1)
    parents.add(project.complete().parent_run_id)
    assert len(parents) == 3


CREATE = """
import sys
from halfstep import tracking
assert "mlflow" not in sys.modules
params = {"preset": "smoke", "seed": 0, "model": {}, "baseline": {}, "pretrain": {}, "distill": {},
          "tracking": {"experiment": "halfstep", "log_models": False}}
tracking.FLUSH_SECONDS = 120
with tracking.live_run(params, model=sys.argv[1]) as log:
    log(1, {"loss": 2.0})
"""


def test_two_processes_may_make_the_database_at_once(root: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CREATE, model], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for model in ("ar", "0")
    ]
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert (process.returncode, output) == (0, ""), "neither an error nor chatter"
    from mlflow import MlflowClient

    client = MlflowClient(tracking.tracking_uri())
    experiment = client.get_experiment_by_name("halfstep")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.tags.get("halfstep.model", "parent") for run in runs) == ["0", "ar", "parent"]
    assert [run.data.metrics for run in runs if "halfstep.model" in run.data.tags] == [{"loss": 2.0}] * 2


def test_an_experiment_that_another_clone_makes_in_between_is_used(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    found: Any = MlflowClient.get_experiment_by_name
    made: list[str] = []

    def find(client: Any, name: str) -> Any:
        if made:
            return found(client, name)
        made.append(client.create_experiment(name))
        return None

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", find)
    assert project.complete().experiment_id == made[0]


CLIENT = """
import csv, dataclasses, json, sys
from pathlib import Path
import mlflow
from halfstep import tracking

tracking.FLUSH_SECONDS = 120
params = json.loads(Path("params.json").read_text())
print("ready", flush=True)
sys.stdin.readline()
for model in params["models"]:
    with tracking.live_run(params, model=model) as log, open(f"curves/{model}.csv") as curve:
        for row in csv.DictReader(curve):
            log(int(row["step"]), {name: float(row[name]) for name in ("loss", "learning_rate")})
names = ("metrics", "curves", "samples", "models", "reports")
runs = tracking.complete(params, params_path=Path("params.yaml"), **{f"{name}_path": Path(name) for name in names})
print(json.dumps(dataclasses.asdict(runs)))
"""


@pytest.fixture
def server(root: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URI of `halfstep server`, as a process of its own, in `root`."""
    (root / "server").mkdir()
    shutil.copyfile(database, root / "server" / "mlflow.db")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    started: list[subprocess.Popen[bytes]] = []

    def start(path: str, command: list[str], environment: dict[str, str]) -> None:
        # In a file: nobody reads a pipe while the clients are at work.
        with (root / "server.log").open("wb") as log:
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))

    for name in ("MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION"):
        monkeypatch.delenv(name, raising=False)
    if backend := os.environ.get("HALFSTEP_TEST_BACKEND"):
        monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", backend)
    monkeypatch.setenv("MLFLOW_WORKERS", "1")
    monkeypatch.setattr(os, "execve", start)
    told = CliRunner().invoke(app, ["server", "--port", str(port)])
    assert f"MLFLOW_TRACKING_URI=http://127.0.0.1:{port}" in told.output
    (process,) = started
    try:
        while process.poll() is None:
            with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        assert process.poll() is None, (root / "server.log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def test_two_clients_at_once_on_a_server(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two clones with the same parameters and, as machines differ, other losses: each has its runs, whole.

    HALFSTEP_TEST_BACKEND names an empty database to do the same on, such as PostgreSQL's.
    """
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    clients = []
    for index in range(2):
        project = Project(tmp_path / f"clone {index}")
        project.write_curve("1", {step: index + 1 / step for step in range(1, 501)})
        (project.root / "models" / "1" / "model.safetensors").write_bytes(bytes([index]) * 2**20)
        (project.root / "params.json").write_text(json.dumps(project.params | {"models": ["1"]}))
        process = subprocess.Popen(
            [sys.executable, "-c", CLIENT], cwd=project.root, env=os.environ | {"DVC_ROOT": str(project.root)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        clients.append((project, process))
    for _, process in clients:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for _, process in clients:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    told = [json.loads(process.communicate(timeout=120)[0]) for _, process in clients]
    client = clients[0][0].client()
    (experiment,) = {runs["experiment_id"] for runs in told}
    run_ids = {runs["parent_run_id"] for runs in told} | {runs["run_ids"]["1"] for runs in told}
    assert len(run_ids) == 4
    assert {run.info.run_id for run in client.search_runs([experiment])} == run_ids
    for index, ((project, _), runs) in enumerate(zip(clients, told, strict=True)):
        run_id = runs["run_ids"]["1"]
        run = client.get_run(run_id)
        assert (run.info.status, run.data.tags["mlflow.parentRunId"]) == ("FINISHED", runs["parent_run_id"])
        points = project.histories(run_id)
        assert points["loss"] == [(step, index + 1 / step) for step in range(1, 501)], "all points, none twice"
        assert points["generative_perplexity"] == [(4, 25.0), (16, 6.25)]
        assert artifacts(client, run_id) == ["model/config.json", "model/model.safetensors", "samples.txt"]
        (tmp_path / f"fetched {index}").mkdir()
        fetched = client.download_artifacts(run_id, "model/model.safetensors", str(tmp_path / f"fetched {index}"))
        assert Path(fetched).read_bytes() == bytes([index]) * 2**20
        assert not list(project.root.glob("ml*")), "a client of a server keeps neither database nor artifacts"


def test_a_server_without_its_databases_driver_says_what_to_install(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "postgresql://me:secret@127.0.0.1/mlflow")
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    error = CliRunner().invoke(app, ["server"]).exception
    assert isinstance(error, UserError)
    assert "[postgres]" in str(error)
    assert "secret" not in str(error)


@pytest.fixture
def unreachable(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose server does not answer."""
    # Port 9 of the loopback address: nothing listens there, and refusal comes at once.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return project


def test_training_goes_on_without_a_server_with_one_warning(
    unreachable: Project, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "SEND_SECONDS", 0.01)
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.01)
    with (
        caplog.at_level(logging.WARNING, logger="halfstep.tracking"),
        tracking.live_run(unreachable.params, model="0") as log,
    ):
        for step in range(200):
            log(step, {"loss": 1.0})
    warnings = [record.getMessage() for record in caplog.records if record.name == "halfstep.tracking"]
    assert len(warnings) == 1
    assert "training goes on" in warnings[0]
    assert "secret" not in warnings[0]


@pytest.mark.parametrize("error", [None, Interrupted(15, "stopped")])
def test_a_server_that_never_answers_holds_up_nothing(
    project: Project, monkeypatch: pytest.MonkeyPatch, error: Interrupted | None
) -> None:
    """It answers only when training has ended: a training that waited for it would never end."""
    answers = threading.Event()
    asked = threading.Event()

    def hang(*arguments: object) -> None:
        asked.set()
        answers.wait()
        raise OSError("too late")

    monkeypatch.setattr(tracking, "_open_live", hang)
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 0.01)
    monkeypatch.setattr(tracking, "INTERRUPTED_FLUSH_SECONDS", 0.01)
    logged = 0
    with suppress(Interrupted), tracking.live_run(project.params, model="0") as log:
        asked.wait()
        for step in range(1000):
            log(step, {"loss": 1.0})
            logged += 1
        if error is not None:
            raise error
    answers.set()
    assert logged == 1000


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_training_goes_on_when_the_disk_refuses_mlflow(
    project: Project, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse() -> None:
        raise OSError(number, os.strerror(number), "mlflow.lock")

    monkeypatch.setattr(tracking, "_lock", refuse)
    monkeypatch.setattr(tracking, "SEND_SECONDS", 0.01)
    steps = []
    with caplog.at_level(logging.WARNING, logger="halfstep.tracking"):
        with tracking.live_run(project.params, model="0") as log:
            for step in range(20):
                log(step, {"loss": 1.0})
                steps.append(step)
        warnings = [record.getMessage() for record in caplog.records if record.name == "halfstep.tracking"]
    assert steps == list(range(20))
    assert len(warnings) == 1
    assert os.strerror(number) in warnings[0]
    missing = project.complete().missing
    assert missing is not None
    assert f"mlflow.lock: {STORAGE_FAULTS[number][0]}" in missing


def test_completing_without_a_server_says_what_to_do(unreachable: Project) -> None:
    runs = unreachable.complete()
    assert runs.missing is not None
    assert "Start the server or change MLFLOW_TRACKING_URI, then: dvc repro --single-item --force track" in runs.missing
    assert "secret" not in repr(runs)
    assert "\n" not in runs.missing


def make_database_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_database_of_another_mlflow(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("update alembic_version set version_num = 'ffffffffffff'")
        connection.commit()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_bytes(b"no database " * 1000), "not a database.*Move the database away"),
        (lambda path: os.truncate(path, 50_000), "malformed.*Move the database away"),
        (make_database_a_folder, "Is a directory.*Mend it or change MLFLOW_TRACKING_URI"),
        (make_database_of_another_mlflow, "out-of-date.*mlflow db upgrade"),
    ],
)
def test_no_database_costs_a_result(project: Project, spoil: Callable[[Path], object], reason: str) -> None:
    spoil(project.root / "mlflow.db")
    missing = project.complete().missing
    assert missing is not None
    assert re.search(f"did not take the runs .*{reason}.*: dvc repro", missing)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("htp://server", "unsupported URI"),
        ("mlruns", "maintenance mode"),
        ("http://127.0.0.1:99999", "127.0.0.1:99999 did not take"),
    ],
)
def test_no_address_costs_a_result(
    unreachable: Project, monkeypatch: pytest.MonkeyPatch, uri: str, reason: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    missing = unreachable.complete().missing
    assert missing is not None
    assert reason in missing
    assert "\n" not in missing


@pytest.mark.parametrize(
    ("status", "way_out"),
    [
        (401, "See to MLFLOW_TRACKING_USERNAME"),
        (403, "See to MLFLOW_TRACKING_USERNAME"),
        (500, "Start"),
        (200, "Start"),
    ],
)
def test_no_answer_of_a_server_costs_a_result(
    project: Project, monkeypatch: pytest.MonkeyPatch, status: int, way_out: str
) -> None:
    """A page in place of MLflow's answer, as a proxy gives it."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<html>\n<body>sign in</body>\n</html>"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        missing = project.complete().missing
        server.shutdown()
    assert missing is not None
    assert f"{way_out}" in missing
    assert "\n" not in missing


def test_a_database_that_never_answers_does_not_hold_up_the_end(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = threading.Event()
    monkeypatch.setattr(tracking, "_connect", lambda params: ends.wait())
    monkeypatch.setattr(tracking, "CONNECT_SECONDS", 0.01)
    missing = project.complete().missing
    ends.set()
    assert missing is not None
    assert "no answer within 0 s" in missing


def test_without_a_place_for_files_curves_and_metrics_are_there(project: Project) -> None:
    (project.root / "mlartifacts").write_text("a file")
    missing = project.complete().missing
    assert missing is not None
    assert "did not take all files of the runs" in missing
    losses = [run[3]["loss"] for run in project.snapshot().values() if "halfstep.model" in run[1]]
    assert losses == [list(CURVE.items())] * len(MODELS)
    (project.root / "mlartifacts").unlink()
    assert project.complete().missing is None
    assert {run[0]["status"] for run in project.snapshot().values()} == {"FINISHED"}


def test_the_stage_ends_well_and_says_what_is_missing(
    unreachable: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params = SimpleNamespace(model_dump=lambda mode: unreachable.params)
    monkeypatch.setattr("halfstep.settings.load_params", lambda path: params)
    monkeypatch.chdir(unreachable.root)
    track.main()
    runs = tracking.read_runs(unreachable.root / "mlflow.json")
    assert runs is not None
    assert runs.missing is not None
    assert runs.missing in capsys.readouterr().err.replace("\n", "")
    assert tracking.ui_url("http://x") == "http://x/#/experiments?workflowType=machine_learning"


def test_commands_say_what_is_wrong_with_mlflow_in_one_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*command: str) -> tuple[Result, str]:
        result = CliRunner().invoke(app, command)
        return result, str(result.exception)

    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: pytest.fail("MLflow is started"))
    (root / "mlflow.db").write_bytes(b"no database " * 1000)
    result, line = run("ui")
    assert isinstance(result.exception, UserError)
    assert "file is not a database" in line
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", f"sqlite:///{root}/mlflow.db")
    assert "file is not a database" in run("server")[1]
    (root / "mlflow.db").unlink()
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}" in run("ui", "--port", str(port))[1]
        assert f"cannot listen on 127.0.0.1:{port}" in run("server", "--port", str(port))[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@server:5000")
    result, _ = run("ui")
    assert result.exit_code == 0
    assert "http://server:5000/#/experiments?workflowType=machine_learning" in result.output


@pytest.mark.parametrize("missing", [None, "MLflow did not take the runs; then: dvc repro"])
def test_the_summary_says_what_mlflow_lacks(root: Path, monkeypatch: pytest.MonkeyPatch, missing: str | None) -> None:
    monkeypatch.chdir(root)
    monkeypatch.setattr("halfstep.settings.load_params", lambda path: SimpleNamespace(models=[]))
    monkeypatch.setattr("halfstep.report.load_metrics", lambda *arguments: {})
    monkeypatch.setattr("halfstep.report.rounds_table", lambda metrics: "table")
    runs = tracking.TrackedRuns("sqlite:///mlflow.db", "1", "a", {}, missing)
    Path("mlflow.json").write_text(json.dumps(asdict(runs)))
    assert CliRunner().invoke(app, ["summary"]).output.endswith((missing or "MLflow: make ui (or halfstep ui)") + "\n")
    Path("mlflow.json").write_text("{}")
    assert CliRunner().invoke(app, ["summary"]).exit_code == 0


@pytest.mark.parametrize("name", ["", " ", "mine ", "Default", "x" * 491])
def test_names_that_are_no_experiments_are_refused_at_the_start(name: str) -> None:
    with pytest.raises(ValidationError, match="experiment"):
        TrackingSettings(experiment=name, log_models=True)


def test_a_deleted_experiment_stays_deleted_and_another_takes_its_place(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    client = project.client()
    deleted = []
    for name in ("halfstep", "halfstep-2", "halfstep-3"):
        runs = project.complete()
        assert runs.experiment_id is not None
        assert client.get_experiment(runs.experiment_id).name == name
        assert len(project.snapshot()) == 1 + len(MODELS), "those of the deleted ones are not seen"
        client.delete_experiment(runs.experiment_id)
        deleted.append(runs.experiment_id)
    assert "halfstep was deleted; the runs are in halfstep-3" in caplog.text
    client.restore_experiment(deleted[0])
    assert project.complete().experiment_id == deleted[0]


@pytest.mark.parametrize("what", ["run", "parent", "experiment"])
def test_what_is_deleted_while_a_model_trains_is_made_anew(
    project: Project, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(tracking, "SEND_SECONDS", 0.01)
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 120)
    sent, failed = threading.Event(), threading.Event()
    log_points, warn = tracking._log_points, tracking._LOG.warning

    def record(*arguments: Any) -> None:
        log_points(*arguments)
        if arguments[2]:
            sent.set()

    def note(*arguments: Any) -> None:
        warn(*arguments)
        failed.set()

    monkeypatch.setattr(tracking, "_log_points", record)
    monkeypatch.setattr(tracking._LOG, "warning", note)
    with tracking.live_run(project.params, model="0") as log:
        log(10, {"loss": 4.0})
        sent.wait()
        client = project.client()
        run = next(client.get_run(run_id) for run_id, run in project.snapshot().items() if "halfstep.model" in run[1])
        if what == "experiment":
            client.delete_experiment(run.info.experiment_id)
        else:
            client.delete_run(run.info.run_id if what == "run" else run.data.tags["mlflow.parentRunId"])
        log(20, {"loss": 3.5})
        if what != "parent":
            failed.wait()
    runs = project.complete()
    assert runs.missing is None
    assert project.histories(runs.run_ids["0"])["loss"] == list(CURVE.items())


def test_the_ui_is_told_what_the_experiment_is_once(project: Project) -> None:
    client = project.client()
    identity = client.create_experiment("halfstep", tags={"mlflow.note.content": "mine"})
    runs = project.complete()
    assert runs.experiment_id == identity
    tags = client.get_experiment(identity).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert tags["mlflow.note.content"] == "mine"
    state = json.loads(json.loads(tags["mlflow.sharedViewState.halfstep"])["state"])
    held = client.get_run(runs.run_ids["0"]).data
    assert state["groupBy"]["groupByKeys"][0]["groupByData"] in held.tags
    assert {column.removeprefix("metrics.").strip("`") for column in state["selectedColumns"]} <= held.metrics.keys()
    client.set_experiment_tag(identity, "mlflow.experimentKind", "finetuning")
    project.complete()
    assert client.get_experiment(identity).tags["mlflow.experimentKind"] == "finetuning"
    (project.root / "mlflow.json").write_text(json.dumps(asdict(runs)))
    assert tracking.ui_url("http://x").startswith(
        f"http://x/#/experiments/{identity}/runs?workflowType=machine_learning"
    )


def test_missing_and_foreign_files_are_named(project: Project) -> None:
    (project.root / "metrics" / "0.json").write_text("{}")
    with pytest.raises(UserError, match=r"model 0: .*dvc repro"):
        project.complete()
    project.write_metrics("0")
    (project.root / "curves" / "1.csv").unlink()
    with pytest.raises(UserError, match=r"1\.csv is not there: make it with dvc repro"):
        project.complete()


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://me:secret@server:5000/path", "http://server:5000/path"),
        ("postgresql://me:p@ss@server/db?password=x", "postgresql://server/db"),
        ("https://server", "https://server"),
        ("sqlite:////home/a b/mlflow.db", "sqlite:////home/a b/mlflow.db"),
        ("no answer from http://me:secret@server/x (refused)", "no answer from http://server/x (refused)"),
    ],
)
def test_credentials_are_never_shown(uri: str, shown: str) -> None:
    assert tracking.without_credentials(uri) == shown


def test_no_secret_of_the_environment_is_written_or_logged(
    project: Project, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    for name in (
        "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "MY_API_KEY",
    ):
        monkeypatch.setenv(name, "canary-4f1d9c")
    with caplog.at_level(logging.DEBUG), tracking.live_run(project.params, model="0") as log:
        log(10, {"loss": 4.0})
    runs = project.complete()
    output = capfd.readouterr()
    assert "canary" not in caplog.text + output.out + output.err + repr(runs) + repr(project.snapshot())
    files = [path for path in project.root.rglob("*") if path.is_file()]
    assert "mlflow.db" in {path.name for path in files}
    assert [path for path in files if b"canary" in path.read_bytes()] == []


def test_uri_is_the_users_or_in_the_project(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking.tracking_uri() == f"sqlite:///{root}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs/my.db")
    assert tracking.tracking_uri() == f"sqlite:///{root}/runs/my.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking.tracking_uri() == "http://server:5000"


def test_parameters_become_dotted_names_and_short_values() -> None:
    flat = tracking.flatten({"a": {"b": {"c": None}, "d": [1, 2]}, "e": "x" * 300, "f": True, "g": "text"})
    assert flat == {"a.b.c": "null", "a.d": "[1, 2]", "e": "x" * 247 + "...", "f": "true", "g": "text"}


def test_mlflow_logs_no_page_of_its_own(project: Project, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """A database in memory loses its tables between threads: MLflow logs that with a traceback."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite://")
    missing = project.complete().missing
    assert missing is not None
    assert "no such table" in missing
    assert capfd.readouterr().err == ""
