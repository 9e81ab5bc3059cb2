"""A finished pipeline run in MLflow, made complete from its files."""

import logging
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from halfstep.metrics.curve import read_curve
from halfstep.metrics.frontier import FrontierRow, read_rows
from halfstep.metrics.record import AUTOREGRESSIVE, Record, num_steps_of, read_record
from halfstep.run.errors import UserError
from halfstep.run.faults import STORAGE_FAULTS, storage_fault
from halfstep.run.files import file_hash, make_folder, project_root, read_json
from halfstep.samples.table import read_sample_sets
from halfstep.tracking.client import (
    COMPLETED_TAG,
    VIEW,
    Pipeline,
    Point,
    hash_of,
    shown_reason,
    shown_uri,
    sqlite_path,
    tracking_uri,
)  # fmt: skip

if TYPE_CHECKING:
    from mlflow.entities import Run

Answer = TypeVar("Answer")

_LOG = logging.getLogger(__name__)

RUNS_FILE = "mlflow.json"
RETRY_COMMAND = "dvc repro --single-item --force track"
"""DVC takes the stage for done: the pipeline ends well whatever MLflow does."""
# Each request has a time limit of its own, but MLflow tries a database that does not answer for an hour.
CONNECT_SECONDS = 180.0

NUM_PREVIEW_SAMPLES = 4
MAX_METRIC_NAME_LENGTH = 250

