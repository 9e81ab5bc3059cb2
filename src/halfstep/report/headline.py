"""What the numbers say, in words that the numbers choose."""

import math
from dataclasses import dataclass

from halfstep.metrics.estimate import FEWEST_MAUVE_TEXTS, Estimate
from halfstep.report.results import Metrics, SampleMetrics
from halfstep.report.table import denoisers_of, format_estimate, format_number

NUM_CLEAR_ERRORS = 2.0
"""A difference counts when it is more than this many combined standard errors."""


@dataclass(frozen=True)
class Comparison:
    """The last student against the first teacher.

    Attributes:
        round_index: of the student.
        teacher: the teacher's samples at the fewest steps that both have.
        student: the student's, with the same number of steps.
        teacher_at_most: the teacher's samples at its most steps.
    """

    round_index: int
    teacher: SampleMetrics
    student: SampleMetrics
    teacher_at_most: SampleMetrics


def compare(metrics: Metrics) -> Comparison | None:
    """The comparison of the headline; None without a student, or without a number of steps that both have."""
    denoisers = denoisers_of(metrics)
    if not denoisers or not denoisers[-1].round_index:
        return None
    teacher, student = denoisers[0], denoisers[-1]
    for sampled in student.samples:
        taught = teacher.at(sampled.num_steps)
        if taught is not None:
            return Comparison(student.round_index or 0, taught, sampled, teacher.samples[-1])
    return None


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


def headline(metrics: Metrics, paired_ratio: Estimate | None = None) -> list[str]:
    """The result in a few sentences; the first one is the verdict.

    Args:
        metrics: of every model.
        paired_ratio: generative perplexity of the student over the teacher's, of what `compare` compares, with the
            interval of paired samples: it then decides. None decides by combined standard errors.
    """
    comparison = compare(metrics)
    if comparison is None:
        if any(model.round_index for model in denoisers_of(metrics)):
            return ["The last student and the first teacher have no number of denoising steps in common: no verdict."]
        return ["No round was distilled, so there is no student to compare: run with rounds of 1 or more."]
    student, teacher = comparison.student, comparison.teacher
    before, after = teacher.generative_perplexity, student.generative_perplexity
    if before is None or after is None:
        return [f"The generative perplexity with {_steps(student.num_steps)} was not measured: no verdict."]
    numbers = f"{format_estimate(before)} for the teacher, {format_estimate(after)} for the student"
    subject = f"With {_steps(student.num_steps)} the student of round {comparison.round_index}"
    if paired_ratio is not None and paired_ratio.interval is not None:
        return [_paired_verdict(subject, paired_ratio, paired_ratio.interval, numbers), _entropy_sentence(comparison)]
    sign = clear_sign(before, after)
    if sign == -1:
        factor = format_estimate(ratio(before, after))
        verdict = f"{subject} has a lower generative perplexity than the teacher, by a factor of {factor}: {numbers}."
    elif sign == 1:
        factor = format_estimate(ratio(after, before))
        verdict = (
            f"{subject} is worse than the teacher: its generative perplexity is {factor} times as high, {numbers}."
        )
    elif sign == 0:
        verdict = (
            f"{subject} is not clearly better than the teacher: their generative perplexities differ by"
            f" less than {NUM_CLEAR_ERRORS:g} combined standard errors (ratio student to teacher"
            f" {format_estimate(ratio(after, before))}): {numbers}."
        )
    else:
        verdict = (
            f"{subject} is not clearly better than the teacher: a generative perplexity comes without a"
            f" standard error here, so no difference can be told from chance: {numbers}."
        )
    return [verdict, _entropy_sentence(comparison)]


def _paired_verdict(subject: str, ratio: Estimate, interval: tuple[float, float], numbers: str) -> str:
    low, high = interval
    times = f"{ratio.value:.3f} times the teacher's (95 % interval {low:.3f} to {high:.3f}, {ratio.count} pairs)"
    if high < 1:
        return f"{subject} has a lower generative perplexity than the teacher, {times}: {numbers}."
    if low > 1:
        return f"{subject} is worse than the teacher: its generative perplexity is {times}, {numbers}."
    return f"{subject} is not clearly better than the teacher: its generative perplexity is {times}, {numbers}."


