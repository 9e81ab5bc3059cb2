"""Starting a stage once for every device: by torchrun's agent on a machine, by a cluster's own command on several."""

import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from halfstep.run import ranks
from halfstep.run.console import LAST_WORDS, console, leave
from halfstep.run.device import select_device
from halfstep.run.errors import UserError
from halfstep.run.files import make_folder, project_root
from halfstep.run.signals import on_signals
from halfstep.settings.runtime import LaunchSettings, RuntimeSettings

ON_NODE = "HALFSTEP_ON_NODE"
"""Set where a cluster's command has started this process on a node."""

SECONDS_TO_STOP = 45
"""Between the signal that asks a process to stop and the one that ends it: time for a step and its checkpoint."""


def enter(launch: LaunchSettings, runtime: RuntimeSettings) -> None:
    """Go on as one of the processes that the parameters ask for; a stage that uses more than one begins so.

    Where several are asked for and this process is none of them, it starts them with its own command line, waits for
    their end and exits as they did. One that was launched, by us, torchrun or accelerate, meets the others.

    Raises:
        UserError: there are fewer devices than processes, or the cluster's command cannot be started.
    """
    if ranks.are_launched():
        is_cpu = select_device(runtime.device).type == "cpu"
        ranks.join(is_cpu=is_cpu, timeout_seconds=launch.timeout_seconds)
        if ranks.is_main():
            # Those of processes before a restart are out of date.
            if LAST_WORDS in os.environ:
                Path(os.environ[LAST_WORDS]).unlink(missing_ok=True)
        else:
            console.quiet = True
            logging.disable(logging.WARNING)
        return
    if launch.num_processes == 1:
        return
    if launch.start_with and ON_NODE not in os.environ:
        _start_on_nodes(launch)
    _start_here(launch, runtime)


def _command() -> list[str]:
    """The command line of this process after the interpreter's name."""
    spec = sys.modules["__main__"].__spec__
    return ["-m", spec.name, *sys.argv[1:]] if spec else sys.argv


def _start_on_nodes(launch: LaunchSettings) -> NoReturn:
    """Have a cluster's command start this command once on every node."""
    command = [*launch.start_with, sys.executable, *_command()]
    try:
        process = subprocess.Popen(command, env={**os.environ, ON_NODE: "1"})
    except OSError as error:
        raise UserError(
            f"launch.start_with begins with {launch.start_with[0]!r}, which cannot be started ({error.strerror}): give"
            " a command of this machine, as -S \"launch.start_with=[srun,'--ntasks-per-node=1']\""
        ) from None
    with on_signals(process.send_signal):
        code = process.wait()
    sys.exit(128 - code if code < 0 else code)


def _start_here(launch: LaunchSettings, runtime: RuntimeSettings) -> NoReturn:
    """Start this machine's processes under torchrun's agent, which starts all again where one is lost."""
    rendezvous = _rendezvous(launch)
    _divide_devices(launch.processes_per_node, runtime.device)
    # Imported late: a stage in one process does without.
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What the agent has to say ends up in one line.
    logging.disable(logging.CRITICAL)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SECONDS_TO_STOP))
    root = project_root() / ".halfstep" / "ranks"
    root.mkdir(parents=True, exist_ok=True)
    outputs = make_folder(root)
    words_path = outputs / "last-words.json"
    command = _command()
    config = LaunchConfig(
        min_nodes=launch.num_nodes,
        max_nodes=launch.num_nodes,
        nproc_per_node=launch.processes_per_node,
        # The nodes know by it that they are after the same.
        run_id=hashlib.sha256(" ".join(command).encode()).hexdigest()[:16],
        rdzv_backend="c10d",
        rdzv_endpoint=rendezvous,
        rdzv_configs={"timeout": int(launch.timeout_seconds)},
        max_restarts=launch.max_restarts,
        # The first process has the terminal.
        logs_specs=DefaultLogsSpecs(
            log_dir=str(outputs), redirects=dict.fromkeys(range(1, launch.processes_per_node), Std.ALL)
        ),
    )
    os.environ[LAST_WORDS] = str(words_path)
    try:
        elastic_launch(config, sys.executable)(*command)
        words = _read_last_words(words_path)
    except ChildFailedError as error:
        exit_code = error.get_first_failure()[1].exitcode
        words = _failure(exit_code, launch.num_processes, _read_last_words(words_path), outputs)
    except SignalException as error:
        # The processes have ended by now, with a line unless they had no time for it.
        words = _read_last_words(words_path)
        words = words or ("stopped; the same command goes on from what is kept", 128 + error.sigval)
    finally:
        del os.environ[LAST_WORDS]
    if words is None or str(outputs) not in words[0]:
        shutil.rmtree(outputs, ignore_errors=True)
    if words is None:
        sys.exit(0)
    leave(*words)


def _divide_devices(num_processes: int, device_name: str) -> None:
    """See to it that every process of this machine has a device, or its part of the cores."""
    if select_device(device_name).type == "cpu":
        # Each process would otherwise take all cores.
        os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // num_processes, 1)))
        return
    import torch

    if num_processes > torch.cuda.device_count():
        raise UserError(
            f"launch.processes_per_node is {num_processes}, but torch finds {torch.cuda.device_count()} CUDA devices"
            f" on this machine: dvc exp run -S launch.processes_per_node={torch.cuda.device_count()}"
        )


def _rendezvous(launch: LaunchSettings) -> str:
    if launch.rendezvous is not None:
        return launch.rendezvous
    if launch.num_nodes == 1:
        return "localhost:0"
    if "MASTER_ADDR" not in os.environ:
        raise UserError(
            f"launch.num_nodes is {launch.num_nodes}, but nothing says where they meet: set"
            " launch.rendezvous=HOST:PORT, or MASTER_ADDR and MASTER_PORT in the environment"
        )
    return f"{os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT', '29400')}"


LastWords = tuple[str, int]
"""A line and an exit code."""


def _read_last_words(path: Path) -> LastWords | None:
    """With what the first of several processes left (`console.leave`); None if none did."""
    return tuple(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def _failure(exit_code: int, num_processes: int, words: LastWords | None, outputs: Path) -> LastWords:
    """The line and the exit code for processes of which one failed.

    Args:
        exit_code: of the first that failed; minus the signal's number if a signal ended it.
        words: of the first to leave with a line: the cause, or what followed from it.
    """
    if exit_code >= 0:
        line = f"error: one of {num_processes} processes failed with exit code {exit_code}; its output is in {outputs}"
        return words or (line, 1)
    name = signal.Signals(-exit_code).name
    goes_on = words[0].removeprefix("error: ") if words else "the same command goes on from the last checkpoint"
    line = f"error: one of {num_processes} processes was ended from outside ({name}, perhaps for want of memory)"
    return f"{line}; {goes_on}", 1
