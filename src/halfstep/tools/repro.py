"""`dvc repro`, with a line before each stage that runs: which of how many, and how long the rest takes."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable

from halfstep.run.console import console
from halfstep.run.stage_times import last_stage_time

MENTIONED = re.compile(r"(Running stage|Stage) '([^']+)'")
"""How DVC begins what it says of a stage, in the first form where it runs it."""

UNRECORDED = {"inputs", "report", "track"}
"""Stages of seconds, which keep no time."""


def repro() -> int:
    """Run `dvc repro` in the working directory, say all that it says, and return its exit code.

    SIGTERM is handed on to it, SIGINT reaches it from the terminal; either way it ends first.
    """
    left = _stages()
    total, started = len(left), time.monotonic()
    # Unbuffered: DVC's line of a stage is to come before the stage.
    command = [sys.executable, "-u", "-m", "dvc", "repro"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number))
        signal.signal(signal.SIGINT, lambda number, frame: None)
        assert process.stdout is not None
        for line in process.stdout:
            if (stage := MENTIONED.match(line)) and stage[2] in left:
                if stage[1] == "Running stage":
                    place = f"stage {total - len(left) + 1} of {total}, {stage[2]}"
                    console.print(f"{place}: {_minutes(time.monotonic() - started)} so far{_still(left)}", style="bold")
                left.remove(stage[2])
            print(line, end="", flush=True)
    return process.returncode


def _stages() -> list[str]:
    """The stages of dvc.yaml; none where DVC cannot read it, which `dvc repro` says itself."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repository:
            return [stage.addressing for stage in repository.index.stages]
    except DvcException:
        return []


def _still(stages: Iterable[str]) -> str:
    """How long these took when they last ran here, if all did."""
    times = [last_stage_time(stage) for stage in stages if stage.partition("@")[0] not in UNRECORDED]
    known = [each.seconds for each in times if each is not None]
    return f", {_minutes(sum(known))} to go if it goes as last time" if known and len(known) == len(times) else ""


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"
