"""From the metrics files to figures, one page, and the table of rounds."""

from halfstep.metrics.record import load_curves, load_latency, load_metrics, load_stage_times
from halfstep.report.comparison import last_student, write_comparison
from halfstep.report.experiments import checked_out, load_experiment
from halfstep.report.headline import compare
from halfstep.report.page import write_report
from halfstep.report.samples import load_samples, tokens_together
from halfstep.report.table import rounds_table, step_counts

__all__ = [
    "checked_out",
    "compare",
    "last_student",
    "load_curves",
    "load_experiment",
    "load_latency",
    "load_metrics",
    "load_samples",
    "load_stage_times",
    "rounds_table",
    "step_counts",
    "tokens_together",
    "write_comparison",
    "write_report",
]
