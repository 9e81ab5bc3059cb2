"""What the numbers say, in sentences that the numbers choose."""

import math
from collections.abc import Sequence

from halfstep.metrics.estimate import FEWEST_MAUVE_TEXTS, Estimate
from halfstep.report.experiment import Experiment
from halfstep.report.records import denoisers_of, describe_model, format_estimate

NUM_CLEAR_ERRORS = 2.0
"""A difference counts when it is more than this many combined standard errors."""

CHANGES = {-1: "falls", 0: "does not change clearly", 1: "rises", None: "changes, without standard errors to judge by,"}


def clear_sign(before: Estimate | None, after: Estimate | None) -> int | None:
    """-1 if `after` is clearly less than `before`, 1 if more, 0 if neither; None without values or standard errors.

    Both are taken as independent. Samples drawn from the same random numbers are correlated, which makes the
    true error of the difference smaller: the verdict errs on the side of caution.
    """
    if before is None or after is None or before.standard_error is None or after.standard_error is None:
        return None
    difference = after.value - before.value
    if abs(difference) <= NUM_CLEAR_ERRORS * math.hypot(before.standard_error, after.standard_error):
        return 0
    return 1 if difference > 0 else -1


def warnings_of(experiments: Sequence[Experiment]) -> list[str]:
    """What makes a number mean less than it seems to."""
    rows = [row for experiment in experiments for record in experiment.records.values() for row in record.rows]
    fewest = min((row.estimate.count for row in rows if row.metric == "mauve"), default=FEWEST_MAUVE_TEXTS)
    if fewest >= FEWEST_MAUVE_TEXTS:
        return []
    return [
        f"MAUVE was computed from {fewest} samples, fewer than {FEWEST_MAUVE_TEXTS}: too few for the figure to mean"
        " much. Compare rounds by perplexity and entropy, or raise sample.num_prefixes."
    ]


def best_of(experiments: Sequence[Experiment], metric: str) -> str:
    """Which experiment's last student has the lowest value, and whether clearly; empty without two values."""
    lasts = [(experiment.label, denoisers_of(experiment.records)[-1]) for experiment in experiments]
    values = [(label, value) for label, record in lasts if (value := record.get(metric)) is not None]
    if len(values) < 2:
        return ""
    (best, lowest), (second, next_lowest), *_ = sorted(values, key=lambda pair: pair[1].value)
    what = metric.replace("_", " ")
    numbers = f"{best} ({format_estimate(lowest)}) and {second} ({format_estimate(next_lowest)})"
    match clear_sign(next_lowest, lowest):
        case -1:
            return (
                f"The last student of {best} is clearly lowest in {what}: {format_estimate(lowest)}, before {second}"
                f" with {format_estimate(next_lowest)}."
            )
        case None:
            return f"The lowest values of {what} are those of {numbers}, without standard errors to judge by."
    return f"No last student is clearly lowest in {what}: {numbers} are within two combined standard errors."


def of_cloze(experiment: Experiment) -> str:
    """What the rounds did to the cloze accuracy."""
    denoisers = denoisers_of(experiment.records)
    if len(denoisers) < 2:
        return ""
    before, after = (record.get("cloze_accuracy") for record in (denoisers[0], denoisers[-1]))
    if before is None or after is None:
        return ""
    return f"From the teacher to {describe_model(denoisers[-1])}, cloze accuracy {_change(before, after)}."


def of_training(experiment: Experiment) -> str:
    """What distillation did to the validation loss."""
    denoisers = denoisers_of(experiment.records)
    losses = [experiment.curves.get(record.model, {}).get("valid_loss") for record in denoisers]
    if len(denoisers) < 2 or not losses[0] or not losses[-1]:
        return ""
    before, after = losses[0][-1][1], losses[-1][-1][1]
    return (
        f"The validation loss ends at {before:.4g} nats per token for the teacher and at {after:.4g} for"
        f" {describe_model(denoisers[-1])}: {abs(after - before):.2g} {'more' if after > before else 'less'}."
        " Distillation does not train it."
    )


def _change(before: Estimate, after: Estimate) -> str:
    was, is_now = (f"{format_estimate(share, scale=100)} %" for share in (before, after))
    if before.value == after.value:
        return f"stays at {was}"
    return f"{CHANGES[clear_sign(before, after)]} (from {was} to {is_now})"
