"""The one exception that means "you can mend this yourself"."""


class UserError(Exception):
    """A mistake in parameters, files or names that the user can mend.

    The message is one line: the offending value, where it stands, and the way out. Commands print it without
    a traceback and exit with code 2 (see `halfstep.console`).
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
