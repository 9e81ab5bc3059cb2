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
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column

from halfstep.run import ranks
from halfstep.run.errors import Interrupted, UserError
from halfstep.run.faults import fault_line, refusal_line
from halfstep.run.provenance import recorded_is_what_ran

STARTED = time.monotonic()
"""When this process began to run a command, by the monotonic clock; commands import this module first."""

console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

LAST_WORDS = "HALFSTEP_LAST_WORDS"
"""Variable: the file to which one of several processes writes its last line and exit code; see `leave`."""

EXIT_MACHINE_FAULT = 1
EXIT_USER_ERROR = 2
SECONDS_BETWEEN_LINES = 15.0


def run(command: Callable[..., None]) -> None:
    """Run a function, whose signature and docstring define the command line."""

    def stop(signal_number: int, frame: FrameType | None) -> None:
        raise Interrupted(signal_number, "stopped; the same command goes on from what is kept")

    @functools.wraps(command)
    def checked(**arguments: Any) -> None:
        with recorded_is_what_ran(Path(command.__code__.co_filename).resolve()):
            command(**arguments)

    # Long work has handlers of its own, which report its progress.
    signal.signal(signal.SIGTERM, stop)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
    app.command()(checked)
    run_app(app)


def run_app(app: typer.Typer) -> None:
    """Run a Typer app, and end it with one line where one says it all.

    The exit code is 2 for a `UserError`, 1 for a fault of the machine (see `halfstep.run.faults`), 128 + signal for an
    interruption.
    """
    # A denoiser's folder holds a config.json of a kind that transformers does not know, and says so at every load.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
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


def leave(line: str, exit_code: int) -> NoReturn:
    """End the command with a line.

    One of several processes that share a stage's work writes the line and the exit code to a file for the one that
    started them (`halfstep.run.launch`), and ends well: torchrun need not start it again.
    """
    path = os.environ.get(LAST_WORDS)
    if path is None:
        style = "red" if exit_code in (EXIT_MACHINE_FAULT, EXIT_USER_ERROR) else "yellow"
        console.print(line, style=style)
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
    started = last = time.monotonic()
    # On a narrow terminal the note gives way, not how far it is and the time left.
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, expand=True) as bar:
        task = bar.add_task(description, total=total, completed=start, note="")

        def update(done: int, note: str) -> None:
            nonlocal last
            now = time.monotonic()
            rate = (done - start) / max(now - started, 1e-9)
            if console.is_terminal:
                bar.update(task, completed=done, note=f"{rate:.3g} {unit}/s {note}")
            elif done >= total or now - last >= SECONDS_BETWEEN_LINES:
                last = now
                left = (total - done) / max(rate, 1e-9)
                console.print(f"{description}: {done}/{total}, {rate:.3g} {unit}/s, {left:.0f} s left {note}".rstrip())

        yield update
