"""What this machine reaches of each kind of work, measured by the stages' own code in a process of its own."""

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass

from halfstep.run.console import progress
from halfstep.run.errors import UserError
from halfstep.settings import Params
from halfstep.tools.planning.works import Work
from halfstep.tools.trial import EXIT_TOO_MUCH

START, METRICS, TEXT = "start", "metrics", "texts"
"""Under which the fields of `Here` that are seconds are measured, before all rates."""


@dataclass(frozen=True)
class Here:
    """What was measured.

    Attributes:
        flops_per_second: of the plan's own count, by kind of work.
        start_seconds: until a stage's process has imported what it computes by, and opened a model.
        metrics_seconds: until the libraries are imported by which texts are measured.
        seconds_per_text: of what is measured of a text beside the scorer's reading, such as MAUVE.
    """

    flops_per_second: dict[str, float]
    start_seconds: float
    metrics_seconds: float
    seconds_per_text: float

    def seconds(self, work: Work) -> float:
        """For one model."""
        computing = sum(flops / self.flops_per_second[kind] for kind, flops in work.parts.items())
        measuring = self.metrics_seconds + work.num_texts * self.seconds_per_text if work.num_texts else 0
        return self.start_seconds + measuring + computing


def measure_here(params: Params, works: Iterable[Work], vocab_size: int) -> Here:
    """Measure every kind of work that a plan has, with the run's own batches, threads and precision.

    Raises:
        UserError: the run is of several processes, or a batch needs more memory than there is.
        RuntimeError: the process failed for another reason.
    """
    if params.launch.num_processes > 1:
        raise UserError(
            f"--here measures one process, but launch asks for {params.launch.num_processes}: leave it out, or"
            " -S launch.processes_per_node=1"
        )
    kinds = list(dict.fromkeys(kind for work in works for kind in work.parts))
    names, found = [START, METRICS, TEXT, *kinds], dict[str, float]()
    with tempfile.TemporaryFile("w+") as errors, progress("measuring", len(names), unit="kind") as show:
        with subprocess.Popen(
            [sys.executable, "-m", "halfstep.tools.speed", json.dumps({"vocab_size": vocab_size, "kinds": kinds})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            with process.stdin as stdin:
                stdin.write(params.model_dump_json())
            for name, number in map(json.loads, process.stdout):
                found[name] = number
                show(len(found), next((name for name in names if name not in found), ""))
        errors.seek(0)
        said = errors.read().strip().splitlines()
    if process.returncode:
        measured = next(name for name in names if name not in found)
        if process.returncode in (EXIT_TOO_MUCH, -signal.SIGKILL):
            raise UserError(f"--here: {measured} needs more memory than there is: halfstep fit-batch finds what fits")
        raise RuntimeError(f"measuring {measured}: {(said or ['no message'])[-1]}")
    return Here({kind: found[kind] for kind in kinds}, found[START], found[METRICS], found[TEXT])
