"""How commands talk to a person: one console, one progress display, one way to fail."""

import functools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, get_type_hints

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from halfstep.run import ranks
from halfstep.run.errors import Interrupted, UserError
from halfstep.run.faults import fault_line, refusal_line
from halfstep.run.provenance import recorded_is_what_ran

STARTED = time.monotonic()
"""When this process began to run a command, by the monotonic clock; commands import this module first."""

console = Console(stderr=True, highlight=False)

LAST_WORDS = "HALFSTEP_LAST_WORDS"
"""Variable: the file to which one of several processes writes its last line and exit code; see `leave`."""

EXIT_MACHINE_FAULT = 1
EXIT_USER_ERROR = 2
SECONDS_BETWEEN_LINES = 15.0


def run(command: Callable[..., None]) -> None:
    """Run a function as a Typer command.

    Args:
        command: the function whose signature and docstring define the command line.
    """

    def stop(signal_number: int, frame: FrameType | None) -> None:
        raise Interrupted(signal_number, "stopped; the same command goes on from what is kept")

    @functools.wraps(command)
    def checked(**arguments: Any) -> None:
        with recorded_is_what_ran(Path(command.__code__.co_filename).resolve()):
            command(**arguments)

    # Long work has handlers of its own, which report its progress.
    signal.signal(signal.SIGTERM, stop)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(checked)
    run_app(app)


def run_app(app: typer.Typer) -> None:
    """Run a Typer app, and end it with one line where one says it all.

    The exit code is 2 for a `UserError`, 1 for a fault of the machine (see `halfstep.run.faults`), 128 + signal for an
    interruption.
    """
    # A denoiser's folder holds a config.json of a kind that transformers does not know, and says so at every load.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    _leave_files_to_readers(app)
    try:
        app()
    except UserError as error:
        leave(f"error: {refusal_line(error) or error}", EXIT_USER_ERROR)
    except Interrupted as error:
        leave(str(error), 128 + error.signal_number)
    except KeyboardInterrupt:
        leave("interrupted", 130)
    except Exception as error:
        line = fault_line(error)
        if line is None and ranks.is_lost_process(error):
            line = "stopped, another process having been lost; the same command goes on from what is kept"
        if line is None:
            raise
        leave(f"error: {' '.join(line.split())}", EXIT_MACHINE_FAULT)


def _leave_files_to_readers(app: typer.Typer) -> None:
    """Keep Typer from checking whether files can be read: the reader's own error names the owner and the way out."""
    for command in app.registered_commands:
        for hint in get_type_hints(command.callback, include_extras=True).values():
            for information in getattr(hint, "__metadata__", ()):
                information.readable = False
    for group in app.registered_groups:
        if group.typer_instance is not None:
            _leave_files_to_readers(group.typer_instance)


def leave(line: str, exit_code: int) -> NoReturn:
    """End the command with a line.

    One of several processes that share a stage's work writes the line and the exit code to a file for the one that
    started them (`halfstep.run.launch`), and ends well: torchrun need not start it again.
    """
    path = os.environ.get(LAST_WORDS)
    if path is None:
        style = "red" if exit_code in (EXIT_MACHINE_FAULT, EXIT_USER_ERROR) else "yellow"
        console.print(line, style=style, markup=False, soft_wrap=True)
        sys.exit(exit_code)
    # The first process to fail has the cause; the others follow from it.
    with suppress(FileExistsError), open(path, "x", encoding="utf-8") as file:
        json.dump([line, exit_code], file)
    # The agent asks again where another process takes its time.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(0)


@contextmanager
def progress(description: str, total: int, *, unit: str, start: int = 0) -> Iterator[Callable[[int, str], None]]:
    """Show how far long work is: a bar with rate and time left on a terminal, a line now and then elsewhere.

    Args:
        description: what is being done.
        total: how many units it takes.
        unit: what is counted, such as "step".
        start: units already done.
    Yields:
        a function of (units done, note), the note being the loss or the like.
    """
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(description, total=total, completed=start, note="", rate="")

            def update(done: int, note: str) -> None:
                speed = bar.tasks[0].speed
                rate = f"{speed:.3g} {unit}/s" if speed else ""
                bar.update(task, completed=done, note=note, rate=rate)

            yield update
        return

    started = last = time.monotonic()

    def print_line(done: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if done < total and now - last < SECONDS_BETWEEN_LINES:
            return
        last = now
        rate = (done - start) / max(now - started, 1e-9)
        left = (total - done) / max(rate, 1e-9)
        console.print(
            f"{description}: {done}/{total}, {rate:.3g} {unit}/s, {left:.0f} s left {note}".rstrip(),
            markup=False,
            soft_wrap=True,
        )

    yield print_line
