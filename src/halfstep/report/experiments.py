"""Experiments as DVC keeps them: read from any revision, without touching the workspace."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from halfstep.report.results import Latencies, Metrics, load_latency, load_metrics
from halfstep.report.samples import Sample
from halfstep.run.errors import UserError
from halfstep.settings import load_params

WORKSPACE = "workspace"
"""Names what lies in the working copy, as DVC itself calls it."""

COMPOSED = ("schedule", "models", "inputs")
"""Parameters that follow from others."""


@dataclass(frozen=True)
class Experiment:
    """One experiment and what it measured.

    Attributes:
        name: as the user gave it.
        params: its parameters by dotted name.
        metrics: of every model.
        latencies: None if they were not measured.
        samples: those to show; empty where they are not at hand.
    """

    name: str
    params: Mapping[str, Any]
    metrics: Metrics
    latencies: Latencies | None
    samples: Sequence[Sample] = ()


@contextmanager
def checked_out(name: str, root: Path) -> Iterator[Path]:
    """A folder with the parameters, metrics, samples and tokenizer of an experiment, for as long as the block runs.

    Args:
        name: of a DVC experiment, a Git revision, or `workspace`.
        root: of the project.
    Raises:
        UserError: there is no such experiment, or its parameters or metrics are neither in it nor in DVC's cache.
    """
    if name == WORKSPACE:
        yield root
        return
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.scm import RevError, SCMError

    try:
        files = DVCFileSystem(str(root), rev=name)
        with TemporaryDirectory(prefix="halfstep-compare-") as folder:
            for path, is_needed in (
                ("params.yaml", True), ("metrics", True), ("samples", False), ("data/tokenizer", False),
            ):  # fmt: skip
                target = Path(folder) / path
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    files.get(path, str(target), recursive=True)
                except (RevError, SCMError):
                    raise
                except (FileNotFoundError, DvcException) as error:
                    if is_needed:
                        raise UserError(
                            f"experiment {name} has no {path} at hand ({' '.join(str(error).split())}): fetch it with"
                            f" dvc fetch, or run it again with dvc exp run"
                        ) from None
            yield Path(folder)
    except (RevError, SCMError):
        raise UserError(
            f"there is no experiment or revision {name!r}: dvc exp show --all-commits lists them;"
            f" {WORKSPACE} names what lies here"
        ) from None


def load_experiment(name: str, folder: Path) -> Experiment:
    """Read an experiment, without its samples, from a folder laid out as the project.

    A latency comparison that is missing counts as not measured.

    Raises:
        UserError: parameters or metrics are missing or broken.
    """
    params = load_params(folder / "params.yaml")
    values = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    latency_path = folder / "metrics" / "latency.json"
    return Experiment(
        name,
        params=dict(_flat({key: value for key, value in values.items() if key not in COMPOSED})),
        metrics=load_metrics(folder / "metrics", params.models),
        latencies=load_latency(latency_path) if latency_path.is_file() else None,
    )


def differing_params(experiments: Sequence[Experiment]) -> dict[str, list[Any]]:
    """Parameters that are not the same in all experiments: values by dotted name, None where one lacks it."""
    names = dict.fromkeys(name for experiment in experiments for name in experiment.params)
    values = {name: [experiment.params.get(name) for experiment in experiments] for name in names}
    return {name: row for name, row in values.items() if any(value != row[0] for value in row)}


MAX_NAMED_PARAMS = 2


def labels_of(experiments: Sequence[Experiment]) -> list[str]:
    """What each experiment is called: by what differs where that is little and unique, otherwise by its name."""
    differing = differing_params(experiments)
    labels = [
        ", ".join(f"{name.rpartition('.')[2]}={row[i]}" for name, row in differing.items())
        for i in range(len(experiments))
    ]
    if 0 < len(differing) <= MAX_NAMED_PARAMS and len(set(labels)) == len(labels):
        return labels
    return [experiment.name for experiment in experiments]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
