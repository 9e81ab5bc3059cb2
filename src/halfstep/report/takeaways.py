"""The one sentence under each figure, chosen and filled by the numbers."""

from collections.abc import Mapping, Sequence

from halfstep.metrics.estimate import FEWEST_MAUVE_TEXTS, Estimate
from halfstep.report.headline import clear_sign, compare, ratio
from halfstep.report.results import Curve, Latencies, Metrics, ModelMetrics, SampleMetrics
from halfstep.report.table import denoisers_of, describe_model, format_estimate, format_number

CHANGES = {-1: "falls", 0: "does not change clearly", 1: "rises", None: "changes, without standard errors to judge by,"}


def of_latency(metrics: Metrics, latencies: Latencies | None) -> str:
    """How much sooner the last student is as good as the first teacher at its most steps."""
    denoisers = denoisers_of(metrics)
    timed = {latency.num_steps: latency for latency in (latencies.denoiser if latencies else ())}
    runs = [[sampled for sampled in model.samples if sampled.num_steps in timed] for model in denoisers]
    if len(denoisers) < 2 or not runs[0] or not runs[-1]:
        return ""
    target = runs[0][-1]
    student = describe_model(denoisers[-1])
    reached = next(
        (
            sampled
            for sampled in runs[-1]
            if sampled.num_steps < target.num_steps
            and clear_sign(target.generative_perplexity, sampled.generative_perplexity) in (-1, 0)
        ),
        None,
    )
    goal = f"the teacher's generative perplexity at {_steps(target.num_steps)} ({_value(target.generative_perplexity)})"
    if reached is None:
        return f"The student of {student} does not reach {goal} in fewer of the steps that were timed."
    factor = timed[target.num_steps].seconds / timed[reached.num_steps].seconds
    seconds = (format_number(timed[sampled.num_steps].seconds) for sampled in (reached, target))
    return (
        f"The student of {student} is not clearly behind {goal} with {_steps(reached.num_steps)}"
        f" ({_value(reached.generative_perplexity)}), which take {factor:.3g} times less time:"
        f" {' instead of '.join(seconds)} seconds a sample."
    )


def of_steps(metrics: Metrics) -> str:
    """What the rounds did to perplexity and entropy at the fewest steps."""
    comparison = compare(metrics)
    if comparison is None:
        return ""
    before, after = comparison.teacher, comparison.student
    return (
        f"From the teacher to round {comparison.round_index}, at {_steps(after.num_steps)}, generative perplexity"
        f" {_change(before.generative_perplexity, after.generative_perplexity)} and entropy"
        f" {_change(before.entropy, after.entropy)}."
    )


def of_cloze(metrics: Metrics) -> str:
    """What the rounds did to the cloze accuracy."""
    denoisers = denoisers_of(metrics)
    if len(denoisers) < 2 or denoisers[0].cloze_accuracy is None or denoisers[-1].cloze_accuracy is None:
        return ""
    first, last = denoisers[0].cloze_accuracy, denoisers[-1].cloze_accuracy
    return (
        f"From the teacher to {describe_model(denoisers[-1])}, cloze accuracy"
        f" {_change(first, last, scale=100, unit=' %')}"
        f" and cloze perplexity {_change(denoisers[0].cloze_perplexity, denoisers[-1].cloze_perplexity)}."
    )


def of_mauve(metrics: Metrics) -> str:
    """What the rounds did to MAUVE at the fewest steps, and whether that means anything."""
    comparison = compare(metrics)
    if comparison is None or comparison.teacher.mauve is None or comparison.student.mauve is None:
        return ""
    before, after = comparison.teacher.mauve, comparison.student.mauve
    most = comparison.teacher_at_most
    against = "" if most.mauve is None else f", against {_value(most.mauve)} of the teacher at {_steps(most.num_steps)}"
    # The deviation is over clustering seeds only, so it cannot tell a difference from the luck of the samples.
    few = f" With {after.count} samples this means little." if after.count < FEWEST_MAUVE_TEXTS else ""
    return (
        f"At {_steps(comparison.student.num_steps)} MAUVE goes from {_value(before)} of the teacher to {_value(after)}"
        f" of round {comparison.round_index}{against}.{few}"
    )


