"""What MLflow shows of a pipeline run: a parent run, and under it one run per model.

Training stages send their curves while they train (`live_run`); the last stage makes everything complete from
the files (`complete`), whether the stages ran or DVC restored them. The files are the truth and MLflow gets a
copy. This is the only module that imports MLflow, and only inside functions: the import takes a second.
"""

import csv
import getpass
import hashlib
import itertools
import json
import logging
import math
import os
import queue
import re
import shutil
import sqlite3
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock

from halfstep.run import ranks
from halfstep.run.errors import Interrupted, UserError, one_line
from halfstep.run.faults import STORAGE_FAULTS, storage_fault
from halfstep.run.files import atomic_path, file_hash, project_root, read_json

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

Answer = TypeVar("Answer")

_LOG = logging.getLogger(__name__)

PIPELINE = "pipeline"
"""Stands beside the models' names for the run of the whole pipeline."""

WORKSPACE = "workspace"
"""Name of the experiment when DVC runs none, as DVC itself calls it."""

PARENT_TAG = "mlflow.parentRunId"
USER_TAG = "mlflow.user"
CLONE_TAG = "halfstep.clone"
EXPERIMENT_TAG = "halfstep.experiment"
HASH_TAG = "halfstep.params_hash"
PRESET_TAG = "halfstep.preset"
COMMIT_TAGS = ("halfstep.git_commit", "mlflow.source.git.commit")
KIND_TAG = "halfstep.kind"
MODEL_TAG = "halfstep.model"
ROUND_TAG = "halfstep.round"
COMPLETED_TAG = "halfstep.completed"

RETRY_COMMAND = "dvc repro --single-item --force track"
"""DVC takes the stage for done, as the pipeline is to end with its results."""

RUNS_FILE = "mlflow.json"

# One row per model, with the columns that compare rounds. MLflow's UI keeps columns in the browser, and saved views
# in tags of the experiment.
VIEW = "halfstep"
VIEW_COLUMNS = (
    "metrics.`generative_perplexity`",
    "metrics.`entropy`",
    "metrics.`validation_perplexity`",
    "metrics.`cloze_accuracy`",
)

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

SEND_SECONDS = 2.0
RETRY_SECONDS = 60.0
FLUSH_SECONDS = 10.0
# Who stops a command waits for it.
INTERRUPTED_FLUSH_SECONDS = 3.0
LOCK_SECONDS = 120.0
# Each request has a time limit of its own, but MLflow tries a database that does not answer for an hour.
CONNECT_SECONDS = 180.0

# MLflow refuses larger batches. Servers of different age take 250, 500 or 6000 characters of a parameter; the
# whole of it is in params.yaml, among the parent's artifacts.
MAX_METRICS_PER_BATCH = 1000
MAX_PARAMS_PER_BATCH = 100
MAX_PARAM_LENGTH = 250

# A point that MLflow holds is the file's point when they agree to this: a server may keep fewer digits.
SAME_VALUE = 1e-6

NUM_PREVIEW_SAMPLES = 4
TRAINING_STATE = "train_state.*"

Point = tuple[str, int, float]
"""One value of a curve: name, step, value."""

Log = Callable[[int, Mapping[str, float | None]], None]
"""Takes (step, values by name); None is a value that was not measured at this step."""


@dataclass(frozen=True)
class TrackedRuns:
    """Where MLflow holds a pipeline run.

    Attributes:
        tracking_uri: of the server or database, without credentials; a database inside the project is named
            from its root.
        experiment_id: of the MLflow experiment; None if not all is there.
        parent_run_id: of the run of the whole pipeline; None if not all is there.
        run_ids: of the run of each model, by model.
        missing: None if all is there; otherwise one line: what is not, why, and how to send it later.
    """

    tracking_uri: str
    experiment_id: str | None
    parent_run_id: str | None
    run_ids: dict[str, str]
    missing: str | None


@dataclass(frozen=True)
class _Upload:
    """Files that belong together among a run's artifacts.

    Attributes:
        name: of the group; its content's hash is kept in the tag `halfstep.run.files.NAME`.
        files: local file by path within the run's artifacts.
        content_hash: of paths and contents.
    """

    name: str
    files: Mapping[str, Path]
    content_hash: str


