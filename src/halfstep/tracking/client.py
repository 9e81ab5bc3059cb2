"""The connection to MLflow, its experiment, and the runs in it."""

import getpass
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import sqlite3
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from halfstep.run.errors import one_line
from halfstep.run.files import atomic_path, project_root
from halfstep.settings.base import flat
from halfstep.settings.graph import BASELINE, FIRST_TEACHER, depth_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

Point = tuple[str, int, float]
"""One value of a curve: name, step, value."""

PARENT_TAG = "mlflow.parentRunId"
USER_TAG = "mlflow.user"
CLONE_TAG = "halfstep.clone"
EXPERIMENT_TAG = "halfstep.experiment"
HASH_TAG = "halfstep.params_hash"
PRESET_TAG = "halfstep.preset"
COMMIT_TAG = "mlflow.source.git.commit"
KIND_TAG = "halfstep.kind"
MODEL_TAG = "halfstep.model"
ROUND_TAG = "halfstep.round"
COMPLETED_TAG = "halfstep.completed"
"""Hash of what a run holds, once it holds all of it."""

WORKSPACE = "workspace"
"""Name of the experiment when DVC runs none, as DVC itself calls it."""

# One row per model, with the columns that compare rounds. MLflow's UI keeps columns in the browser, and saved views
# in tags of the experiment.
VIEW = "halfstep"
COMPARED = ("generative_perplexity", "entropy", "validation_perplexity", "cloze_accuracy")
NOTE = """\
One run per run of the pipeline, named after its DVC experiment; under it (+) one run per model: `autoregressive` (the
baseline), `teacher` (the pretrained denoiser), then `round 1`, `round 2`, ..., each distilled from the model before it
to need half the denoising steps.

- **Compare rounds**: Views (top right) > models has one row per model, grouped by DVC experiment; a group's own row is
  the least of each column. Tick rows and press Compare, or open the chart view: the step axis of the metrics below is
  the number of denoising steps.
- **Look at** `generative_perplexity` (lower is better) together with `entropy` (samples that repeat themselves have a
  low one): a good round keeps both with fewer steps. Tables show them at the most steps.
- `validation_perplexity`, `cloze_accuracy` and `mauve` say what distillation costs; `loss` is the training curve.
- The report, with error bars, is an artifact of the pipeline's run: `report/index.html`.
"""

LOCK_SECONDS = 120.0
# MLflow refuses larger batches. Servers of different age take 250, 500 or 6000 characters of a parameter; the
# whole of it is in params.yaml, among the parent's artifacts.
MAX_METRICS_PER_BATCH = 1000
MAX_PARAMS_PER_BATCH = 100
MAX_PARAM_LENGTH = 250

DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # A server's clients would print two lines at every run's end, in the middle of a stage's own.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # MLflow would try for many minutes before it says that a server does not answer.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
"""Variables that MLflow reads on import, where the user has not set them."""


# Where MLflow is


def tracking_uri() -> str:
    """The MLflow server: `MLFLOW_TRACKING_URI`, or a SQLite database in the project's root.

    A relative SQLite path in the variable is taken from the project's root, not from DVC's copy of it.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip() or "sqlite:///mlflow.db"
    path = sqlite_path(uri)
    return uri if path is None else f"sqlite:///{path}"


def sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite URI, from the project's root where it is relative; None for any other URI."""
    found = re.fullmatch(r"sqlite(?:\+\w+)?:///(.+)", uri)
    return project_root() / found[1] if found else None


def shown_uri() -> str:
    """The tracking URI as it may be written down and shown."""
    uri = tracking_uri()
    path = sqlite_path(uri)
    if path is not None and path.is_relative_to(project_root()):
        return f"sqlite:///{path.relative_to(project_root()).as_posix()}"
    return without_credentials(uri)


def without_credentials(text: str) -> str:
    """A URI, or a text with URIs in it, without user names, passwords and query strings."""
    return re.sub(r"(://[^\s?]*)\?[^\s)]*", r"\1", re.sub(r"://[^/\s]*@", "://", text))


def shown_reason(error: BaseException) -> str:
    """The first line of an error's message, without the credentials of a URI in it."""
    return one_line(without_credentials(next(iter(str(error).splitlines()), "") or type(error).__name__))


# Database and experiment


