"""What a command does when SIGINT or SIGTERM comes."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from halfstep.run.errors import Interrupted


@contextmanager
def on_signals(handle: Callable[[int], None]) -> Iterator[None]:
    """Within the block a function of the signal's number handles SIGINT and SIGTERM."""
    numbers = signal.SIGINT, signal.SIGTERM
    previous = {number: signal.signal(number, lambda number, frame: handle(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def stops_at_signals(message: Callable[[], str]) -> Iterator[None]:
    """Within the block SIGINT and SIGTERM stop the command at once with a line (`Interrupted`).

    What it did must be saved already.
    """
    process = os.getpid()

    def stop(signal_number: int) -> None:
        if os.getpid() == process:
            raise Interrupted(signal_number, message())
        # Ctrl-C reaches worker processes too. They wait for the main process to end them, and leave by unwinding:
        # killed, they would take the pool's locks with them.
        if signal_number == signal.SIGTERM:
            raise SystemExit(128 + signal_number)

    with on_signals(stop):
        yield
