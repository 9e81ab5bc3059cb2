"""How long each stage took, and on what: kept beside the pipeline, found again by what the stage made.

A time differs from run to run, so it is no output of its stage: those are the same for the same inputs, and DVC
restores them in place of a run. The records lie in `.halfstep/stages`, named after the content of the stage's output.
An output that DVC restored is found there if the run that made it was on this machine, and otherwise has no record.
"""

import os
import platform
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from halfstep.run import ranks
from halfstep.run.console import STARTED, console
from halfstep.run.faults import storage_fault
from halfstep.run.files import file_hash, project_root, read_json, write_json

NO_RECORD = (OSError, TypeError, ValueError)
"""What reading a record raises where there is none, or a broken one."""


@dataclass(frozen=True)
class StageTime:
    """One run of a stage.

    Attributes:
        seconds: from the start of the process that finished it; what an interrupted process did before is not in it.
        hardware: the device it computed on.
        versions: of Python and torch.
    """

    seconds: float
    hardware: str
    versions: str


def record_stage(stage: str, output: Path, device: object = "cpu") -> None:
    """Keep the time since this process started for the output that the stage has just written.

    Where the disk refuses that is said, and no more: the stage's results are there, and worth more than its time.

    Of several processes the main one does.

    Args:
        stage: as DVC names it, such as `distill@2`.
        output: a file whose content identifies this run.
    """
    if not ranks.is_main():
        return
    seconds = time.monotonic() - STARTED
    versions = f"Python {platform.python_version()}, torch {version('torch')}"
    try:
        write_json(_path(stage, output), asdict(StageTime(round(seconds, 1), _hardware(str(device)), versions)))
    except OSError as error:
        if storage_fault(error) is None:
            raise
        console.print(f"{stage}: its time was not recorded ({error})", style="yellow")


def find_stage_time(stage: str, output: Path) -> StageTime | None:
    """The record of the run that made this output; None if there is none, as when DVC fetched it from elsewhere."""
    with suppress(*NO_RECORD):
        return StageTime(**read_json(_path(stage, output)))
    return None


def last_stage_time(stage: str) -> StageTime | None:
    """The latest record of a stage on this machine, whatever the stage made; None if there is none."""
    records = (project_root() / ".halfstep" / "stages").glob(f"{stage}-{'[0-9a-f]' * 16}.json")
    with suppress(*NO_RECORD):
        return StageTime(**read_json(max(records, key=lambda path: path.stat().st_mtime)))
    return None


def _path(stage: str, output: Path) -> Path:
    return project_root() / ".halfstep" / "stages" / f"{stage}-{file_hash(output)[:16]}.json"


def _hardware(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {os.cpu_count()} cores" + (f", {device}" if device != "cpu" else "")


def _processor() -> str:
    """The processor's name; its architecture where the system has no name for it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