def tracking_uri() -> str:
    """The MLflow server: `MLFLOW_TRACKING_URI`, or a SQLite database in the project's root.

    A relative SQLite path in the variable is taken from the project's root, not from DVC's copy of it.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip() or "sqlite:///mlflow.db"
    path = _sqlite_path(uri)
    return uri if path is None else f"sqlite:///{path}"


def without_credentials(text: str) -> str:
    """A URI, or a text with URIs in it, without user names, passwords and query strings."""
    return re.sub(r"(://[^\s?]*)\?[^\s)]*", r"\1", re.sub(r"://[^/\s]*@", "://", text))


@contextmanager
def live_run(params: Mapping[str, Any], *, model: str) -> Iterator[Log]:
    """Show a model's training in MLflow while it runs; training is neither slowed nor stopped by it.

    Points are sent in batches from a thread of their own, which also imports MLflow. If the server does not
    answer, that is said once and training goes on; `complete` adds what is missing. The run of a training
    that ended is marked finished, of one that stopped killed or failed; one that goes on from a checkpoint
    continues its run, and may give points again that were given before.

    Args:
        params: all composed parameters as plain values; with the name of the DVC experiment they decide to
            which pipeline run the model belongs.
        model: name of the model: `ar`, `0`, `1`, ...
    Yields:
        a function of (step, values by name); of several processes the main one's does something. The names are the
        columns of the training curve's file.
    """
    if not ranks.is_main():
        yield lambda step, metrics: None
        return
    points: queue.SimpleQueue[Point] = queue.SimpleQueue()
    ended = threading.Event()
    status = ["FINISHED"]
    sender = threading.Thread(
        target=_send_points, args=(params, model, points, ended, status), name="mlflow", daemon=True
    )
    sender.start()

    def log(step: int, metrics: Mapping[str, float | None]) -> None:
        for name, value in metrics.items():
            if value is not None:
                points.put((name, step, float(value)))

    flush_seconds = FLUSH_SECONDS
    try:
        yield log
    except (KeyboardInterrupt, Interrupted):
        status[0] = "KILLED"
        flush_seconds = INTERRUPTED_FLUSH_SECONDS
        raise
    except BaseException:
        status[0] = "FAILED"
        raise
    finally:
        ended.set()
        sender.join(flush_seconds)


def complete(
    params: Mapping[str, Any],
    *,
    metrics_path: Path,
    curves_path: Path,
    samples_path: Path,
    models_path: Path,
    reports_path: Path,
    params_path: Path,
) -> TrackedRuns:
    """Make MLflow show all of a pipeline run, from its files.

    Runs that are missing are made, points that are missing are added, files are sent unless the same are
    there. A second call changes nothing. A run that holds other values than the files is one of an earlier
    training with the same parameters; it is deleted, which MLflow can undo, and made anew.

    Args:
        params: all composed parameters as plain values.
        metrics_path: holds `MODEL.json` for every model of the parameters.
        curves_path: holds `MODEL.csv`.
        samples_path: holds `MODEL/unconditional.parquet` and `MODEL/continuations.parquet`.
        models_path: holds the folders `MODEL`.
        reports_path: holds the report.
        params_path: the composed parameters' file, kept with the report.
    Returns:
        where the runs are, or what is missing: no fault of MLflow's is an error of the pipeline.
    Raises:
        UserError: a file of the pipeline is missing or broken.
    """
    with tempfile.TemporaryDirectory(prefix="halfstep-") as previews:
        try:
            points: dict[str, list[Point]] = {}
            uploads: dict[str, list[_Upload]] = {}
            report_names = ("index.html", "README.md", "summary.json", "steps.csv", "figures")
            report = _upload("report", {f"report/{name}": reports_path / name for name in report_names})
            uploads[PIPELINE] = [report, _upload("params", {"params.yaml": params_path})]
            for model in params["models"]:
                curve = _curve_points(curves_path / f"{model}.csv")
                points[model] = curve + _metric_points(metrics_path / f"{model}.json")
                preview = Path(previews) / model / "samples.txt"
                preview.parent.mkdir()
                preview.write_text(_preview(samples_path / model), encoding="utf-8")
                uploads[model] = [_upload("samples", {"samples.txt": preview})]
                if params["tracking"]["log_models"]:
                    uploads[model].append(_upload("model", {"model": models_path / model}))
        except FileNotFoundError as error:
            raise UserError(f"{error.filename or error} is not there: make it with dvc repro") from None
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"model {model}: its file in {metrics_path}, {curves_path} or {samples_path} is not what its"
                f" stage writes ({error!r}): make it again with dvc repro"
            ) from None
        return _complete_runs(params, points, uploads)


def _complete_runs(
    params: Mapping[str, Any], points: Mapping[str, Sequence[Point]], uploads: Mapping[str, Sequence[_Upload]]
) -> TrackedRuns:
    digests = {
        name: _hash_of([points.get(name), [upload.content_hash for upload in group]]) for name, group in uploads.items()
    }
    missing = "the runs"
    try:
        client, experiment, parent = _within(CONNECT_SECONDS, lambda: _open_pipeline(params))
        # Files last: they are large, and their place may be another one, with faults of its own.
        runs = {
            model: _complete_points(client, parent, params, model, points[model], digests[model])
            for model in params["models"]
        }
        missing = "all files of the runs"
        for model, run in runs.items():
            _finish(client, run, uploads[model], digests[model])
        run_ids = {model: run.info.run_id for model, run in runs.items()}
        _finish(client, parent, uploads[PIPELINE], _hash_of([digests[PIPELINE], run_ids]))
    except Exception as error:  # MLflow passes on whatever databases, servers and file systems raise
        _LOG.debug("MLflow", exc_info=True)
        return TrackedRuns(_shown_uri(), None, None, {}, _missing_line(missing, error))
    wanted = params["tracking"]["experiment"]
    if experiment.name != wanted:
        _LOG.warning(
            "MLflow's experiment %s was deleted; the runs are in %s (mlflow experiments restore brings it back)",
            wanted,
            experiment.name,
        )
    return TrackedRuns(_shown_uri(), experiment.experiment_id, parent.info.run_id, run_ids, None)


def _open_pipeline(params: Mapping[str, Any]) -> "tuple[MlflowClient, Experiment, Run]":
    """A client, the MLflow experiment and the run of this pipeline run."""
    client, experiment = _connect(params)
    with _lock():
        return client, experiment, _open_parent(client, experiment.experiment_id, params)


def _complete_points(
    client: "MlflowClient",
    parent: "Run",
    params: Mapping[str, Any],
    model: str,
    points: Sequence[Point],
    digest: str,
) -> "Run":
    """One model's run, with all its parameters, curves and metrics."""
    run = _find_child(client, parent, model)
    if run is not None and run.data.tags.get(COMPLETED_TAG) == digest:
        return run
    logged = {} if run is None else _logged_points(client, run, {name for name, _, _ in points})
    if run is not None and not _agree(logged, points):
        client.delete_run(run.info.run_id)
        run, logged = None, {}
    if run is None:
        run = _create_child(client, parent, params, model)
    _log_params(client, run, _own_params(params, model))
    _log_points(client, run, [point for point in points if point[:2] not in logged])
    return run