WAYS_OUT = (
    ("out-of-date database schema", "An older database: mlflow db upgrade URI; a newer one: the MLflow that made it"),
    ("not a database|malformed", "Move the database away (a new one is made)"),
    ("is locked", "Wait for the other process"),
    ("'active' state|active lifecycle", "What was deleted is made again"),
    ("No module named", "Install it, as docs/operations.md says for PostgreSQL,"),
    (r"\b40[13]\b|UNAUTHENTICATED|PERMISSION_DENIED", "See to MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
    ("CERTIFICATE|SSL", "Name the server's certificate by MLFLOW_TRACKING_SERVER_CERT_PATH"),
    ("[Pp]ermission denied|unable to open", "Make it readable and writable"),
)
"""What to do, by the words of an error."""


@dataclass(frozen=True)
class TrackedRuns:
    """Where MLflow holds a pipeline run; of the ids there are none if not all is there.

    Attributes:
        tracking_uri: without credentials; a database inside the project is named from its root.
        run_ids: by model.
        missing: None if all is there; otherwise one line: what is not, why, and how to send it later.
    """

    tracking_uri: str
    experiment_id: str | None
    parent_run_id: str | None
    run_ids: dict[str, str]
    missing: str | None


@dataclass(frozen=True)
class _Content:
    """What a run is to hold: its points, its files by path among its artifacts, and a hash of both."""

    points: list[Point]
    files: dict[str, Path]
    digest: str


def complete(params: Mapping[str, Any], root: Path) -> TrackedRuns:
    """Make MLflow show all of a pipeline run, from its files.

    Runs and points that are missing are added; a run whose content changed gets its files again, and one that holds
    other values than the files (an earlier training with the same parameters) is deleted, which MLflow can undo, and
    made again. A second call changes nothing.

    Args:
        params: all composed parameters as plain values.
        root: holds params.yaml, metrics/, curves/, samples/, models/ and reports/.
    Returns:
        where the runs are, or what is missing: no fault of MLflow's is an error of the pipeline.
    Raises:
        UserError: a file of the pipeline is missing or broken.
    """
    with tempfile.TemporaryDirectory(prefix="halfstep-") as previews:
        try:
            report = _content([], {"params.yaml": root / "params.yaml", "report": root / "reports"})
            contents = {}
            for model in params["frontiers"]:
                curve = read_curve(root / "curves" / f"{model}.csv")
                points = [(name, *point) for name, column in curve.items() for point in column]
                files = {}
                # Of a rival there is its place on the frontier alone.
                if model in params["models"]:
                    points += metric_points(read_record(root / "metrics" / f"{model}.json"))
                    files["samples.txt"] = make_folder(Path(previews)) / "samples.txt"
                    files["samples.txt"].write_text(_preview(root / "samples" / model), encoding="utf-8")
                if (frontier := root / "frontier" / model).is_dir():
                    points += frontier_points(read_rows(frontier))
                    files["frontier"] = frontier
                if params["tracking"]["log_models"]:
                    files["model"] = root / "models" / model
                contents[model] = _content(points, files)
        except FileNotFoundError as error:
            raise UserError(f"{error.filename or error} is not there: make it with dvc repro") from None
        return _complete_runs(params, report, contents)


def _content(points: list[Point], sources: Mapping[str, Path]) -> _Content:
    """Points, and files or folders by path among a run's artifacts."""
    files: dict[str, Path] = {}
    for target, source in sources.items():
        if source.is_dir():
            inner = (path for path in source.rglob("*") if path.is_file())
            files |= {f"{target}/{path.relative_to(source).as_posix()}": path for path in inner}
        else:
            files[target] = source
    return _Content(points, files, hash_of([points, {target: file_hash(path) for target, path in files.items()}]))


def _complete_runs(params: Mapping[str, Any], report: _Content, contents: Mapping[str, _Content]) -> TrackedRuns:
    missing = "the runs"
    try:
        pipeline = _within(CONNECT_SECONDS, lambda: Pipeline(params))
        runs = {model: _complete_points(pipeline, model, content) for model, content in contents.items()}
        # Files last: they are large, and their place may be another one, with faults of its own.
        missing = "all files of the runs"
        for model, content in contents.items():
            _finish(pipeline, runs[model], content.files, content.digest)
        run_ids = {model: run.info.run_id for model, run in runs.items()}
        _finish(pipeline, pipeline.parent, report.files, hash_of([report.digest, run_ids]))
    except Exception as error:  # MLflow passes on whatever databases, servers and file systems raise
        _LOG.debug("MLflow", exc_info=True)
        return TrackedRuns(shown_uri(), None, None, {}, _missing_line(missing, error))
    wanted, name = params["tracking"]["experiment"], pipeline.experiment.name
    if name != wanted:
        back = "mlflow experiments restore brings it back"
        _LOG.warning("MLflow's experiment %s was deleted; the runs are in %s (%s)", wanted, name, back)
    return TrackedRuns(
        shown_uri(), pipeline.experiment.experiment_id, pipeline.parent.info.run_id, run_ids, missing=None
    )


def _complete_points(pipeline: Pipeline, model: str, content: _Content) -> "Run":
    """One model's run, with all its parameters, curves and metrics."""
    run = pipeline.open_model_run(model)
    if run.data.tags.get(COMPLETED_TAG) == content.digest:
        return run
    held = pipeline.held_by(run)
    if not held <= set(content.points):
        run, held = pipeline.open_model_run(model, instead_of=run), set()
    pipeline.log(run, [point for point in content.points if point not in held])
    return run


def _finish(pipeline: Pipeline, run: "Run", files: Mapping[str, Path], digest: str) -> None:
    """Send a run's files unless these are there, and end the run if it has not ended."""
    run_id = run.info.run_id
    if run.data.tags.get(COMPLETED_TAG) != digest:
        for target, path in sorted(files.items()):
            pipeline.client.log_artifact(run_id, str(path), target.rpartition("/")[0] or None)
        pipeline.client.set_tag(run_id, COMPLETED_TAG, digest)
    if run.info.status != "FINISHED":
        pipeline.client.set_terminated(run_id, "FINISHED")


def frontier_points(rows: Iterable[FrontierRow]) -> list[Point]:
    """Perplexity and entropy of each row, as `frontier ordered noise 1.0 temperature 0.8/perplexity` and the like.

    The step is the number of equivalent evaluations.
    """
    points = []
    for row in rows:
        about = row.setting.partition(",")[2].replace("=", " ").replace(",", " ")
        given = None if row.givens is None else f"{row.givens:g} given"
        name = " ".join(filter(None, ["frontier", row.sampler, about, f"temperature {row.temperature:g}", given]))
        for metric, value in {"perplexity": row.perplexity, "entropy": row.entropy, "solved": row.solved}.items():
            if value is not None:
                points.append((f"{name}/{metric}"[:MAX_METRIC_NAME_LENGTH], round(row.equivalent_evaluations), value))
    return points


def metric_points(record: Record) -> list[Point]:
    """What was measured of a model, as MLflow charts it.

    The step is the number of denoising steps that samples were asked to take, the mean number of network evaluations
    of other samplers and of autoregressive models, and 0 where no samples are measured. Samplers other than ancestral,
    their settings and temperatures other than 1 come before the metric's name: `ordered/entropy`,
    `confidence threshold 0.9/entropy`.
    """
    evaluations = {
        (row.sampler, row.setting, row.temperature): round(row.estimate.value)
        for row in record.rows
        if row.metric == "nfe"
    }
    points = [("num_parameters", 0, float(record.num_parameters))]
    for row in record.rows:
        drawn = [] if row.sampler in (None, "ancestral", AUTOREGRESSIVE) else [row.sampler]
        step = num_steps_of(row.setting or "")
        if step is None:
            step = evaluations.get((row.sampler, row.setting, row.temperature), 0)
            drawn += [row.setting] if row.setting else []
        if row.temperature not in (None, 1.0):
            drawn.append(f"temperature {row.temperature:g}")
        name = "/".join(filter(None, [" ".join(map(str, drawn)), row.metric]))
        # MLflow refuses other characters.
        points.append((re.sub(r"[^\w.\-:/ ]", " ", name)[:MAX_METRIC_NAME_LENGTH], step, row.estimate.value))
    return points


def _preview(folder: Path) -> str:
    """The first samples of every set of a model, as text."""
    lines = []
    for kind in ("unconditional", "continuations"):
        sets: list[Any] = read_sample_sets(folder / f"{kind}.parquet")
        for samples in sets:
            for index, text in enumerate(samples.texts[:NUM_PREVIEW_SAMPLES]):
                drawn = " ".join(filter(None, (samples.sampler, samples.setting)))
                lines += [f"== {kind}, {drawn}, sample {index}", text, ""]
    return "\n".join(lines)


def ui_url(base: str) -> str:
    """Where MLflow's UI at an address shows this project: model training, its experiment, the view of the models.

    Without these words in the address the UI opens for generative AI applications, which have no metrics.
    """
    runs = read_runs(project_root() / RUNS_FILE)
    if runs is None or runs.experiment_id is None or runs.tracking_uri != shown_uri():
        return f"{base}/#/experiments?workflowType=machine_learning"
    return f"{base}/#/experiments/{runs.experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"


def read_runs(path: Path) -> TrackedRuns | None:
    """What the stage `track` wrote; None if it has not, or something else."""
    try:
        return TrackedRuns(**read_json(path))
    except (OSError, TypeError, ValueError, UserError):
        return None


def _missing_line(missing: str, error: BaseException) -> str:
    reason = shown_reason(error)
    found = storage_fault(error)
    if found is not None:
        what, way_out = STORAGE_FAULTS[found[0]]
        reason, way_out = f"{found[1]}: {what}" if found[1] else what, way_out.capitalize()
    else:
        way_out = next(
            (way for words, way in WAYS_OUT if re.search(words, str(error))),
            f"{'Repair it' if sqlite_path(tracking_uri()) else 'Start the server'} or change MLFLOW_TRACKING_URI",
        )
    return (
        f"MLflow at {shown_uri()} did not take {missing} ({reason}); all results are in reports/. {way_out},"
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
