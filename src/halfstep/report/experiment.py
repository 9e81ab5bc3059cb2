"""An experiment: a folder laid out as the project, of the workspace or of any revision that DVC keeps."""

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from halfstep.metrics.curve import Curve, read_curve
from halfstep.metrics.record import read_records
from halfstep.report.frontier import Frontier, read_frontier
from halfstep.report.records import MISSING, Drawn, Records
from halfstep.report.solved import Solved, read_solved
from halfstep.run.errors import UserError
from halfstep.run.files import read_json
from halfstep.run.stage_times import StageTime, find_stage_time
from halfstep.settings import Reported, load_reported
from halfstep.settings.base import flat
from halfstep.settings.graph import depth_of, rivals_of

WORKSPACE = "workspace"
"""Names what lies in the working copy, as DVC itself calls it."""

COMPOSED = ("schedule", "models", "frontiers", "inputs")
"""Parameters that follow from others."""


@dataclass(frozen=True)
class Timing:
    """Wall-clock time of one sample, drawn in a batch; `drawn` is None for the autoregressive model."""

    drawn: Drawn | None
    nfe: float
    seconds: float
    seconds_min: float
    seconds_max: float
    tokens_per_second: float


@dataclass(frozen=True)
class Latency:
    """The contents of `metrics/latency.json`: what was timed on what, in words, and the times."""

    conditions: str
    denoiser: tuple[Timing, ...]
    autoregressive: Timing


@dataclass(frozen=True)
class Experiment:
    """What one run of the pipeline measured; what is not at hand in its folder counts as not measured.

    Attributes:
        name: as the user gave it.
        folder: laid out as the project.
        params: of its parameters what is needed here.
        records: of every model.
        label: what it is called beside others; empty where there are none.
    """

    name: str
    folder: Path
    params: Reported
    records: Records
    label: str = ""

    @cached_property
    def latency(self) -> Latency | None:
        """How long samples take."""
        path = self.folder / "metrics" / "latency.json"
        return read_latency(path) if path.is_file() else None

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """Training curves by model; one that was not trained has no points."""
        folder = self.folder / "curves"
        return {model: read_curve(folder / f"{model}.csv") for model in self.records} if folder.is_dir() else {}

    @cached_property
    def frontier(self) -> Frontier | None:
        """What was drawn at several temperatures; None without a text whose entropy counts, or if nothing was."""
        return read_frontier(self.folder, self.params.frontiers, self.records.values(), self.params)

    @cached_property
    def solved(self) -> Solved | None:
        """How many puzzles were solved; None where the corpus is text."""
        return read_solved(self.folder / "frontier", self.params.frontiers) if self.params.num_givens else None

    @cached_property
    def stage_times(self) -> dict[str, StageTime | None]:
        """How long each stage took that made these files; None where nothing is known."""
        trained = {"ar": "baseline", "0": "pretrain"}
        outputs = {"prepare": "data/tokens/manifest.json"}
        outputs |= {trained.get(model, f"distill@{model}"): f"curves/{model}.csv" for model in self.records}
        outputs |= {f"rival@{depth_of(rival)}": f"curves/{rival}.csv" for rival in rivals_of(self.params.rivals)}
        outputs |= {f"sample@{model}": f"samples/{model}/unconditional.parquet" for model in self.records}
        outputs |= {f"evaluate@{model}": f"metrics/{model}.json" for model in self.records}
        outputs |= {f"frontier@{model}": f"frontier/{model}/rows.csv" for model in self.params.frontiers}
        outputs["latency"] = "metrics/latency.json"
        return {stage: find_stage_time(stage, self.folder / output) for stage, output in outputs.items()}

    @cached_property
    def params_text(self) -> str:
        """All parameters, as YAML."""
        return (self.folder / "params.yaml").read_text(encoding="utf-8")

    @cached_property
    def flat_params(self) -> dict[str, Any]:
        """Parameters by dotted name, without those that follow from others."""
        values = yaml.safe_load(self.params_text)
        return dict(flat({key: value for key, value in values.items() if key not in COMPOSED}))


def load_experiment(name: str, folder: Path) -> Experiment:
    """Read parameters and records; the rest is read where it is used.

    Raises:
        UserError: either is missing or broken.
    """
    params = load_reported(folder / "params.yaml")
    return Experiment(name, folder, params, read_records(folder / "metrics", params.models))