def connect(params: Mapping[str, Any]) -> "tuple[MlflowClient, Experiment]":
    """A client, and the MLflow experiment, which is made if it is missing."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "urllib3"):
        # Not even errors: MLflow logs them with a traceback, and raises them as well.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    uri = tracking_uri()
    with lock():
        database = sqlite_path(uri)
        if database is not None and not database.exists():
            create_database(database)
        check_database(uri)
        client = MlflowClient(uri)
        # A database does not know where files should go and would put them into the working directory, which
        # in DVC's queue is a temporary one. A server knows.
        is_database = re.match(r"(sqlite|mysql|postgresql|mssql)", uri) is not None
        location = (project_root() / "mlartifacts").as_uri() if is_database else None
        experiment = _open_experiment(client, params["tracking"]["experiment"], location)
    _describe(client, experiment)
    return client, experiment


def lock() -> FileLock:
    """Held while something is looked for and made if missing: queued experiments run side by side."""
    folder = project_root() / ".halfstep"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / "mlflow.lock", timeout=LOCK_SECONDS)


def create_database(path: Path) -> None:
    """Create MLflow's SQLite database whole or not at all: MLflow refuses a half-made one for ever."""
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory(prefix="halfstep-", ignore_cleanup_errors=True) as folder:
        made = Path(folder) / "mlflow.db"
        MlflowClient(f"sqlite:///{made}").search_experiments(max_results=1)
        with atomic_path(path) as temporary:
            shutil.copyfile(made, temporary)


def check_database(uri: str) -> None:
    """Read from a SQLite database that exists; MLflow would try a broken one for minutes, and then print a page.

    Raises:
        OSError or sqlite3.Error: it cannot be read.
    """
    path = sqlite_path(uri)
    if path is not None and path.exists():
        with path.open("rb"), closing(sqlite3.connect(path)) as connection:
            connection.execute("select count(*) from sqlite_master").fetchall()


def _open_experiment(client: "MlflowClient", name: str, location: str | None) -> "Experiment":
    """The experiment of a name, or where that was deleted, which keeps the name, `NAME-2` and so on.

    What a user deleted stays deleted: restoring it would bring all its runs back.
    """
    from mlflow.exceptions import MlflowException

    candidates = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    for candidate in candidates:
        if client.get_experiment_by_name(candidate) is None:
            try:
                client.create_experiment(candidate, artifact_location=location)
            except MlflowException as error:
                # Our lock keeps no other clone from making it in between.
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
        experiment = client.get_experiment_by_name(candidate)
        if experiment.lifecycle_stage == "active":
            break
    return experiment


def _describe(client: "MlflowClient", experiment: "Experiment") -> None:
    """Tag an experiment with what MLflow's UI shows of it, where a user has not; an error here costs only looks."""
    from mlflow.exceptions import MlflowException

    columns = [f"metrics.`{name}`" for name in COMPARED]
    state = {
        "selectedColumns": columns,
        "columnOrder": columns,
        "groupBy": {"aggregateFunction": "min", "groupByKeys": [{"mode": "tag", "groupByData": EXPERIMENT_TAG}]},
        "useGroupedValuesInCharts": False,
    }
    now = experiment.creation_time
    view = {"name": "models", "createdAt": now, "updatedAt": now, "state": json.dumps(state)}
    tags = {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": NOTE,
        f"mlflow.sharedViewState.{VIEW}": json.dumps(view),
    }
    with suppress(MlflowException):
        for tag in tags.keys() - experiment.tags.keys():
            client.set_experiment_tag(experiment.experiment_id, tag, tags[tag])


# Runs


