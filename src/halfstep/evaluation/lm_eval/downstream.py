"""Tasks of lm-eval, run on a model in this process."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfstep.evaluation.lm_eval.harness import silenced
from halfstep.metrics.estimate import Estimate
from halfstep.run.errors import UserError

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from halfstep.evaluation.lm_eval.autoregressive_lm import AutoregressiveLM
    from halfstep.evaluation.lm_eval.denoiser_lm import DenoiserLM

NUM_BOOTSTRAPS = 1000
"""Resamples behind the standard error of a metric that is no mean."""
FEWSHOT_SEED = 1234
"""lm-eval's own, by which examples are chosen where a task wants any."""


@dataclass(frozen=True)
class TaskResult:
    """What a model scores on one task.

    Attributes:
        metrics: by name; counts are in documents. A standard error holds the noise of drawn log-likelihoods too, since
            documents are drawn independently; it is None where lm-eval knows none for the metric.
        num_fewshot: examples in the context.
        num_truncated: contexts that lost tokens on the left to fit.
        monte_carlo: how the log-likelihoods were drawn, see `DenoiserLM.monte_carlo`; None where they are exact.
    """

    metrics: Mapping[str, Estimate]
    num_fewshot: int
    num_truncated: int
    monte_carlo: Mapping[str, Any] | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a metrics file."""
        return {
            "metrics": {name: estimate.as_dict() for name, estimate in self.metrics.items()},
            "num_fewshot": self.num_fewshot,
            "num_truncated": self.num_truncated,
            "monte_carlo": self.monte_carlo and dict(self.monte_carlo),
        }


def run_downstream(
    lm: "AutoregressiveLM | DenoiserLM", tasks: Sequence[str], *, include_path: Path | None, limit: int | None
) -> dict[str, TaskResult]:
    """Run tasks as they are defined, zero-shot where they do not say otherwise.

    Args:
        lm: the model.
        tasks: names of lm-eval, or of the definitions in `include_path`; a group stands for its tasks.
        include_path: folder of further task definitions (YAML).
        limit: documents of each task at most; None is all.
    Returns:
        results by name of task, in the order given.
    Raises:
        UserError: a task is unknown, its data cannot be had, it has no documents, or it needs what the model refuses.
    """
    if not tasks:
        return {}
    if include_path is not None and not include_path.is_dir():
        raise UserError(f"evaluate.downstream_include_path {include_path} is not a folder: give one of task YAMLs")
    manager = _find(tasks, include_path)
    results: dict[str, TaskResult] = {}
    for name in tasks:
        results |= _run(lm, name, manager, limit)
    return results


def _find(tasks: Sequence[str], include_path: Path | None) -> "TaskManager":
    """The definitions of the folder where they are enough, and else lm-eval's own too, whose list takes long."""
    from lm_eval.tasks import TaskManager

    for include_defaults in (False, True) if include_path is not None else (True,):
        with silenced():
            manager = TaskManager(
                include_path=None if include_path is None else str(include_path), include_defaults=include_defaults
            )
        known = {*manager.all_subtasks, *manager.all_groups, *manager.all_tags}
        unknown = [name for name in tasks if name not in known]
        if not unknown:
            return manager
    raise UserError(
        f"evaluate.downstream_tasks names {unknown[0]!r}, which neither lm-eval nor"
        f" evaluate.downstream_include_path {include_path} defines: halfstep lm-eval ls tasks lists what there is"
    )


def _run(
    lm: "AutoregressiveLM | DenoiserLM", name: str, manager: "TaskManager", limit: int | None
) -> dict[str, TaskResult]:
    from lm_eval.evaluator import evaluate

    results = {}
    for task_name, task in _load(name, manager).items():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
        lm.forget()
        with silenced(), _in_one_process():
            answer: Any = evaluate(
                lm,
                {"tasks": {task_name: task}, "groups": {}},
                limit=limit,
                bootstrap_iters=NUM_BOOTSTRAPS,
                log_samples=False,
            )
        results[task_name] = _result(task_name, answer, lm)
    return results


def _load(name: str, manager: "TaskManager") -> dict[str, Any]:
    """The tasks of a name, each with its data."""
    with silenced():
        try:
            tasks: dict[str, Any] = manager.load([name])["tasks"]
            empty = [task_name for task_name, task in tasks.items() if not len(task.eval_docs)]
        # Nobody says what datasets, the hub's client and lm-eval's loader may raise; an empty file is StopIteration.
        except Exception as error:
            reason = f"{type(error).__name__} {' '.join(str(error).split())[:300]}".strip()
            raise UserError(
                f"evaluate.downstream_tasks: {name} cannot be loaded ({reason}); without network give a definition on"
                " local files in evaluate.downstream_include_path, or evaluate.downstream_tasks=[]"
            ) from None
    if empty:
        raise UserError(f"evaluate.downstream_tasks: {empty[0]} has no documents: take it out, or fill its file")
    return tasks


@contextlib.contextmanager
def _in_one_process() -> Iterator[None]:
    """Let lm-eval resample in this process: many would cost more than they save, and fork where threads run."""
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        yield
    finally:
        del os.environ["DISABLE_MULTIPROC"]
        if before is not None:
            os.environ["DISABLE_MULTIPROC"] = before


def _result(task: str, answer: Mapping[str, Any], lm: "AutoregressiveLM | DenoiserLM") -> TaskResult:
    """From lm-eval's own table, where a value is at `metric,filter` and its error at `metric_stderr,filter`."""
    values = answer["results"][task]
    count = answer["n-samples"][task]["effective"]
    metrics = {}
    for key, value in values.items():
        metric, comma, chosen = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        error = values.get(f"{metric}_stderr,{chosen}")
        name = metric if chosen == "none" else f"{metric},{chosen}"
        try:
            metrics[name] = Estimate(
                float(value), float(error) if isinstance(error, int | float) else None, count, _unit(metric)
            )
        except ValueError as problem:
            raise UserError(f"evaluate.downstream_tasks: {task} gives no number for {name}: {problem}") from None
    return TaskResult(metrics, int(answer["n-shot"].get(task) or 0), lm.num_truncated, lm.monte_carlo())


def _unit(metric: str) -> str:
    return "bits" if metric == "bits_per_byte" else "1"
