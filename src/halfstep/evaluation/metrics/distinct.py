"""Distinct n-grams: samples that repeat each other have few."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from halfstep.evaluation.evaluated import Evaluated, rows_of
from halfstep.metrics.estimate import Estimate
from halfstep.metrics.record import Row

SIZES = (1, 2, 3, 4)


def measure(evaluated: Evaluated) -> Iterator[Row]:
    """distinct_1 to distinct_4, of the unconditional samples; counted, so that they have no error."""
    for samples, _ in evaluated.sample_sets:
        new = evaluated.new(samples)
        shares = {n: distinct_ngrams(new, n) for n in SIZES}
        counted = {n: Estimate(share, None, len(samples.token_ids), "1") for n, share in shares.items() if share}
        yield from rows_of(samples, **{f"distinct_{n}": share for n, share in counted.items()})


def distinct_ngrams(samples: Iterable[Sequence[int]], n: int) -> float | None:
    """Share of different n-grams among all n-grams of all samples.

    It falls with the number of samples, so it compares sets of one size only.

    Args:
        samples: token ids.
        n: tokens per n-gram, 1 or more.
    Returns:
        in (0, 1]; None where no sample has n tokens.
    Source: Li et al. 2016, arXiv:1510.03055 (distinct-n).
    """
    counts = Counter(tuple(ids[i : i + n]) for ids in samples for i in range(len(ids) - n + 1))
    return len(counts) / counts.total() if counts else None
