"""MLflow shows what the files hold: once, completely, and whatever happened on the way."""

import os
import re
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stages import track

from halfstep.metrics.estimate import Estimate
from halfstep.metrics.frontier import FrontierRow, write_frontier
from halfstep.metrics.record import Record, Row
from halfstep.run.errors import UserError
from halfstep.tracking import client, complete
from halfstep.tracking.complete import frontier_points, metric_points, read_runs, ui_url
from halfstep.tracking.live import live_run

pytestmark = [
    pytest.mark.system,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),  # within MLflow
]


def test_the_rows_of_the_frontier_are_points_and_a_file(project: Any) -> None:
    row = FrontierRow(
        model="1",
        sampler="ordered",
        setting="num_steps=4,noise=0.5",
        temperature=0.8,
        evaluations=4.0,
        equivalent_evaluations=4.2,
        seconds_per_sample=0.5,
        perplexity=30.0,
        entropy=3.0,
        num_samples=2,
    )
    name = "frontier ordered noise 0.5 temperature 0.8"
    assert frontier_points([row]) == [(f"{name}/perplexity", 4, 30.0), (f"{name}/entropy", 4, 3.0)]
    puzzles = replace(row, perplexity=None, entropy=None, solved=0.5, givens=10)
    assert frontier_points([puzzles]) == [(f"{name} 10 given/solved", 4, 0.5)]
    samples = [("ordered", row.setting, 0.8, i, 60.0, 20, 3.0) for i in range(2)]
    write_frontier(project.root / "frontier" / "1", [row], samples)
    runs = project.complete()
    assert "frontier/rows.csv" in project.artifacts(runs.run_ids["1"])
    assert project.histories(runs.run_ids["1"])[f"{name}/perplexity"] == [(4, 30.0)]


def test_a_rival_has_a_run_without_metrics_or_samples(project: Any) -> None:
    project.params["frontiers"] = [*project.params["models"], "ar-1"]
    project.write_curve("ar-1", {10: 3.0})
    (project.root / "models" / "ar-1").mkdir()
    (project.root / "models" / "ar-1" / "config.json").write_text("{}")
    runs = project.complete()
    assert list(runs.run_ids) == ["ar", "0", "1", "ar-1"]
    assert project.artifacts(runs.run_ids["ar-1"]) == ["model/config.json"]
    run = project.client().get_run(runs.run_ids["ar-1"])
    assert (run.info.run_name, run.data.params["model.num_blocks"]) == ("autoregressive, 1 block", "1")
    assert "baseline.learning_rate" in run.data.params
    assert "halfstep.round" not in run.data.tags
    assert project.histories(runs.run_ids["ar-1"])["loss"] == [(10, 3.0)]


def test_sizes_are_noted_of_what_was_made_from_them(project: Any) -> None:
    project.params["pretrain"]["init_from"] = "OWNER/NAME"
    runs, client = project.complete(), project.client()
    noted = {name: "model.hidden_size" in client.get_run(id).data.params for name, id in runs.run_ids.items()}
    assert noted == {"ar": True, "0": False, "1": False}


def test_runs_hold_what_the_files_hold(project: Any) -> None:
    runs = project.complete()
    mlflow = project.client()
    assert runs.tracking_uri == "sqlite:///mlflow.db"
    parent = mlflow.get_run(runs.parent_run_id)
    assert parent.data.tags["halfstep.experiment"] == "workspace"
    assert parent.data.tags["halfstep.preset"] == "smoke"
    assert parent.data.params["distill.learning_rate"] == "0.001"
    assert parent.data.params["sample.num_steps"] == "[4, 16]"
    assert project.artifacts(runs.parent_run_id) == ["params.yaml", "report/figures/steps.png", "report/index.html"]
    assert list(runs.run_ids) == ["ar", "0", "1"]
    student = mlflow.get_run(runs.run_ids["1"])
    assert student.data.tags["mlflow.parentRunId"] == runs.parent_run_id
    assert (student.data.tags["halfstep.model"], student.data.tags["halfstep.round"]) == ("1", "1")
    assert "halfstep.round" not in mlflow.get_run(runs.run_ids["ar"]).data.tags
    assert student.data.params == {
        "distill.learning_rate": "0.001",
        "distill.objective": "sdtt",
        "model.hidden_size": "32",
        "seed": "0",
    }
    assert project.artifacts(runs.run_ids["1"]) == ["model/config.json", "samples.txt"]
    assert {run[0]["status"] for run in project.snapshot().values()} == {"FINISHED"}
    assert project.histories(runs.run_ids["1"]) == {
        "loss": project.curve,
        "learning_rate": [(step, 0.001) for step, _ in project.curve],
        "generative_perplexity": [(4, 25.0), (16, 6.25)],
        "entropy": [(4, 4.5), (16, 4.5)],
        "nfe": [(4, 4.0), (16, 16.0)],
        "validation_perplexity": [(0, 20.0)],
        "cloze_accuracy": [(0, 0.5)],
        "num_parameters": [(0, 1000.0)],
    }
    assert project.histories(runs.run_ids["ar"])["entropy"] == [(16, 4.5)]