def _finish(client: "MlflowClient", run: "Run", uploads: Sequence[_Upload], digest: str) -> None:
    """Send what files are not there yet, and end the run if it has not ended."""
    run_id, tags = run.info.run_id, run.data.tags
    for upload in uploads:
        tag = f"halfstep.run.files.{upload.name}"
        if tags.get(tag) != upload.content_hash:
            for target, path in sorted(upload.files.items()):
                client.log_artifact(run_id, str(path), target.rpartition("/")[0] or None)
            client.set_tag(run_id, tag, upload.content_hash)
    if tags.get(COMPLETED_TAG) != digest:
        client.set_tag(run_id, COMPLETED_TAG, digest)
    if run.info.status != "FINISHED":
        client.set_terminated(run_id, "FINISHED")


# Live points


def _send_points(
    params: Mapping[str, Any],
    model: str,
    points: "queue.SimpleQueue[Point]",
    ended: threading.Event,
    status: Sequence[str],
) -> None:
    """Body of the thread behind `live_run`: nothing that goes wrong here may reach training.

    Points that could not be sent are kept and tried again, so a run never has a gap before its last point.
    """
    client: MlflowClient | None = None
    run: Run | None = None
    pending: list[Point] = []
    logged: dict[str, set[int]] = {}
    has_warned = False
    retry_at = 0.0
    is_last = False
    while not is_last:
        # The run is opened at once, so that it can be seen before the first point comes.
        is_last = ended.wait(SEND_SECONDS) if run or has_warned else ended.is_set()
        while not points.empty():
            pending.append(points.get())
        if time.monotonic() < retry_at and not is_last:
            continue
        try:
            if client is None or run is None:
                client, run = _open_live(params, model)
            for name in {name for name, _, _ in pending} - logged.keys():
                logged[name] = {step for _, step in _logged_points(client, run, {name})}
            fresh = [point for point in dict.fromkeys(pending) if point[1] not in logged[point[0]]]
            _log_points(client, run, fresh)
            for name, step, _ in fresh:
                logged[name].add(step)
            pending = []
            if is_last:
                client.set_terminated(run.info.run_id, status[0])
                if status[0] != "FINISHED":
                    client.set_terminated(run.data.tags[PARENT_TAG], status[0])
        except Exception as error:
            if not has_warned:
                _LOG.warning(
                    "MLflow at %s takes no curve (%s); training goes on, and the stage track tries again at the end",
                    _shown_uri(),
                    _first_line(error),
                )
            has_warned = True
            # What was deleted in the UI would be refused for ever: another run is opened then.
            client, run, logged = None, None, {}
            retry_at = time.monotonic() + RETRY_SECONDS


