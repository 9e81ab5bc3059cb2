"""The exceptions that end a command with one line instead of a traceback."""


class UserError(Exception):
    """A mistake in parameters, files or names that the user can mend.

    The message is one line: the offending value, where it stands, and the way out. Commands print it without
    a traceback and exit with code 2 (see `halfstep.console`).
    """


class MachineFault(Exception):
    """Something the machine did, such as ending one of our processes; neither the user nor the program is wrong.

    The message is one line: what happened, to what, and how to go on. Commands print it without a traceback and exit
    with code 1. A full disk and a lack of memory stay the `OSError`, `MemoryError` or `RuntimeError` that they are,
    and get their line from `halfstep.faults`.
    """


class Interrupted(BaseException):
    """A signal asked a command to stop, and what it had done is saved.

    No `Exception`, as KeyboardInterrupt is none: libraries that catch those are not to swallow it.

    Attributes:
        signal_number: SIGINT or SIGTERM; the command exits with 128 plus it.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number