class Pipeline:
    """A pipeline run in MLflow: its own run, `parent`, and one for each model."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        """Connect, and open the run that belongs to these parameters, this DVC experiment and this clone."""
        self._params = params
        self.client, self.experiment = connect(params)
        name = os.environ.get("DVC_EXP_NAME") or WORKSPACE
        with lock():
            key = {EXPERIMENT_TAG: name, HASH_TAG: hash_of(dict(params)), KIND_TAG: "pipeline", CLONE_TAG: _clone_id()}
            tags = {PRESET_TAG: params["preset"], USER_TAG: _user(), COMMIT_TAG: _git_commit()}
            self.parent = self._open_run(name, key, tags, params)

    def open_model_run(self, model: str, *, instead_of: "Run | None" = None) -> "Run":
        """The run of one model, with the parameters that it is made with; another one is deleted for it."""
        if instead_of is not None:
            self.client.delete_run(instead_of.info.run_id)
        name = {BASELINE: "autoregressive", FIRST_TEACHER: "teacher"}.get(model, f"round {model}")
        section = {BASELINE: "baseline", FIRST_TEACHER: "pretrain"}.get(model, "distill")
        # What a model of others begins as has sizes of its own.
        taken = self._params["baseline" if section == "baseline" else "pretrain"]["init_from"]
        values = {key: self._params[key] for key in (("seed",) if taken else ("model", "seed"))}
        if depth := depth_of(model):
            name, section = f"autoregressive, {depth} block{'s' * (depth != 1)}", "baseline"
            values["model"] = {**self._params["model"], "num_blocks": depth}
        key = {PARENT_TAG: self.parent.info.run_id, MODEL_TAG: model, KIND_TAG: "model"}
        tags = {tag: self.parent.data.tags.get(tag) for tag in (EXPERIMENT_TAG, PRESET_TAG, USER_TAG, COMMIT_TAG)}
        tags[ROUND_TAG] = model if model.isdigit() else None
        return self._open_run(name, key, tags, {section: self._params[section], **values})

    def _open_run(
        self, name: str, key: Mapping[str, str], tags: Mapping[str, str | None], params: Mapping[str, Any]
    ) -> "Run":
        """The oldest run that has all tags of `key`, or a new one, with all its parameters."""
        from mlflow.entities import Param

        quoted = {tag: f'"{value}"' if "'" in value else f"'{value}'" for tag, value in key.items()}
        condition = " and ".join(f"tags.`{tag}` = {value}" for tag, value in quoted.items())
        where = [self.experiment.experiment_id]
        found = self.client.search_runs(where, condition, max_results=1, order_by=["attributes.start_time ASC"])
        tags = {**{tag: value for tag, value in tags.items() if value}, **key}
        run = found[0] if found else self.client.create_run(where[0], run_name=name, tags=tags)
        # The process that made the run may have ended right after.
        lacking = [Param(name, value) for name, value in flatten(params).items() if name not in run.data.params]
        for start in range(0, len(lacking), MAX_PARAMS_PER_BATCH):
            self.client.log_batch(run.info.run_id, params=lacking[start : start + MAX_PARAMS_PER_BATCH])
        return run

    def log(self, run: "Run", points: Iterable[Point]) -> None:
        """Add points to a run."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, step, value in points]
        for start in range(0, len(metrics), MAX_METRICS_PER_BATCH):
            self.client.log_batch(run.info.run_id, metrics=metrics[start : start + MAX_METRICS_PER_BATCH])

    def held_by(self, run: "Run") -> set[Point]:
        """All points of a run, as it was when it was opened."""
        histories = {name: self.client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
        return {(name, metric.step, metric.value) for name, history in histories.items() for metric in history}


def flatten(params: Mapping[str, Any]) -> dict[str, str]:
    """Nested parameters as MLflow takes them: dotted names, values as JSON where they are no text.

    A value longer than every server takes ends in three dots.
    """
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in flat(params)}
    return {
        name: text if len(text) <= MAX_PARAM_LENGTH else f"{text[: MAX_PARAM_LENGTH - 3]}..."
        for name, text in texts.items()
    }


def hash_of(value: Any) -> str:
    """Hash of a plain value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _clone_id() -> str:
    """Name of this clone of the project, made up when it is first needed; the lock is to be held.

    Runs belong to the clone that made them: on a server, another one's with the same parameters are neither added to
    nor replaced.
    """
    path = project_root() / ".halfstep" / "clone"
    if not path.exists():
        with atomic_path(path) as temporary:
            temporary.write_text(uuid.uuid4().hex, encoding="utf-8")
    return path.read_text(encoding="utf-8")


def _user() -> str | None:
    """Who runs this; None where the system has no name for them, as in some containers."""
    with suppress(OSError, KeyError):
        return getpass.getuser()
    return None


def _git_commit() -> str | None:
    """The commit of the project; None without git."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, cwd=project_root(), capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() if found.returncode == 0 else None