def _open_live(params: Mapping[str, Any], model: str) -> "tuple[MlflowClient, Run]":
    """The model's run, ready for points; one that was completed is of an earlier training and is replaced."""
    client, _, parent = _open_pipeline(params)
    with _lock():
        if parent.info.status != "RUNNING":
            client.update_run(parent.info.run_id, status="RUNNING")
        run = _find_child(client, parent, model)
        if run is not None and COMPLETED_TAG in run.data.tags:
            client.delete_run(run.info.run_id)
            run = None
        if run is None:
            run = _create_child(client, parent, params, model)
        elif run.info.status != "RUNNING":
            client.update_run(run.info.run_id, status="RUNNING")
    return client, run


# Runs


def _set_defaults() -> None:
    """Settings that MLflow reads from the environment on import; those that a user made are left alone."""
    defaults = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        # A server's clients would print two lines at every run's end, in the middle of a stage's own.
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        # MLflow would try for many minutes before it says that a server does not answer.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _connect(params: Mapping[str, Any]) -> "tuple[MlflowClient, Experiment]":
    """A client, and the MLflow experiment, which is made if it is missing."""
    _set_defaults()
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "urllib3"):
        # Not even errors: MLflow logs them with a traceback, and raises them as well.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    uri = tracking_uri()
    with _lock():
        database = _sqlite_path(uri)
        if database is not None and not database.exists():
            _create_database(database)
        check_database(uri)
        client = MlflowClient(uri)
        # A database does not know where files should go and would put them into the working directory, which
        # in DVC's queue is a temporary one. A server knows.
        is_database = re.match(r"(sqlite|mysql|postgresql|mssql)", uri) is not None
        location = (project_root() / "mlartifacts").as_uri() if is_database else None
        experiment = _open_experiment(client, params["tracking"]["experiment"], location)
    _describe(client, experiment)
    return client, experiment


def check_database(uri: str) -> None:
    """Read from a SQLite database that exists; MLflow would try a broken one for minutes, and then print a page.

    Raises:
        OSError or sqlite3.Error: it cannot be read.
    """
    path = _sqlite_path(uri)
    if path is not None and path.exists():
        with path.open("rb"), closing(sqlite3.connect(path)) as connection:
            connection.execute("select count(*) from sqlite_master").fetchall()


