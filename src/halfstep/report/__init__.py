"""From the metrics files to figures, one page, and the table of rounds."""

from halfstep.report.page import write_report
from halfstep.report.results import load_curves, load_latency, load_metrics, load_samples
from halfstep.report.table import rounds_table, step_counts

__all__ = [
    "load_curves",
    "load_latency",
    "load_metrics",
    "load_samples",
    "rounds_table",
    "step_counts",
    "write_report",
]
