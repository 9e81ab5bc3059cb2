"""A model's training curve in MLflow while it trains.

MLflow's own asynchronous logging does not serve: it opens runs in the caller's thread, drops what a server refused,
and waits at exit for one that does not answer.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from halfstep.run import ranks
from halfstep.run.errors import Interrupted
from halfstep.tracking.client import COMPLETED_TAG, Pipeline, Point, lock, shown_reason, shown_uri

if TYPE_CHECKING:
    from mlflow.entities import Run

_LOG = logging.getLogger(__name__)

SEND_SECONDS = 2.0
RETRY_SECONDS = 60.0
FLUSH_SECONDS = 10.0
INTERRUPTED_FLUSH_SECONDS = 3.0
"""The person who stopped a command waits for this."""

Log = Callable[[int, Mapping[str, float | None]], None]
"""Takes (step, values by name); None is a value that was not measured at this step."""


@contextmanager
def live_run(params: Mapping[str, Any], *, model: str) -> Iterator[Log]:
    """Show a model's training in MLflow while it runs; training is neither slowed nor stopped by it.

    A thread sends the points in batches. If the server does not answer, one warning says so and training goes on;
    `complete` adds what is missing. The run ends as finished, killed or failed with its training; one that resumes
    from a checkpoint continues its run, and may give points again.

    Args:
        params: all composed parameters as plain values; with the name of the DVC experiment they decide to which
            pipeline run the model belongs.
        model: name of the model: `ar`, `0`, `1`, ...
    Yields:
        a function of (step, values by name), which does something in the main process. The names are the columns of
        the training curve's file.
    """
    if not ranks.is_main():
        yield lambda step, metrics: None
        return
    points: queue.SimpleQueue[Point] = queue.SimpleQueue()
    ended: Future[str] = Future()
    sender = threading.Thread(target=_send_points, args=(params, model, points, ended), name="mlflow", daemon=True)
    sender.start()

    def log(step: int, metrics: Mapping[str, float | None]) -> None:
        for name, value in metrics.items():
            if value is not None:
                points.put((name, step, float(value)))

    status, seconds = "FINISHED", FLUSH_SECONDS
    try:
        yield log
    except (KeyboardInterrupt, Interrupted):
        status, seconds = "KILLED", INTERRUPTED_FLUSH_SECONDS
        raise
    except BaseException:
        status = "FAILED"
        raise
    finally:
        ended.set_result(status)
        sender.join(seconds)


def _send_points(params: Mapping[str, Any], model: str, points: "queue.SimpleQueue[Point]", ended: Future[str]) -> None:
    """Body of the thread behind `live_run`: no error here may reach training.

    Points that could not be sent are kept and tried again, so a run never has a gap before its last point.
    """
    pipeline: Pipeline | None = None
    run: Run | None = None
    pending: list[Point] = []
    held: set[tuple[str, int]] = set()
    has_warned = False
    retry_at = 0.0
    status: str | None = None
    while status is None:
        # The run is opened at once, so that it can be seen before the first point comes.
        with suppress(TimeoutError):
            status = ended.result(SEND_SECONDS if run or has_warned else 0)
        while not points.empty():
            pending.append(points.get())
        if time.monotonic() < retry_at and status is None:
            continue
        try:
            if pipeline is None or run is None:
                pipeline, run = _open_live(params, model)
                held = {point[:2] for point in pipeline.held_by(run)}
            fresh = {point[:2]: point for point in pending if point[:2] not in held}
            pipeline.log(run, fresh.values())
            held |= fresh.keys()
            pending = []
            if status is not None:
                ended_runs = [run] if status == "FINISHED" else [run, pipeline.parent]
                for one in ended_runs:
                    pipeline.client.set_terminated(one.info.run_id, status)
        except Exception as error:
            if not has_warned:
                _LOG.warning(
                    "MLflow at %s takes no curve (%s); training goes on, and the stage track tries again at the end",
                    shown_uri(),
                    shown_reason(error),
                )
            has_warned = True
            # A run deleted in the UI would be refused for ever: another one is opened then.
            pipeline = run = None
            retry_at = time.monotonic() + RETRY_SECONDS


def _open_live(params: Mapping[str, Any], model: str) -> "tuple[Pipeline, Run]":
    """The model's run, ready for points; one that was completed is of an earlier training and is replaced."""
    pipeline = Pipeline(params)
    with lock():
        run = pipeline.open_model_run(model)
        if COMPLETED_TAG in run.data.tags:
            run = pipeline.open_model_run(model, instead_of=run)
        for one in (pipeline.parent, run):
            if one.info.status != "RUNNING":
                pipeline.client.update_run(one.info.run_id, status="RUNNING")
    return pipeline, run