def test_files_stay_in_the_project_that_dvc_names(project: Any) -> None:
    runs = project.complete()
    preview = project.root / "mlartifacts" / runs.run_ids["0"] / "artifacts" / "samples.txt"
    assert preview.read_text().count("shown") == 8
    assert "not shown" not in preview.read_text()
    assert list(Path.cwd().iterdir()) == []


def test_completing_twice_changes_nothing(project: Any) -> None:
    runs = project.complete()
    before = project.snapshot()
    assert len(before) == 1 + 3
    assert project.complete() == runs
    assert project.snapshot() == before


def test_a_run_of_an_earlier_training_is_replaced(project: Any) -> None:
    first = project.complete()
    project.write_curve("1", {10: 9.0, 20: 8.0})
    second = project.complete()
    assert second.parent_run_id == first.parent_run_id
    assert second.run_ids["0"] == first.run_ids["0"]
    assert second.run_ids["1"] != first.run_ids["1"]
    assert project.histories(second.run_ids["1"])["loss"] == [(10, 9.0), (20, 8.0)]
    assert len(project.snapshot()) == 1 + 3
    # Live, a model whose run was complete trains again.
    with live_run(project.params, model="1") as log:
        log(10, {"loss": 7.0})
    (live,) = (run_id for run_id, run in project.snapshot().items() if run[1].get("halfstep.model") == "1")
    assert project.histories(live) == {"loss": [(10, 7.0)]}


def test_only_runs_whose_content_changed_get_files_again(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    project.complete()
    sent: list[str] = []
    send = MlflowClient.log_artifact

    def record(client: Any, run_id: str, local_path: str, artifact_path: str | None = None) -> None:
        sent.append(Path(local_path).name)
        send(client, run_id, local_path, artifact_path)

    monkeypatch.setattr(MlflowClient, "log_artifact", record)
    (project.root / "params.yaml").write_text("seed: 0 # the same\n")
    project.complete()
    assert sent == ["params.yaml", "steps.png", "index.html"], "those of the pipeline's run, and no model's"
    (project.root / "models" / "0" / "config.json").write_text("other")
    runs = project.complete()
    assert sent[3:5] == ["config.json", "samples.txt"]
    assert project.histories(runs.run_ids["0"])["loss"] == project.curve


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
        (make_database_a_folder, "Is a directory.*Repair it or change MLFLOW_TRACKING_URI"),
        (make_database_of_another_mlflow, "out-of-date.*mlflow db upgrade"),
    ],
)
def test_no_database_costs_a_result(project: Any, spoil: Callable[[Path], object], reason: str) -> None:
    spoil(project.root / "mlflow.db")
    missing = project.complete().missing
    assert missing is not None
    assert re.search(f"did not take the runs .*{reason}.*: dvc repro", missing)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        (None, "Start the server or change MLFLOW_TRACKING_URI, then: dvc repro --single-item --force track"),
        ("htp://server", "unsupported URI"),
        ("mlruns", "maintenance mode"),
        ("http://127.0.0.1:99999", "127.0.0.1:99999 did not take"),
    ],
)
def test_no_address_costs_a_result(
    unreachable: Any, monkeypatch: pytest.MonkeyPatch, uri: str | None, reason: str
) -> None:
    if uri is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    runs = unreachable.complete()
    assert runs.missing is not None
    assert reason in runs.missing
    assert "\n" not in runs.missing
    assert "secret" not in repr(runs)


