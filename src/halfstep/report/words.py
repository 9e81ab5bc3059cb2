"""What the numbers say, in sentences that the numbers choose."""

import math
from collections.abc import Sequence

from halfstep.metrics.estimate import FEWEST_MAUVE_TEXTS, Estimate
from halfstep.report.experiment import Experiment
from halfstep.report.records import (
    Drawn,
    Pair,
    denoisers_of,
    describe_model,
    drawn_of,
    format_estimate,
    format_number,
    in_words,
    pair_of,
    steps_of,
)

NUM_CLEAR_ERRORS = 2.0
"""A difference counts when it is more than this many combined standard errors."""

CHANGES = {-1: "falls", 0: "does not change clearly", 1: "rises", None: "changes, without standard errors to judge by,"}

GAIN = (
    "A student predicts every position on its own, as its teacher does. A round therefore sharpens what the teacher's"
    " half steps agree on; it cannot make two positions agree on a choice that is still open when both are drawn in the"
    " same step. The gain is largest where the teacher's errors at few steps are tail noise: unlikely tokens, each"
    " drawn without regard to its neighbours."
)
"""What a round can and cannot do, whatever the numbers."""


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


def ratio(numerator: Estimate | None, denominator: Estimate | None) -> Estimate | None:
    """Their ratio, with the standard error of independent values to first order; None without both, or by zero."""
    if numerator is None or denominator is None or not denominator.value:
        return None
    value = numerator.value / denominator.value
    error = None
    if numerator.standard_error is not None and denominator.standard_error is not None and numerator.value:
        error = value * math.hypot(
            numerator.standard_error / numerator.value, denominator.standard_error / denominator.value
        )
    return Estimate(value, error, min(numerator.count, denominator.count), "1")


def headline(experiment: Experiment) -> list[str]:
    """The result in a few sentences, of which the first is the verdict: by paired samples if there are any."""
    pair = pair_of(experiment.records)
    if pair is None:
        if any(record.round_index for record in experiment.records.values()):
            return ["The last student and the first teacher have no number of denoising steps in common: no verdict."]
        return ["No round was distilled, so there is no student to compare: run with rounds of 1 or more."]
    before, after = pair.before("generative_perplexity"), pair.after("generative_perplexity")
    if before is None or after is None:
        return [f"The generative perplexity with {in_words(pair.few)} was not measured: no verdict."]
    subject = f"With {in_words(pair.few)} the student of {describe_model(pair.student)}"
    numbers = f"{format_estimate(before)} for the teacher, {format_estimate(after)} for the student."
    return [f"{subject} {_verdict(before, after, experiment.paired_ratio)}: {numbers}", _entropy_sentence(pair)]


def _verdict(before: Estimate, after: Estimate, paired: Estimate | None) -> str:
    better = "has a lower generative perplexity than the teacher"
    worse = "is worse than the teacher: its generative perplexity is"
    neither = "is not clearly better than the teacher"
    if paired is not None and paired.interval is not None:
        low, high = paired.interval
        times = f"{paired.value:.3f} times the teacher's (95 % interval {low:.3f} to {high:.3f}, {paired.count} pairs)"
        if high < 1:
            return f"{better}, {times}"
        return f"{worse} {times}" if low > 1 else f"{neither}: its generative perplexity is {times}"
    match clear_sign(before, after):
        case -1:
            return f"{better}, by a factor of {format_estimate(ratio(before, after))}"
        case 1:
            return f"{worse} {format_estimate(ratio(after, before))} times as high"
        case 0:
            return (
                f"{neither}: their generative perplexities differ by less than {NUM_CLEAR_ERRORS:g} combined standard"
                f" errors (ratio student to teacher {format_estimate(ratio(after, before))})"
            )
    return f"{neither}: a generative perplexity has no standard error here, so no difference can be told from chance"


def _entropy_sentence(pair: Pair) -> str:
    student, most = pair.after("entropy"), pair.at_most("entropy")
    if student is None or most is None:
        return "The entropy of its samples, or of the teacher's, was not measured: the perplexity means nothing alone."
    return (
        f"The entropy of its samples is {format_estimate(ratio(student, most), scale=100)} % of the teacher's at"
        f" {in_words(pair.most)}: {format_estimate(student)} against {format_estimate(most)} {student.unit}."
    )


