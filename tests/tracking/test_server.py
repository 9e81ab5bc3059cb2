"""Several processes at once, on a database and on a server."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from halfstep.tools.cli import app
from halfstep.tracking.client import tracking_uri

pytestmark = [
    pytest.mark.system,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),  # within MLflow
]


CREATE = """
import sys
from halfstep.tracking import live
assert "mlflow" not in sys.modules
params = {"preset": "smoke", "seed": 0, "model": {}, "baseline": {"init_from": None},
          "pretrain": {"init_from": None}, "distill": {},
          "tracking": {"experiment": "halfstep", "log_models": False}}
live.FLUSH_SECONDS = 120
with live.live_run(params, model=sys.argv[1]) as log:
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

    client = MlflowClient(tracking_uri())
    experiment = client.get_experiment_by_name("halfstep")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.tags.get("halfstep.model", "parent") for run in runs) == ["0", "ar", "parent"]
    assert [run.data.metrics for run in runs if "halfstep.model" in run.data.tags] == [{"loss": 2.0}] * 2


CLIENT = """
import csv, dataclasses, json, sys
from pathlib import Path
import mlflow
from halfstep.tracking import complete, live

live.FLUSH_SECONDS = 120
params = json.loads(Path("params.json").read_text())
print("ready", flush=True)
sys.stdin.readline()
for model in params["models"]:
    with live.live_run(params, model=model) as log, open(f"curves/{model}.csv") as curve:
        for row in csv.DictReader(curve):
            log(int(row["step"]), {name: float(row[name]) for name in ("loss", "learning_rate")})
complete._preview = str
runs = complete.complete(params, Path())
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
        # In a file: a pipe would fill up while the clients are at work.
        with (root / "server.log").open("wb") as log:
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))

    for name in ("MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION"):
        monkeypatch.delenv(name, raising=False)
    if backend := os.environ.get("HALFSTEP_TEST_BACKEND"):
        monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", backend)
    monkeypatch.setenv("MLFLOW_WORKERS", "1")
    monkeypatch.setattr(os, "execve", start)
    printed = CliRunner().invoke(app, ["server", "--port", str(port)]).output
    assert f"MLFLOW_TRACKING_URI=http://127.0.0.1:{port}" in printed
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


def test_two_clients_at_once_on_a_server(
    server: str, make_project: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clones with the same parameters and, as machines differ, other losses: each has its runs, whole.

    HALFSTEP_TEST_BACKEND names an empty database to do the same on, such as PostgreSQL's.
    """
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    clients = []
    for index in range(2):
        project = make_project(tmp_path / f"clone {index}")
        project.write_curve("1", {step: index + 1 / step for step in range(1, 501)})
        (project.root / "models" / "1" / "model.safetensors").write_bytes(bytes([index]) * 2**20)
        (project.root / "params.json").write_text(json.dumps(project.params | {"models": ["1"], "frontiers": ["1"]}))
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
    found = [json.loads(process.communicate(timeout=120)[0]) for _, process in clients]
    client = clients[0][0].client()
    (experiment,) = {runs["experiment_id"] for runs in found}
    run_ids = {runs["parent_run_id"] for runs in found} | {runs["run_ids"]["1"] for runs in found}
    assert len(run_ids) == 4
    assert {run.info.run_id for run in client.search_runs([experiment])} == run_ids
    for index, ((project, _), runs) in enumerate(zip(clients, found, strict=True)):
        run_id = runs["run_ids"]["1"]
        run = client.get_run(run_id)
        assert (run.info.status, run.data.tags["mlflow.parentRunId"]) == ("FINISHED", runs["parent_run_id"])
        points = project.histories(run_id)
        assert points["loss"] == [(step, index + 1 / step) for step in range(1, 501)], "all points, none twice"
        assert points["generative_perplexity"] == [(4, 25.0), (16, 6.25)]
        assert project.artifacts(run_id) == ["model/config.json", "model/model.safetensors", "samples.txt"]
        (tmp_path / f"fetched {index}").mkdir()
        fetched = client.download_artifacts(run_id, "model/model.safetensors", str(tmp_path / f"fetched {index}"))
        assert Path(fetched).read_bytes() == bytes([index]) * 2**20
        assert not list(project.root.glob("ml*")), "a client of a server keeps neither database nor artifacts"