def of_time_loss(metrics: Metrics) -> str:
    """Where the last student's loss differs most from the teacher's."""
    denoisers = denoisers_of(metrics)
    if len(denoisers) < 2:
        return ""
    taught = {(bucket.t_low, bucket.t_high): bucket.nats_per_token for bucket in denoisers[0].loss_by_time}
    differences = [
        (bucket.nats_per_token.value - before.value, bucket.t_low, bucket.t_high, before, bucket.nats_per_token)
        for bucket in denoisers[-1].loss_by_time
        if bucket.nats_per_token is not None and (before := taught.get((bucket.t_low, bucket.t_high))) is not None
    ]
    if not differences:
        return ""
    _, low, high, before, after = max(differences, key=lambda difference: abs(difference[0]))
    return (
        f"From the teacher to {describe_model(denoisers[-1])} the validation loss differs most between the times"
        f" {low:g} and {high:g}, where it {_change(before, after, unit=' nats per token')}."
    )


def of_together(together: Mapping[int, Estimate]) -> str:
    """How many tokens are drawn without regard to one another, at the fewest and the most steps."""
    if not together:
        return ""
    fewest, most = min(together), max(together)
    text = f"With {_steps(fewest)} a token is drawn together with {together[fewest].value - 1:.3g} others on average"
    return text + (f", with {_steps(most)} with {together[most].value - 1:.3g}." if most > fewest else ".")


def of_training(metrics: Metrics, curves: Mapping[str, Curve]) -> str:
    """What distillation did to the validation loss."""
    ends = [
        (describe_model(model), points[-1][1])
        for model in denoisers_of(metrics)
        if (points := curves.get(model.model, {}).get("valid_loss"))
    ]
    if len(ends) < 2:
        return "" if not ends else f"The {ends[0][0]} ends at a validation loss of {ends[0][1]:.4g} nats per token."
    (first, before), (last, after) = ends[0], ends[-1]
    return (
        f"The validation loss ends at {before:.4g} nats per token for {_the(first)} and at {after:.4g} for {last}:"
        f" {abs(after - before):.2g} {'more' if after > before else 'less'}. Distillation does not train it."
    )


def of_experiments(
    runs: Sequence[tuple[str, Metrics]], value_of: str, at: int | None, title: str, *, lower_is_better: bool
) -> str:
    """Which experiment's last student is best, and whether clearly.

    Args:
        runs: name and metrics of each experiment.
        value_of: attribute of the samples' metrics, or of the model's where `at` is None.
        at: number of denoising steps, or None.
        title: what is compared, as a noun.
        lower_is_better: whether the best value is the smallest.
    """
    values = [(name, value) for name, metrics in runs if (value := _value_of_last(metrics, value_of, at)) is not None]
    if len(values) < 2:
        return ""
    (best, first), (second, next_best), *_ = sorted(
        values, key=lambda value: value[1].value if lower_is_better else -value[1].value
    )
    extreme = "lowest" if lower_is_better else "highest"
    what = title if at is None else f"{title} with {_steps(at)}"
    numbers = f"{best} ({_value(first)}) and {second} ({_value(next_best)})"
    if value_of == "mauve":
        # Its deviation is over clustering seeds alone and cannot tell a difference from the luck of the samples.
        few = f" With {first.count} samples this means little." if first.count < FEWEST_MAUVE_TEXTS else ""
        return f"The highest values of {what} are those of {numbers}.{few}"
    match clear_sign(next_best, first):
        case None:
            return f"The {extreme} values of {what} are those of {numbers}, without standard errors to judge by."
        case 0:
            return (
                f"No last student is clearly {extreme} in {what}: {numbers} are less than two combined standard errors"
                " apart."
            )
    return f"The last student of {best} is clearly {extreme} in {what}: {_value(first)}, before {second} with" + (
        f" {_value(next_best)}."
    )


def _value_of_last(metrics: Metrics, value_of: str, at: int | None) -> Estimate | None:
    source: ModelMetrics | SampleMetrics | None = denoisers_of(metrics)[-1]
    if isinstance(source, ModelMetrics) and at is not None:
        source = source.at(at)
    return getattr(source, value_of, None)


def _change(before: Estimate | None, after: Estimate | None, *, scale: float = 1.0, unit: str = "") -> str:
    if before is None or after is None:
        return "was not measured"
    change = CHANGES[clear_sign(before, after)]
    if before.value == after.value:
        return f"stays at {format_estimate(before, scale=scale)}{unit}"
    factor = ratio(after, before)
    numbers = f"from {format_estimate(before, scale=scale)}{unit} to {format_estimate(after, scale=scale)}{unit}"
    share = "" if factor is None or unit else f", {format_number(100 * factor.value)} % of it"
    return f"{change} ({numbers}{share})"


def _value(estimate: Estimate | None) -> str:
    return format_estimate(estimate)


def _the(name: str) -> str:
    return f"the {name}" if name == "teacher" else name


def _steps(count: int) -> str:
    return f"{count} denoising step{'' if count == 1 else 's'}"
