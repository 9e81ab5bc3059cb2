"""The connection to MLflow: addresses, databases, experiments, and the commands that need them."""

import json
import socket
import subprocess
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner, Result

from halfstep.run.errors import UserError
from halfstep.settings.tracking import TrackingSettings
from halfstep.tools import cli
from halfstep.tools.cli import app
from halfstep.tracking.client import flatten, tracking_uri, without_credentials
from halfstep.tracking.complete import TrackedRuns, ui_url

pytestmark = [
    pytest.mark.system,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),  # within MLflow
]


def test_each_experiment_and_each_set_of_parameters_has_its_run(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    parents = {project.complete().parent_run_id}
    monkeypatch.setenv("DVC_EXP_NAME", "it's-an-experiment")
    parents.add(project.complete().parent_run_id)
    parents.add(project.complete().parent_run_id)
    assert len(parents) == 2
    project.params = project.params | {"seed": 1}
    parents.add(project.complete().parent_run_id)
    assert len(parents) == 3


def test_an_experiment_that_another_clone_makes_in_between_is_used(
    project: Any, monkeypatch: pytest.MonkeyPatch
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


def test_a_server_without_its_databases_driver_says_what_to_install(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "postgresql://me:secret@127.0.0.1/mlflow")
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    error = CliRunner().invoke(app, ["server"]).exception
    assert isinstance(error, UserError)
    assert "[postgres]" in str(error)
    assert "secret" not in str(error)


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


@pytest.mark.parametrize("name", ["", " ", "mine ", "Default", "x" * 491])
def test_names_that_are_no_experiments_are_refused_at_the_start(name: str) -> None:
    with pytest.raises(ValidationError, match="experiment"):
        TrackingSettings(experiment=name, log_models=True)


def test_a_deleted_experiment_stays_deleted_and_another_takes_its_place(
    project: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client = project.client()
    deleted = []
    for name in ("halfstep", "halfstep-2", "halfstep-3"):
        runs = project.complete()
        assert runs.experiment_id is not None
        assert client.get_experiment(runs.experiment_id).name == name
        assert len(project.snapshot()) == 1 + 3, "those of the deleted ones are not seen"
        client.delete_experiment(runs.experiment_id)
        deleted.append(runs.experiment_id)
    assert "halfstep was deleted; the runs are in halfstep-3" in caplog.text
    client.restore_experiment(deleted[0])
    assert project.complete().experiment_id == deleted[0]


def test_the_ui_shows_what_the_experiment_is(project: Any) -> None:
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
    assert ui_url("http://x").startswith(f"http://x/#/experiments/{identity}/runs?workflowType=machine_learning")


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
    assert without_credentials(uri) == shown


def test_uri_is_the_users_or_in_the_project(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking_uri() == f"sqlite:///{root}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs/my.db")
    assert tracking_uri() == f"sqlite:///{root}/runs/my.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_uri() == "http://server:5000"


def test_parameters_become_dotted_names_and_short_values() -> None:
    flat = flatten({"a": {"b": {"c": None}, "d": [1, 2]}, "e": "x" * 300, "f": True, "g": "text"})
    assert flat == {"a.b.c": "null", "a.d": "[1, 2]", "e": "x" * 247 + "...", "f": "true", "g": "text"}


@pytest.mark.parametrize("missing", [None, "MLflow did not take the runs; then: dvc repro"])
def test_the_summary_says_what_mlflow_lacks(root: Path, monkeypatch: pytest.MonkeyPatch, missing: str | None) -> None:
    monkeypatch.chdir(root)
    params = SimpleNamespace(models=[], frontiers=[], num_givens=())
    monkeypatch.setattr("halfstep.settings.load_reported", lambda path: params)
    runs = TrackedRuns("sqlite:///mlflow.db", "1", "a", {}, missing)
    Path("mlflow.json").write_text(json.dumps(asdict(runs)))
    assert CliRunner().invoke(app, ["summary"]).output.endswith((missing or "MLflow: make ui (or halfstep ui)") + "\n")
    Path("mlflow.json").write_text("{}")
    assert CliRunner().invoke(app, ["summary"]).exit_code == 0