def _open_experiment(client: "MlflowClient", name: str, location: str | None) -> "Experiment":
    """The experiment of a name, or where that was deleted, which keeps the name, `NAME-2` and so on.

    What a user deleted stays deleted: restoring it would bring all its runs back.
    """
    from mlflow.exceptions import MlflowException

    for number in itertools.count(1):
        candidate = name if number == 1 else f"{name}-{number}"
        experiment = client.get_experiment_by_name(candidate)
        if experiment is None:
            try:
                client.create_experiment(candidate, artifact_location=location)
            except MlflowException as error:
                # Our lock keeps no other clone from making it in between.
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            experiment = client.get_experiment_by_name(candidate)
        if experiment is not None and experiment.lifecycle_stage == "active":
            return experiment
    raise AssertionError


def _describe(client: "MlflowClient", experiment: "Experiment") -> None:
    """Tell MLflow's UI what an experiment is, where a user has not; nothing but looks depends on it."""
    from mlflow.exceptions import MlflowException

    state = {
        "selectedColumns": VIEW_COLUMNS,
        "columnOrder": VIEW_COLUMNS,
        "groupBy": {"aggregateFunction": "min", "groupByKeys": [{"mode": "tag", "groupByData": EXPERIMENT_TAG}]},
        "useGroupedValuesInCharts": False,
    }
    now = experiment.creation_time
    tags = {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": NOTE,
        f"mlflow.sharedViewState.{VIEW}": json.dumps(
            {"name": "models", "createdAt": now, "updatedAt": now, "state": json.dumps(state)}
        ),
    }
    with suppress(MlflowException):
        for tag in tags.keys() - experiment.tags.keys():
            client.set_experiment_tag(experiment.experiment_id, tag, tags[tag])


def ui_url(base: str) -> str:
    """Where MLflow's UI at an address shows this project: model training, its experiment, the view of the models.

    Without these words in the address the UI opens for generative AI applications, which have no metrics.
    """
    runs = read_runs(project_root() / RUNS_FILE)
    if runs is None or runs.experiment_id is None or runs.tracking_uri != _shown_uri():
        return f"{base}/#/experiments?workflowType=machine_learning"
    return f"{base}/#/experiments/{runs.experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"


def read_runs(path: Path) -> TrackedRuns | None:
    """What the stage `track` wrote; None if it has not, or something else."""
    try:
        return TrackedRuns(**read_json(path))
    except (OSError, TypeError, ValueError, UserError):
        return None


def _create_database(path: Path) -> None:
    """Create MLflow's SQLite database whole or not at all: a half-made one is refused for ever after."""
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory(prefix="halfstep-", ignore_cleanup_errors=True) as folder:
        made = Path(folder) / "mlflow.db"
        MlflowClient(f"sqlite:///{made}").search_experiments(max_results=1)
        with atomic_path(path) as temporary:
            shutil.copyfile(made, temporary)


def _lock() -> FileLock:
    """Held while something is looked for and made if missing: queued experiments run side by side."""
    folder = project_root() / ".halfstep"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / "mlflow.lock", timeout=LOCK_SECONDS)


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
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return None


def _open_parent(client: "MlflowClient", experiment_id: str, params: Mapping[str, Any]) -> "Run":
    """The run of this pipeline run, found by its tags or made; the lock is to be held."""
    name = os.environ.get("DVC_EXP_NAME") or WORKSPACE
    tags = {EXPERIMENT_TAG: name, HASH_TAG: _hash_of(dict(params)), KIND_TAG: PIPELINE, CLONE_TAG: _clone_id()}
    run = _search(client, experiment_id, tags)
    if run is None:
        told = {PRESET_TAG: params["preset"], USER_TAG: _user(), **dict.fromkeys(COMMIT_TAGS, _git_commit())}
        known = {tag: value for tag, value in told.items() if value}
        run = client.create_run(experiment_id, run_name=name, tags=tags | known)
    _log_params(client, run, params)
    return run


def _find_child(client: "MlflowClient", parent: "Run", model: str) -> "Run | None":
    return _search(
        client,
        parent.info.experiment_id,
        {PARENT_TAG: parent.info.run_id, MODEL_TAG: model, KIND_TAG: "model"},
    )


