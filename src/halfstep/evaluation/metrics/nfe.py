"""Network evaluations: what a sample costs."""

from collections.abc import Iterator

from halfstep.evaluation.evaluated import Evaluated, rows_of
from halfstep.metrics.estimate import mean_estimate
from halfstep.metrics.record import Row


def measure(evaluated: Evaluated) -> Iterator[Row]:
    """nfe, for each unconditional sample."""
    for samples, _ in evaluated.sample_sets:
        yield from rows_of(samples, nfe=mean_estimate(samples.nfe, "1", name="nfe"))
