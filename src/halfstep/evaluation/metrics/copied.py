"""The share of samples that repeat the training text."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from halfstep.data.tokens.packed import load_tokens, token_pieces
from halfstep.evaluation.evaluated import Evaluated, rows_of
from halfstep.metrics.estimate import Estimate, mean_estimate
from halfstep.metrics.record import Row

HASH_BASE = 0x9E3779B97F4A7C15
"""Odd, so that it has an inverse modulo 2^64."""


def measure(evaluated: Evaluated) -> Iterator[Row]:
    """copied, of the unconditional samples."""
    sets = [unconditional for unconditional, _ in evaluated.sample_sets]
    shares = copied_share(
        [evaluated.new(samples) for samples in sets],
        token_pieces(load_tokens(evaluated.tokens_path, "train")),
        evaluated.settings.longest_copy_tokens,
    )
    for samples, share in zip(sets, shares, strict=True):
        yield from rows_of(samples, copied=share)


def copied_share(
    sample_sets: Sequence[Sequence[Sequence[int]]], training_rows: Iterable[np.ndarray], num_tokens: int
) -> list[Estimate]:
    """Share of samples that copy a span of more than num_tokens tokens from the training text.

    A longest copied span exceeds num_tokens exactly if some num_tokens + 1 tokens in a row occur in the training
    text; windows are compared by a 64-bit hash, so two different ones pass for equal with chance 2^-64 a pair. Spans
    that cross the end of a training row are not seen.

    Args:
        sample_sets: token ids of the samples, set by set.
        training_rows: the training text in pieces, integers [num_rows, length]; read once, never held whole.
        num_tokens: longest span that does not count, 0 or more.
    Returns:
        one estimate per set; counts are in samples.
    Raises:
        ValueError: a set is empty.
    """
    window = num_tokens + 1
    hashes = [[window_hashes(np.asarray(ids)[None], window) for ids in samples] for samples in sample_sets]
    known = np.unique(np.concatenate([h for of_set in hashes for h in of_set] or [np.empty(0, np.uint64)]))
    # Only windows of the training text that share their first bits with one that is known are looked up.
    num_bits = len(known).bit_length() + 3
    shift = np.uint64(64 - num_bits)
    may_be_known = np.zeros(2**num_bits, dtype=bool)
    may_be_known[known >> shift] = True
    is_copied = np.zeros(len(known), dtype=bool)
    for rows in training_rows:
        of_rows = window_hashes(rows, window)
        of_rows = of_rows[may_be_known[of_rows >> shift]]
        places = np.searchsorted(known, of_rows)
        is_copied[places[known.take(places, mode="clip") == of_rows]] = True
    return [
        mean_estimate([bool(is_copied[np.searchsorted(known, h)].any()) for h in of_set], "1", name="copied samples")
        for of_set in hashes
    ]


def window_hashes(rows: np.ndarray, window: int) -> np.ndarray:
    """Polynomial hash modulo 2^64 of every window within a row, uint64 [num_windows].

    With B the base, that of x_i .. x_{i+w-1} is the sum of (x_{i+j} + 1) B^{w-1-j}: B^{i+w-1} times the difference of
    two sums of (x_k + 1) B^-k, each over a row's beginning.
    """
    length = rows.shape[1]
    if length < window:
        return np.empty(0, np.uint64)
    terms = (rows.astype(np.uint64) + np.uint64(1)) * _powers(pow(HASH_BASE, -1, 2**64), length)
    sums = np.zeros((len(rows), length + 1), dtype=np.uint64)
    np.cumsum(terms, axis=1, out=sums[:, 1:])
    hashes = (sums[:, window:] - sums[:, :-window]) * _powers(HASH_BASE, length)[window - 1 :]
    # The low bits of such a sum see only the low bits of the tokens.
    hashes ^= hashes >> np.uint64(32)
    return (hashes * np.uint64(HASH_BASE)).ravel()


def _powers(base: int, count: int) -> np.ndarray:
    """base^0 .. base^(count - 1) modulo 2^64."""
    factors = np.full(count, base, dtype=np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)
