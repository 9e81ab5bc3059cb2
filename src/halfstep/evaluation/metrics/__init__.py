"""Metrics, one a file: `measure` of each returns rows. `evaluate.metrics` names those that run."""

METRICS = __name__