def _entropy_sentence(comparison: Comparison) -> str:
    student, most = comparison.student.entropy, comparison.teacher_at_most.entropy
    if student is None or most is None:
        return "The entropy of its samples, or of the teacher's, was not measured: the perplexity means nothing alone."
    return (
        f"The entropy of its samples is {format_estimate(ratio(student, most), scale=100)} % of the"
        f" teacher's at {_steps(comparison.teacher_at_most.num_steps)}: {format_estimate(student)} against"
        f" {format_estimate(most)} {student.unit}."
    )


GAIN = (
    "A student predicts every position on its own, as its teacher does. A round therefore sharpens what"
    " the teacher's half steps agree on; it cannot make two positions agree on a choice that is still"
    " open when both are drawn in the same step. The gain is largest where the teacher's errors at few"
    " steps are tail noise: unlikely tokens, each drawn without regard to its neighbours."
)
"""What a round can and cannot do, whatever the numbers."""


def reading(metrics: Metrics) -> list[str]:
    """How the gain of the last student should be read, from where it lies and what the entropy did."""
    comparison = compare(metrics)
    if comparison is None:
        return []
    sentences = []
    few, taught_few = comparison.student, comparison.teacher
    denoisers = denoisers_of(metrics)
    many = denoisers[-1].samples[-1]
    taught_many = denoisers[0].at(many.num_steps)
    measured = (few, taught_few, many, taught_many)
    is_measured = all(sampled is not None and sampled.generative_perplexity is not None for sampled in measured)
    if is_measured and taught_many is not None and many.num_steps > few.num_steps:
        sentences.append(
            "From teacher to last student the perplexity changes by a factor of"
            f" {format_estimate(ratio(few.generative_perplexity, taught_few.generative_perplexity))} at"
            f" {_steps(few.num_steps)} and of"
            f" {format_estimate(ratio(many.generative_perplexity, taught_many.generative_perplexity))} at"
            f" {_steps(many.num_steps)}."
        )
    perplexity = clear_sign(taught_few.generative_perplexity, few.generative_perplexity)
    entropy = clear_sign(taught_few.entropy, few.entropy)
    below_reference = clear_sign(comparison.teacher_at_most.entropy, few.entropy)
    if perplexity == -1 and entropy == -1 and taught_few.entropy is not None and few.entropy is not None:
        before, after = format_number(taught_few.entropy.value), format_number(few.entropy.value)
        change = f"from {before} to {after} {few.entropy.unit}"
        most = _steps(comparison.teacher_at_most.num_steps)
        if below_reference == -1:
            meaning = (
                f"It is now below that of the teacher at {most}: the text varies less, and part of the lower"
                " perplexity is paid for with that."
            )
        else:
            meaning = f"It is not below that of the teacher at {most}, which lacks that variety too."
        sentences.append(f"Entropy fell together with perplexity, at {_steps(few.num_steps)} {change}. {meaning}")
    elif perplexity == -1 and entropy is not None:
        sentences.append("Entropy did not fall with perplexity: the gain was not paid for with less varied text.")
    return sentences


def warnings_of(metrics: Metrics) -> list[str]:
    """What makes a number of this report mean less than it seems to."""
    counts = [
        sampled.mauve.count for model in metrics.values() for sampled in model.samples if sampled.mauve is not None
    ]
    if counts and min(counts) < FEWEST_MAUVE_TEXTS:
        return [
            f"MAUVE was computed from {min(counts)} samples, fewer than {FEWEST_MAUVE_TEXTS}: too few for"
            " the figure to mean much. Compare rounds by perplexity and entropy, or raise"
            " sample.num_prefixes."
        ]
    return []


def _steps(count: int) -> str:
    return f"{count} denoising step{'' if count == 1 else 's'}"
