"""What each sample scored, kept so that two models are compared sample by sample."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from halfstep.metrics.estimate import Estimate, perplexity_of, with_interval
from halfstep.run.errors import UserError
from halfstep.run.files import write_csv

COLUMNS = ("sampler", "setting", "temperature", "sample_index", "nll_nats", "num_tokens", "entropy_nats")


def write_samples_table(path: Path, samples: Iterable[tuple[Any, ...]]) -> None:
    """Write what each unconditional sample scored, one of COLUMNS each, to CSV."""
    write_csv(path, COLUMNS, samples)


def paired_perplexity_ratio(
    ours: Path, theirs: Path, sampler: str, setting: str, *, num_resamples: int, seed: int
) -> Estimate | None:
    """Our generative perplexity over theirs in one setting, with a bootstrap interval over pairs of samples.

    Samples of one index are drawn from the same random numbers by every model, so they are paired: what chance does
    to both cancels.

    Args:
        ours, theirs: tables of `write_samples_table`.
        sampler, setting: which samples.
        num_resamples, seed: of the bootstrap.
    Returns:
        the ratio; None where either has no such samples, or they are not the same ones.
    Raises:
        UserError: a table is missing or broken.
    """
    tables = [_read_samples_table(path, sampler, setting) for path in (ours, theirs)]
    (indices, *our_numbers), (their_indices, *their_numbers) = tables
    if not len(indices) or not np.array_equal(indices, their_indices):
        return None

    def ratio(*numbers: np.ndarray, axis: int = -1) -> np.ndarray:
        our_nlls, our_tokens, their_nlls, their_tokens = numbers
        return perplexity_of(our_nlls, our_tokens, axis) / perplexity_of(their_nlls, their_tokens, axis)

    numbers = [*our_numbers, *their_numbers]
    estimate = Estimate(float(ratio(*numbers)), None, len(indices), "1")
    return with_interval(estimate, ratio, numbers, num_resamples=num_resamples, seed=seed)


def _read_samples_table(path: Path, sampler: str, setting: str) -> list[np.ndarray]:
    """(sample indices, nats, tokens) of the samples drawn so, each float [num_samples]."""
    columns = ("sample_index", "nll_nats", "num_tokens")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if (row["sampler"], row["setting"]) == (sampler, setting)]
        return [np.array([float(row[name]) for row in rows]) for name in columns]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): the stage evaluate writes it, dvc repro") from None
