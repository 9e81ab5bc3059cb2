"""A model's curve in MLflow while it trains, and when it is completed."""

import errno
import logging
import os
import threading
from contextlib import suppress
from typing import Any

import pytest

from halfstep.run.errors import Interrupted
from halfstep.run.faults import STORAGE_FAULTS
from halfstep.tracking import client, live
from halfstep.tracking.live import live_run

pytestmark = [
    pytest.mark.system,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),  # within MLflow
]


def test_live_points_are_completed_and_none_is_doubled(project: Any) -> None:
    """Also where there is a gap between the live ones."""
    with live_run(project.params, model="1") as log:
        for step, loss in project.curve[::3]:
            log(step, {"loss": loss, "learning_rate": 0.001, "valid_loss": None})
    (live,) = (run_id for run_id, run in project.snapshot().items() if "halfstep.model" in run[1])
    assert project.histories(live) == {
        "loss": [(10, 4.0), (40, 3.125)],
        "learning_rate": [(10, 0.001), (40, 0.001)],
    }
    assert project.complete().run_ids["1"] == live
    assert project.histories(live)["loss"] == project.curve
    assert len(project.snapshot()) == 1 + 3


def test_a_training_that_goes_on_continues_its_run(project: Any) -> None:
    def train_until_stopped() -> None:
        with live_run(project.params, model="0") as log:
            log(10, {"loss": 4.0})
            raise Interrupted(15, "stopped")

    with pytest.raises(Interrupted):
        train_until_stopped()
    assert {run[0]["status"] for run in project.snapshot().values()} == {"KILLED"}
    with live_run(project.params, model="0") as log:
        log(10, {"loss": 4.0})
        log(20, {"loss": 3.5})
    statuses = {run[1]["halfstep.kind"]: run[0]["status"] for run in project.snapshot().values()}
    assert statuses == {"pipeline": "RUNNING", "model": "FINISHED"}
    (run_id,) = (run_id for run_id, run in project.snapshot().items() if "halfstep.model" in run[1])
    assert project.histories(run_id)["loss"] == [(10, 4.0), (20, 3.5)]


def test_a_failing_training_is_marked_and_its_error_is_not_touched(project: Any) -> None:
    with pytest.raises(ZeroDivisionError), live_run(project.params, model="0"):
        _ = 1 / 0
    assert {run[0]["status"] for run in project.snapshot().values()} == {"FAILED"}


def test_training_goes_on_without_a_server_with_one_warning(
    unreachable: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "SEND_SECONDS", 0.01)
    monkeypatch.setattr(live, "RETRY_SECONDS", 0.01)
    with (
        caplog.at_level(logging.WARNING, logger="halfstep.tracking.live"),
        live_run(unreachable.params, model="0") as log,
    ):
        for step in range(200):
            log(step, {"loss": 1.0})
    warnings = [record.getMessage() for record in caplog.records if record.name == "halfstep.tracking.live"]
    assert len(warnings) == 1
    assert "training goes on" in warnings[0]
    assert "secret" not in warnings[0]


@pytest.mark.parametrize("error", [None, Interrupted(15, "stopped")])
def test_a_server_that_never_answers_holds_up_nothing(
    project: Any, monkeypatch: pytest.MonkeyPatch, error: Interrupted | None
) -> None:
    """It answers only when training has ended: a training that waited for it would never end."""
    answers = threading.Event()
    asked = threading.Event()

    def hang(*arguments: object) -> None:
        asked.set()
        answers.wait()
        raise OSError("too late")

    monkeypatch.setattr(live, "_open_live", hang)
    monkeypatch.setattr(live, "FLUSH_SECONDS", 0.01)
    monkeypatch.setattr(live, "INTERRUPTED_FLUSH_SECONDS", 0.01)
    logged = 0
    with suppress(Interrupted), live_run(project.params, model="0") as log:
        asked.wait()
        for step in range(1000):
            log(step, {"loss": 1.0})
            logged += 1
        if error is not None:
            raise error
    answers.set()
    assert logged == 1000


def test_training_goes_on_when_the_disk_refuses_mlflow(
    project: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "mlflow.lock")

    monkeypatch.setattr(client, "lock", refuse)
    monkeypatch.setattr(live, "SEND_SECONDS", 0.01)
    steps = []
    with caplog.at_level(logging.WARNING, logger="halfstep.tracking.live"):
        with live_run(project.params, model="0") as log:
            for step in range(20):
                log(step, {"loss": 1.0})
                steps.append(step)
        warnings = [record.getMessage() for record in caplog.records if record.name == "halfstep.tracking.live"]
    assert steps == list(range(20))
    assert len(warnings) == 1
    assert os.strerror(errno.EROFS) in warnings[0]
    missing = project.complete().missing
    assert missing is not None
    assert f"mlflow.lock: {STORAGE_FAULTS[errno.EROFS][0]}" in missing


@pytest.mark.parametrize("what", ["run", "parent", "experiment"])
def test_what_is_deleted_while_a_model_trains_is_made_anew(
    project: Any, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(live, "SEND_SECONDS", 0.01)
    monkeypatch.setattr(live, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(live, "FLUSH_SECONDS", 120)
    sent, failed = threading.Event(), threading.Event()
    log_points, warn = client.Pipeline.log, live._LOG.warning

    def record(*arguments: Any) -> None:
        log_points(*arguments)
        # The sender of an earlier test may be at work still.
        if arguments[2] and arguments[0]._params is project.params:
            sent.set()

    def note(*arguments: Any) -> None:
        warn(*arguments)
        failed.set()

    monkeypatch.setattr(client.Pipeline, "log", record)
    monkeypatch.setattr(live._LOG, "warning", note)
    with live_run(project.params, model="0") as log:
        log(10, {"loss": 4.0})
        sent.wait()
        mlflow = project.client()
        run = next(mlflow.get_run(run_id) for run_id, run in project.snapshot().items() if "halfstep.model" in run[1])
        if what == "experiment":
            mlflow.delete_experiment(run.info.experiment_id)
        else:
            mlflow.delete_run(run.info.run_id if what == "run" else run.data.tags["mlflow.parentRunId"])
        log(20, {"loss": 3.5})
        if what != "parent":
            failed.wait()
    runs = project.complete()
    assert runs.missing is None
    assert project.histories(runs.run_ids["0"])["loss"] == project.curve


def test_no_secret_of_the_environment_is_written_or_logged(
    project: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "MY_API_KEY"):
        monkeypatch.setenv(name, "canary-4f1d9c")
    with caplog.at_level(logging.DEBUG), live_run(project.params, model="0") as log:
        log(10, {"loss": 4.0})
    runs = project.complete()
    output = capfd.readouterr()
    assert "canary" not in caplog.text + output.out + output.err + repr(runs) + repr(project.snapshot())
    files = [path for path in project.root.rglob("*") if path.is_file()]
    assert "mlflow.db" in {path.name for path in files}
    assert [path for path in files if b"canary" in path.read_bytes()] == []