def reading(experiment: Experiment) -> list[str]:
    """How the gain of the last student should be read, from where it lies and what the entropy did."""
    pair = pair_of(experiment.records)
    if pair is None:
        return []
    sentences = []
    at_few = ratio(pair.after("generative_perplexity"), pair.before("generative_perplexity"))
    many = [record.get("generative_perplexity", *pair.many) for record in (pair.student, pair.teacher)]
    if at_few and (at_many := ratio(*many)) and pair.many != pair.few:
        sentences.append(
            f"From teacher to last student the perplexity changes by a factor of {format_estimate(at_few)} at"
            f" {in_words(pair.few)} and of {format_estimate(at_many)} at {in_words(pair.many)}."
        )
    before, after = pair.before("entropy"), pair.after("entropy")
    entropy = clear_sign(before, after)
    if clear_sign(pair.before("generative_perplexity"), pair.after("generative_perplexity")) != -1 or entropy is None:
        return sentences
    if entropy != -1 or before is None or after is None:
        return [*sentences, "Entropy did not fall with perplexity: the gain was not paid for with less varied text."]
    most = in_words(pair.most)
    if clear_sign(pair.at_most("entropy"), after) == -1:
        meaning = (
            f"It is now below that of the teacher at {most}: the text varies less, and part of the lower perplexity is"
            " paid for with that."
        )
    else:
        meaning = f"It is not below that of the teacher at {most}, which lacks that variety too."
    change = f"from {format_number(before.value)} to {format_number(after.value)} {after.unit}"
    return [*sentences, f"Entropy fell together with perplexity, at {in_words(pair.few)} {change}. {meaning}"]


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


def best_of(experiments: Sequence[Experiment], metric: str, drawn: Drawn | tuple[None, None], title: str) -> str:
    """Which experiment's last student has the lowest value, and whether clearly; empty without two values."""
    lasts = [(experiment.label, denoisers_of(experiment.records)[-1]) for experiment in experiments]
    values = [(label, value) for label, record in lasts if (value := record.get(metric, *drawn)) is not None]
    if len(values) < 2:
        return ""
    (best, lowest), (second, next_lowest), *_ = sorted(values, key=lambda pair: pair[1].value)
    what = title if drawn[0] is None else f"{title} with {in_words(drawn)}"
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


def of_latency(experiment: Experiment) -> str:
    """How much sooner the last student is as good as the first teacher at its most steps."""
    pair, latency = pair_of(experiment.records), experiment.latency
    timed = {timing.drawn: timing.seconds for timing in (latency.denoiser if latency else ())}
    if pair is None:
        return ""
    taught, learnt = (
        [(steps, each) for each in drawn_of([record]) if (steps := steps_of(*each)) and each in timed]
        for record in (pair.teacher, pair.student)
    )
    if not taught or not learnt:
        return ""
    target_steps, target = taught[-1]
    goal = pair.teacher.get("generative_perplexity", *target)
    student = f"The student of {describe_model(pair.student)}"
    named_goal = f"the teacher's generative perplexity at {in_words(target)} ({format_estimate(goal)})"
    for steps, drawn in learnt:
        value = pair.student.get("generative_perplexity", *drawn)
        if steps < target_steps and clear_sign(goal, value) in (-1, 0):
            return (
                f"{student} is not clearly behind {named_goal} with {in_words(drawn)} ({format_estimate(value)}), which"
                f" take {timed[target] / timed[drawn]:.3g} times less time: {format_number(timed[drawn])} instead"
                f" of {format_number(timed[target])} seconds a sample."
            )
    return f"{student} does not reach {named_goal} in fewer of the steps that were timed."


def of_steps(experiment: Experiment) -> str:
    """What the rounds did to perplexity and entropy at the fewest steps."""
    pair = pair_of(experiment.records)
    if pair is None:
        return ""
    changes = [_change(pair.before(metric), pair.after(metric)) for metric in ("generative_perplexity", "entropy")]
    return (
        f"From the teacher to {describe_model(pair.student)}, at {in_words(pair.few)}, generative perplexity"
        f" {changes[0]} and entropy {changes[1]}."
    )


def of_cloze(experiment: Experiment) -> str:
    """What the rounds did to the cloze accuracy."""
    denoisers = denoisers_of(experiment.records)
    if len(denoisers) < 2:
        return ""
    before, after = (record.get("cloze_accuracy") for record in (denoisers[0], denoisers[-1]))
    if before is None or after is None:
        return ""
    return (
        f"From the teacher to {describe_model(denoisers[-1])}, cloze accuracy"
        f" {_change(before, after, scale=100, unit=' %')}."
    )


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


def _change(before: Estimate | None, after: Estimate | None, *, scale: float = 1.0, unit: str = "") -> str:
    if before is None or after is None:
        return "was not measured"
    if before.value == after.value:
        return f"stays at {format_estimate(before, scale=scale)}{unit}"
    numbers = f"from {format_estimate(before, scale=scale)}{unit} to {format_estimate(after, scale=scale)}{unit}"
    return f"{CHANGES[clear_sign(before, after)]} ({numbers})"
