"""What samples measure by number of denoising steps, as a line for a person and a table for plots."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from halfstep.run.files import atomic_path

STEPS_COLUMNS = ("generative_perplexity", "entropy", "mauve")


def describe_entry(model_name: str, entry: Mapping[str, Any]) -> str:
    """One line on one number of denoising steps.

    Args:
        model_name: the model's.
        entry: of `samples` in a metrics file: num_steps, nfe and each of STEPS_COLUMNS.
    """

    def show(key: str) -> str:
        if entry[key] is None:
            return f"{key} -"
        error = entry[key]["standard_error"]
        return f"{key} {entry[key]['value']:.4g}" + (f" ± {error:.2g}" if error is not None else "")

    return f"model {model_name}, {entry['num_steps']} steps: " + ", ".join(map(show, ("nfe", *STEPS_COLUMNS)))


def write_steps(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Write one row per entry to CSV, each of STEPS_COLUMNS with its standard error; what is null is left empty."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        errors = [[name, f"{name}_standard_error"] for name in STEPS_COLUMNS]
        writer.writerow(["num_steps", "nfe", *(column for pair in errors for column in pair)])
        for entry in entries:
            row = [entry["num_steps"], entry["nfe"]["value"]]
            for name in STEPS_COLUMNS:
                estimate = entry[name] or {}
                row += [estimate.get("value"), estimate.get("standard_error")]
            writer.writerow(row)