def _create_child(client: "MlflowClient", parent: "Run", params: Mapping[str, Any], model: str) -> "Run":
    """A run for one model, with the parameters it is made with."""
    inherited = (EXPERIMENT_TAG, PRESET_TAG, USER_TAG, *COMMIT_TAGS)
    run = client.create_run(
        parent.info.experiment_id,
        run_name={"ar": "autoregressive", "0": "teacher"}.get(model, f"round {model}"),
        tags={tag: parent.data.tags[tag] for tag in inherited if tag in parent.data.tags}
        | {PARENT_TAG: parent.info.run_id, MODEL_TAG: model, KIND_TAG: "model"}
        | ({} if model == "ar" else {ROUND_TAG: model}),
    )
    _log_params(client, run, _own_params(params, model))
    return run


def _own_params(params: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Of all parameters, those that a model is made with."""
    section = {"ar": "baseline", "0": "pretrain"}.get(model, "distill")
    return {section: params[section], "model": params["model"], "seed": params["seed"]}


def _search(client: "MlflowClient", experiment_id: str, tags: Mapping[str, str]) -> "Run | None":
    """The oldest run that has all these tags."""
    quoted = {tag: f'"{value}"' if "'" in value else f"'{value}'" for tag, value in tags.items()}
    condition = " and ".join(f"tags.`{tag}` = {value}" for tag, value in quoted.items())
    found = client.search_runs([experiment_id], condition, max_results=1, order_by=["attributes.start_time ASC"])
    return found[0] if found else None


def _log_params(client: "MlflowClient", run: "Run", params: Mapping[str, Any]) -> None:
    """Log the parameters that a run does not have yet: its process may have ended right after making it."""
    from mlflow.entities import Param

    entities = [Param(key, value) for key, value in flatten(params).items() if key not in run.data.params]
    for start in range(0, len(entities), MAX_PARAMS_PER_BATCH):
        client.log_batch(run.info.run_id, params=entities[start : start + MAX_PARAMS_PER_BATCH])


def _log_points(client: "MlflowClient", run: "Run", points: Sequence[Point]) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    entities = [Metric(name, value, now, step) for name, step, value in points]
    for start in range(0, len(entities), MAX_METRICS_PER_BATCH):
        client.log_batch(run.info.run_id, metrics=entities[start : start + MAX_METRICS_PER_BATCH])


def _logged_points(client: "MlflowClient", run: "Run", names: Iterable[str]) -> dict[tuple[str, int], float]:
    """What a run holds of some metrics: value by (name, step)."""
    return {
        (name, metric.step): metric.value
        for name in sorted(names)
        for metric in client.get_metric_history(run.info.run_id, name)
    }


def _agree(logged: Mapping[tuple[str, int], float], points: Iterable[Point]) -> bool:
    """Whether everything logged is among the points, with the same values."""
    wanted = {(name, step): value for name, step, value in points}
    return all(
        key in wanted and math.isclose(value, wanted[key], rel_tol=SAME_VALUE, abs_tol=1e-12)
        for key, value in logged.items()
    )


# Files


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested parameters as MLflow takes them: dotted names, values as JSON where they are no text.

    A value longer than every server takes ends in three dots.
    """
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            is_short = len(text) <= MAX_PARAM_LENGTH
            flat[f"{prefix}{key}"] = text if is_short else f"{text[: MAX_PARAM_LENGTH - 3]}..."
    return flat


def _curve_points(path: Path) -> list[Point]:
    with path.open(newline="", encoding="utf-8") as stream:
        return [
            (name, int(row["step"]), float(value))
            for row in csv.DictReader(stream)
            for name, value in row.items()
            if name != "step" and value
        ]


def _metric_points(path: Path) -> list[Point]:
    """What was measured of a model: of its samples by number of denoising steps, the rest at step 0."""
    metrics = read_json(path)
    points = [
        (name, entry["num_steps"], entry[name]["value"])
        for entry in metrics["samples"]
        for name in ("generative_perplexity", "entropy", "mauve", "nfe")
        if entry[name] is not None
    ]
    for group in ("validation", "cloze"):
        for name, estimate in (metrics[group] or {}).items():
            if isinstance(estimate, Mapping):
                points.append((f"{group}_{name}", 0, estimate["value"]))
    return [*points, ("num_parameters", 0, float(metrics["num_parameters"]))]


def _preview(folder: Path) -> str:
    """The first samples of a model at every number of steps, as text."""
    import pyarrow.parquet as pq

    lines = []
    for kind in ("unconditional", "continuations"):
        path = folder / f"{kind}.parquet"
        columns = ["num_steps", "sample_index", "text"]
        table = pq.read_table(path, columns=columns, filters=[("sample_index", "<", NUM_PREVIEW_SAMPLES)])
        for row in sorted(table.to_pylist(), key=lambda row: (row["num_steps"], row["sample_index"])):
            lines += [f"== {kind}, {row['num_steps']} steps, sample {row['sample_index']}", row["text"], ""]
    return "\n".join(lines)


def _upload(name: str, sources: Mapping[str, Path]) -> _Upload:
    """Files and whole folders as one group of artifacts, with the hash of all their contents.

    Of a model's folder the training state is left out: it is several times the model, and DVC keeps it.

    Args:
        name: of the group.
        sources: file or folder by path within the run's artifacts; a file keeps its name there.
    Raises:
        FileNotFoundError: a file or folder is missing.
    """
    files: dict[str, Path] = {}
    for target, source in sources.items():
        if source.is_dir():
            inner = (path for path in source.rglob("*") if path.is_file() and not path.match(TRAINING_STATE))
            files |= {f"{target}/{path.relative_to(source).as_posix()}": path for path in inner}
        else:
            files[target] = source
    digest = hashlib.sha256()
    for target, path in sorted(files.items()):
        digest.update(f"{target}\0{file_hash(path)}\n".encode())
    return _Upload(name, files, digest.hexdigest())


def _hash_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _git_commit() -> str | None:
    """The commit that the project stands at; None without git."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, cwd=project_root(), capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def _sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite URI, from the project's root where it is relative; None for any other URI."""
    found = re.fullmatch(r"sqlite(?:\+\w+)?:///(.+)", uri)
    return project_root() / found[1] if found else None


def _shown_uri() -> str:
    """The tracking URI as it may be written down and shown."""
    uri = tracking_uri()
    path = _sqlite_path(uri)
    if path is not None and path.is_relative_to(project_root()):
        return f"sqlite:///{path.relative_to(project_root()).as_posix()}"
    return without_credentials(uri)


def _first_line(error: BaseException) -> str:
    """The first line of a message, which may hold the URI, as it may be shown."""
    return one_line(without_credentials(next(iter(str(error).splitlines()), "") or type(error).__name__))


# What to do, by what an error says.
_WAYS_OUT = (
    ("out-of-date database schema", "An older database: mlflow db upgrade URI; a newer one: the MLflow that made it"),
    ("not a database|malformed", "Move the database away (a new one is made)"),
    ("is locked", "Wait for the other process"),
    ("'active' state|active lifecycle", "What was deleted is made anew"),
    ("No module named", "Install it, as docs/sharing.md says for PostgreSQL,"),
    (r"\b40[13]\b|UNAUTHENTICATED|PERMISSION_DENIED", "See to MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
    ("CERTIFICATE|SSL", "Name the server's certificate by MLFLOW_TRACKING_SERVER_CERT_PATH"),
    ("[Pp]ermission denied|unable to open", "Make it readable and writable"),
)


def _missing_line(missing: str, error: BaseException) -> str:
    reason = _first_line(error)
    found = storage_fault(error)
    if found is not None:
        what, way_out = STORAGE_FAULTS[found[0]]
        reason, way_out = f"{found[1]}: {what}" if found[1] else what, way_out.capitalize()
    else:
        way_out = next(
            (way for words, way in _WAYS_OUT if re.search(words, str(error))),
            f"{'Mend it' if _sqlite_path(tracking_uri()) else 'Start the server'} or change MLFLOW_TRACKING_URI",
        )
    return (
        f"MLflow at {_shown_uri()} did not take {missing} ({reason}); all results are in reports/. {way_out},"
        f" then: {RETRY_COMMAND}"
    )


def _within(seconds: float, call: Callable[[], Answer]) -> Answer:
    """What a call returns or raises; one that takes longer is left to itself, in a thread that no exit waits for."""
    answer: Future[Answer] = Future()

    def work() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=work, name="mlflow", daemon=True).start()
    try:
        return answer.result(seconds)
    except TimeoutError:
        if answer.done():
            raise
        raise TimeoutError(f"no answer within {seconds:.0f} s") from None
