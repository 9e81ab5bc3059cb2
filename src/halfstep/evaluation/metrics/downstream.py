"""Tasks of lm-eval, run on a model in this process."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfstep.evaluation.evaluated import Evaluated, rows_of
from halfstep.evaluation.lm_eval.autoregressive_lm import AutoregressiveLM
from halfstep.evaluation.lm_eval.denoiser_lm import DenoiserLM
from halfstep.evaluation.lm_eval.harness import silenced
from halfstep.metrics.estimate import Estimate
from halfstep.metrics.record import Row
from halfstep.run.errors import UserError
from halfstep.run.files import resolve_user_path

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

LM = AutoregressiveLM | DenoiserLM

NUM_BOOTSTRAPS = 1000
"""Resamples behind the standard error of a metric that is no mean."""
FEWSHOT_SEED = 1234
"""lm-eval's own, by which examples are chosen where a task wants any."""


def measure(evaluated: Evaluated) -> Iterator[Row]:
    """downstream.TASK.METRIC of the tasks that `evaluate.downstream_tasks` names."""
    settings = evaluated.settings
    folder = settings.downstream_include_path
    yield from run_downstream(
        lambda: evaluated.lm(settings.num_downstream_draws),
        settings.downstream_tasks,
        include_path=resolve_user_path(folder) if folder else None,
        limit=settings.downstream_limit,
    )


def run_downstream(
    new_lm: Callable[[], LM], tasks: Sequence[str], *, include_path: Path | None, limit: int | None
) -> list[Row]:
    """Run tasks as they are defined, zero-shot where they do not say otherwise.

    Args:
        new_lm: gives the model, for each task one that has answered nothing yet.
        tasks: names of lm-eval, or of the definitions in `include_path`; a group is all its tasks.
        include_path: folder of further task definitions (YAML).
        limit: documents of each task at most; None is all.
    Returns:
        of each task every metric, counted in documents: its standard error holds the noise of drawn log-likelihoods
        too, since documents are drawn independently, and is None where lm-eval knows none. Then num_truncated.TASK,
        and of a denoiser monte_carlo_error.TASK, see `DenoiserLM.mean_standard_error`.
    Raises:
        UserError: a task is unknown, its data cannot be had, it has no documents, or it needs what the model refuses.
    """
    if not tasks:
        return []
    # lm-eval resamples in this process: many would cost more than they save, and fork where threads run.
    os.environ["DISABLE_MULTIPROC"] = "1"
    if include_path is not None and not include_path.is_dir():
        raise UserError(f"evaluate.downstream_include_path {include_path} is not a folder: give one of task YAMLs")
    manager = _find(tasks, include_path)
    return [row for name in tasks for row in _run(new_lm, name, manager, limit)]


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


def _run(new_lm: Callable[[], LM], name: str, manager: "TaskManager", limit: int | None) -> Iterator[Row]:
    from lm_eval.evaluator import evaluate

    for task_name, task in _load(name, manager).items():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
        lm = new_lm()
        with silenced():
            answer: Any = evaluate(
                lm,
                {"tasks": {task_name: task}, "groups": {}},
                limit=limit,
                bootstrap_iters=NUM_BOOTSTRAPS,
                log_samples=False,
            )
        measured = _estimates(task_name, answer)
        yield from rows_of(None, **{f"downstream.{task_name}.{metric}": value for metric, value in measured.items()})
        yield from rows_of(None, **{f"num_truncated.{task_name}": lm.num_truncated})
        if isinstance(lm, DenoiserLM):
            yield from rows_of(None, **{f"monte_carlo_error.{task_name}": lm.mean_standard_error})


def _load(name: str, manager: "TaskManager") -> dict[str, Any]:
    """The tasks of a name, each with its data."""
    with silenced():
        try:
            tasks: dict[str, Any] = manager.load([name])["tasks"]
            empty = [task_name for task_name, task in tasks.items() if not len(task.eval_docs)]
        # datasets, the hub's client and lm-eval's loader may raise anything; an empty file is StopIteration.
        except Exception as error:
            reason = f"{type(error).__name__} {' '.join(str(error).split())[:300]}".strip()
            raise UserError(
                f"evaluate.downstream_tasks: {name} cannot be loaded ({reason}); without network give a definition on"
                " local files in evaluate.downstream_include_path, or evaluate.downstream_tasks=[]"
            ) from None
    if empty:
        raise UserError(f"evaluate.downstream_tasks: {empty[0]} has no documents: take it out, or fill its file")
    return tasks


def _estimates(task: str, answer: Mapping[str, Any]) -> dict[str, Estimate]:
    """From lm-eval's own table, where a value is at `metric,filter` and its error at `metric_stderr,filter`."""
    values = answer["results"][task]
    count = answer["n-samples"][task]["effective"]
    estimates = {}
    for key, value in values.items():
        metric, comma, chosen = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        error = values.get(f"{metric}_stderr,{chosen}")
        name = metric if chosen == "none" else f"{metric},{chosen}"
        unit = "bits" if metric == "bits_per_byte" else "1"
        try:
            estimates[name] = Estimate(
                float(value), float(error) if isinstance(error, int | float) else None, count, unit
            )
        except ValueError as problem:
            raise UserError(f"evaluate.downstream_tasks: {task} gives no number for {name}: {problem}") from None
    return estimates