@pytest.mark.parametrize(
    ("status", "way_out"), [(401, "See to MLFLOW_TRACKING_USERNAME"), (500, "Start"), (200, "Start")]
)
def test_no_answer_of_a_server_costs_a_result(
    project: Any, monkeypatch: pytest.MonkeyPatch, status: int, way_out: str
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
    assert way_out in missing
    assert "\n" not in missing


def test_a_database_that_never_answers_does_not_hold_up_the_end(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = threading.Event()
    monkeypatch.setattr(client, "connect", lambda params: ends.wait())
    monkeypatch.setattr(complete, "CONNECT_SECONDS", 0.01)
    missing = project.complete().missing
    ends.set()
    assert missing is not None
    assert "no answer within 0 s" in missing


def test_without_a_place_for_files_curves_and_metrics_are_there(project: Any) -> None:
    (project.root / "mlartifacts").write_text("a file")
    missing = project.complete().missing
    assert missing is not None
    assert "did not take all files of the runs" in missing
    losses = [run[3]["loss"] for run in project.snapshot().values() if "halfstep.model" in run[1]]
    assert losses == [project.curve] * 3
    (project.root / "mlartifacts").unlink()
    assert project.complete().missing is None
    assert {run[0]["status"] for run in project.snapshot().values()} == {"FINISHED"}


def test_the_stage_ends_well_and_says_what_is_missing(
    unreachable: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params = SimpleNamespace(model_dump=lambda mode: unreachable.params)
    monkeypatch.setattr("halfstep.settings.load_params", lambda path: params)
    track.main(unreachable.root)
    runs = read_runs(unreachable.root / "mlflow.json")
    assert runs is not None
    assert runs.missing is not None
    assert runs.missing in capsys.readouterr().err.replace("\n", "")
    assert ui_url("http://x") == "http://x/#/experiments?workflowType=machine_learning"


def test_samples_of_every_sampler_have_curves_of_their_own() -> None:
    def drawn(sampler: str, setting: str, temperature: float, nfe: float, entropy: float) -> list[Row]:
        values = {"entropy": entropy, "nfe": nfe}
        return [
            Row(name, Estimate(value, None, 4, "1"), sampler, setting, temperature) for name, value in values.items()
        ]

    rows = [
        Row("downstream.task.acc,none", Estimate(0.5, None, 4, "1")),
        *drawn("ancestral", "num_steps=8", 1.0, 7.5, 1.0),
        *drawn("ancestral", "num_steps=8", 0.9, 7.5, 2.0),
        *drawn("confidence", "threshold=0.9", 1.0, 11.8, 3.0),
        *drawn("confidence", "threshold=0.8", 1.0, 11.7, 4.0),
        *drawn("ordered", "num_steps=8", 1.0, 8.0, 5.0),
    ]
    points = metric_points(Record("1", "denoiser", 1, 10, "ar", False, tuple(rows), (), {}))
    assert points[:2] == [("num_parameters", 0, 10.0), ("downstream.task.acc none", 0, 0.5)]
    assert [point for point in points if point[0].endswith("entropy")] == [
        ("entropy", 8, 1.0),
        ("temperature 0.9/entropy", 8, 2.0),
        ("confidence threshold 0.9/entropy", 12, 3.0),
        ("confidence threshold 0.8/entropy", 12, 4.0),
        ("ordered/entropy", 8, 5.0),
    ]
    assert len({point[:2] for point in points}) == len(points)


def test_missing_and_foreign_files_are_named(project: Any) -> None:
    (project.root / "metrics" / "0.json").write_text("{}")
    with pytest.raises(UserError, match=r"metrics/0\.json is not what evaluate writes .*dvc repro"):
        project.complete()
    project.write_metrics("0")
    (project.root / "curves" / "1.csv").unlink()
    with pytest.raises(UserError, match=r"1\.csv is not there: make it with dvc repro"):
        project.complete()


def test_mlflow_logs_no_page_of_its_own(project: Any, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """A database in memory loses its tables between threads: MLflow logs that with a traceback."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite://")
    missing = project.complete().missing
    assert missing is not None
    assert "no such table" in missing
    assert capfd.readouterr().err == ""
