"""The files of a finished pipeline run, and an MLflow of its own."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from halfstep.metrics.estimate import Estimate
from halfstep.metrics.record import Record, Row, write_record
from halfstep.tracking.client import DEFAULTS, create_database, tracking_uri
from halfstep.tracking.complete import TrackedRuns, complete

MODELS = ["ar", "0", "1"]


class Project:
    """The files of a finished pipeline run, and MLflow's view of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.curve = [(10, 4.0), (20, 3.5), (30, 3.25), (40, 3.125)]
        self.params: dict[str, Any] = {
            "preset": "smoke",
            "seed": 0,
            "models": MODELS,
            "frontiers": MODELS,
            "model": {"hidden_size": 32},
            "pretrain": {"learning_rate": 0.003, "init_from": None},
            "baseline": {"learning_rate": 0.002, "init_from": None},
            "distill": {"learning_rate": 0.001, "objective": "sdtt"},
            "sample": {"num_steps": [4, 16]},
            "tracking": {"experiment": "halfstep", "log_models": True},
        }
        for name in ("metrics", "curves", "reports/figures", *(f"models/{model}" for model in MODELS)):
            (root / name).mkdir(parents=True)
        for name in ("index.html", "figures/steps.png"):
            (root / "reports" / name).write_text(name)
        (root / "params.yaml").write_text("seed: 0\n")
        for model in MODELS:
            self.write_curve(model, dict(self.curve))
            self.write_metrics(model)
            (root / "models" / model / "config.json").write_text(model)

    def write_curve(self, model: str, losses: dict[int, float]) -> None:
        rows = [f"{step},{loss},0.001," for step, loss in losses.items()]
        path = self.root / "curves" / f"{model}.csv"
        path.write_text("\n".join(["step,loss,learning_rate,valid_loss", *rows]) + "\n")

    def write_metrics(self, model: str) -> None:
        rows = [
            Row("validation_perplexity", Estimate(20.0, 0.1, 16, "1")),
            Row("cloze_accuracy", Estimate(0.5, 0.1, 10, "1")),
        ]
        for steps in (4, 16):
            values = {"generative_perplexity": 100.0 / steps, "entropy": 4.5, "nfe": float(steps)}
            drawn = ("autoregressive", "") if model == "ar" else ("ancestral", f"num_steps={steps}")
            if model != "ar" or steps == 16:
                rows += [Row(name, Estimate(value, 0.1, 16, "1"), *drawn, 1.0) for name, value in values.items()]
        kind, round_index = ("autoregressive", None) if model == "ar" else ("denoiser", int(model))
        record = Record(model, kind, round_index, 1000, "ar", False, tuple(rows), (), {})
        write_record(self.root / "metrics" / f"{model}.json", record)

    def complete(self) -> TrackedRuns:
        return complete(self.params, self.root)

    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri())

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
                self.artifacts(run.info.run_id),
            )
            for run in client.search_runs(experiments)
        }

    def artifacts(self, run_id: str, folder: str | None = None) -> list[str]:
        found = []
        for entry in self.client().list_artifacts(run_id, folder):
            found += self.artifacts(run_id, entry.path) if entry.is_dir else [entry.path]
        return found


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: making one takes seconds, copying it does not."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in DEFAULTS.items():
            patch.setenv(name, value)
        create_database(path)
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
def make_project() -> Callable[[Path], Project]:
    return Project


@pytest.fixture
def project(root: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    shutil.copyfile(database, root / "mlflow.db")
    samples = SimpleNamespace(sampler="ancestral", setting="num_steps=4", texts=[*["shown"] * 4, "not shown"])
    monkeypatch.setattr("halfstep.tracking.complete.read_sample_sets", lambda path: [samples])
    return Project(root)


@pytest.fixture
def unreachable(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose server does not answer."""
    # Port 9 of the loopback address: nothing listens there, and refusal comes at once.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return project
