"""The models and sets of samples that a page shows, what they are called, and how numbers are written."""

import math
from collections.abc import Iterable, Mapping

from halfstep.metrics.estimate import Estimate
from halfstep.metrics.record import AUTOREGRESSIVE, Record, num_steps_of

ANCESTRAL = "ancestral"
MISSING = "–"
BOUNDED = ("validation_perplexity", "nll_per_token", "bits_per_byte")

Drawn = tuple[str, str]
"""Sampler and setting of a set of samples."""

Records = Mapping[str, Record]
"""Records of every model, by name, in the order of `params.models`."""


def denoisers_of(records: Records) -> list[Record]:
    """The teacher and its students, by round."""
    found = [record for record in records.values() if record.kind != AUTOREGRESSIVE]
    return sorted(found, key=lambda record: record.round_index or 0)


def autoregressive_of(records: Records) -> Record | None:
    """The autoregressive model; None if there is none."""
    return next((record for record in records.values() if record.kind == AUTOREGRESSIVE), None)


def steps_of(sampler: str, setting: str) -> int | None:
    """Denoising steps of the ancestral sampler; None of any other, whose evaluations say what it takes."""
    return num_steps_of(setting) if sampler == ANCESTRAL else None


def drawn_of(records: Iterable[Record]) -> list[Drawn]:
    """Sampler and setting of all sets of samples: ancestral ones by their steps, then others as they were measured."""
    found = dict.fromkeys(drawn for record in records for drawn in record.drawn())
    return sorted(found, key=lambda drawn: steps_of(*drawn) or math.inf)


def own_value(record: Record | None, metric: str) -> Estimate | None:
    """A value of the only samples that an autoregressive model has."""
    return record.get(metric, *drawn[0]) if record and (drawn := record.drawn()) else None


def describe_model(record: Record) -> str:
    """What a model is called on the page of its experiment."""
    if record.kind == AUTOREGRESSIVE:
        return AUTOREGRESSIVE
    return f"round {record.round_index}" if record.round_index else "teacher"


def describe_drawn(sampler: str, setting: str) -> str:
    """What a set of samples is called where space is short."""
    steps = steps_of(sampler, setting)
    return f"{sampler} {setting}".strip() if steps is None else f"{steps} step{'' if steps == 1 else 's'}"


def in_words(drawn: Drawn) -> str:
    """What a set of samples is called in a sentence."""
    name = describe_drawn(*drawn)
    return name if steps_of(*drawn) is None else name.replace(" ", " denoising ")


def is_bound(record: Record, metric: str) -> bool:
    """Whether a value is an upper bound: a denoiser's likelihood of text is one."""
    of_text = metric.startswith("likelihood_on.") or metric in BOUNDED
    return record.kind != AUTOREGRESSIVE and of_text


def format_value(record: Record, metric: str, drawn: tuple[str | None, str | None] = (None, None)) -> str:
    """A value of a record as the page shows it; accuracy in percent, and ≤ before an upper bound."""
    estimate = record.get(metric, *drawn)
    if estimate is None:
        return MISSING
    if metric == "cloze_accuracy":
        return f"{format_estimate(estimate, scale=100)} %"
    return ("≤ " if is_bound(record, metric) else "") + format_estimate(estimate)


def format_estimate(estimate: Estimate | None, *, scale: float = 1.0) -> str:
    """A value and its standard error, with two digits of the error; a dash if it was not measured."""
    if estimate is None:
        return MISSING
    value = estimate.value * scale
    if not estimate.standard_error:
        return format_number(value)
    error = estimate.standard_error * scale
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def format_number(value: float) -> str:
    """A number with four digits, without an exponent below a million."""
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e6 else f"{value:.4g}"