def read_latency(path: Path) -> Latency:
    """Read the times, and divide them by the batch, which a repeat draws whole.

    Raises:
        UserError: it is not what `latency` writes.
    """
    try:
        values = read_json(path)
        batch_size, sizes = values["batch_size"], values["num_parameters"]

        def timing(entry: Mapping[str, Any]) -> Timing:
            numbers = (entry["seconds"]["value"], entry["seconds_min"], entry["seconds_max"])
            seconds, low, high = (number / batch_size for number in numbers)
            drawn = (entry["sampler"], entry["setting"]) if "sampler" in entry else None
            return Timing(drawn, entry["nfe"], seconds, low, high, entry["tokens_per_second"])

        threads = f", {values['num_threads']} threads" if values["device"] == "cpu" else ""
        conditions = (
            f"{values['device']}{threads}, {values['dtype']}, torch {values['torch']}; batches of {batch_size} samples"
            f" of {values['length']} tokens, the time divided by the batch; {sizes['denoiser']:,} parameters in the"
            f" denoiser, {sizes['autoregressive']:,} in the autoregressive model"
        )
        return Latency(conditions, tuple(map(timing, values["denoiser"])), timing(values["autoregressive"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not what latency writes ({error!r}): make it again with dvc repro") from None


NEEDED = {
    "params.yaml": True,
    "metrics": True,
    "frontier": False,
    "curves": False,
    "samples": False,
    "data/tokenizer": False,
}


@contextmanager
def checked_out(name: str, root: Path) -> Iterator[Path]:
    """A folder with what a page needs of an experiment, for as long as the block runs.

    Args:
        name: of a DVC experiment, a Git revision, or `workspace`.
        root: of the project, which is left alone.
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
            for path, is_needed in NEEDED.items():
                target = Path(folder) / path
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    files.get(path, str(target), recursive=True)
                except (RevError, SCMError):
                    raise
                except (FileNotFoundError, DvcException) as error:
                    shutil.rmtree(target, ignore_errors=True)
                    if is_needed:
                        raise UserError(
                            f"experiment {name} has no {path} at hand ({' '.join(str(error).split())}): fetch it with"
                            f" dvc fetch, or run it again with dvc exp run"
                        ) from None
            yield Path(folder)
    except RevError:
        raise UserError(
            f"there is no experiment or revision {name!r}: dvc exp show --all-commits lists them;"
            f" {WORKSPACE} names what lies here"
        ) from None
    except SCMError:
        raise UserError(f"{root} has no experiments: run in the project's root") from None


def differing_params(experiments: Sequence[Experiment]) -> dict[str, list[str]]:
    """Parameters that are not the same in all experiments: values as params.yaml has them, by dotted name."""
    names = dict.fromkeys(name for experiment in experiments for name in experiment.flat_params)
    values = {
        name: [_as_written(experiment.flat_params.get(name, ...)) for experiment in experiments] for name in names
    }
    return {name: row for name, row in values.items() if len(set(row)) > 1}


def _as_written(value: Any) -> str:
    if value is ...:
        return MISSING
    if isinstance(value, str):
        return value
    if isinstance(value, list | dict):
        return yaml.safe_dump(value, default_flow_style=True, width=math.inf, sort_keys=False).strip()
    return json.dumps(value)


MAX_NAMED_PARAMS = 2
NAMED_BY = ("distill.objective", "seed")
"""Where much differs: an objective brings settings of its own."""


def labels_of(experiments: Sequence[Experiment]) -> list[str]:
    """What each is called beside the others: by what differs where that is little and unique, else by its objective and
    seed where they are, else by its name."""
    if len(experiments) == 1:
        return [""]
    differing = differing_params(experiments)
    named_by = [name for name in NAMED_BY if name in differing and NAMED_BY[0] in differing]
    # What only some have, settings of their objective, is said by that.
    shared = [name for name, row in differing.items() if MISSING not in row]
    for names in (shared, named_by):
        labels = [
            ", ".join(f"{name.rpartition('.')[2]}={differing[name][i]}" for name in names)
            for i in range(len(experiments))
        ]
        if 0 < len(names) <= MAX_NAMED_PARAMS and len(set(labels)) == len(labels):
            return labels
    return [experiment.name for experiment in experiments]
