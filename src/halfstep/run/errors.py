"""The exceptions that end a command with one line instead of a traceback."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """A mistake in parameters, files or names that the user can correct.

    The message is one line: the offending value, where it is, and the way out. Commands print it without
    a traceback and exit with code 2 (see `halfstep.run.console`).
    """


class MachineFault(Exception):
    """Something the machine did, such as ending one of our processes; neither the user nor the program is wrong.

    The message is one line: what happened, to what, and how to go on. Commands print it without a traceback and exit
    with code 1. A full disk and a lack of memory stay the `OSError`, `MemoryError` or `RuntimeError` that they are,
    and get their line from `halfstep.run.faults`.
    """


def one_line(value: object, limit: int = 200) -> str:
    """What someone else wrote, fit for a message: one line, cut, and nothing that moves a cursor.

    Of an exception it is the message, or the type where there is none.
    """
    words = " ".join(str(value).split())
    if not words and isinstance(value, BaseException):
        words = type(value).__name__
    cut = words if len(words) <= limit else f"{words[:limit]} ..."
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in cut)


def first_of(names: Collection[str], limit: int = 3) -> str:
    """The first of some names, and how many more there are; `none` of no names."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return one_line(", ".join(list(names)[:limit]) or "none") + more


def shown(value: object) -> str:
    """A value fit for a message: its `repr`, in one line and cut."""
    try:
        return one_line(repr(value), 80)
    except (ValueError, RecursionError):  # Python writes no integer of more than 4300 digits
        return f"a {type(value).__name__} too long to show"


class Interrupted(BaseException):
    """A signal asked a command to stop, and what it had done is saved; it exits with 128 plus the signal's number.

    No `Exception`, as KeyboardInterrupt is none: libraries that catch those must not swallow it.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number


@contextmanager
def nan_as_user_error(source: str | Path) -> Iterator[None]:
    """Within the block NaN predictions of a model raise a `UserError` that names it."""
    try:
        yield
    except FloatingPointError:
        raise UserError(f"{source} predicts NaN: its weights are broken; train it again, more slowly") from None


def causes(error: BaseException, *, with_suppressed: bool = False) -> Iterator[BaseException]:
    """An exception, what it was raised from, and so on; `raise ... from None` suppresses what was before it."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        is_suppressed = current.__suppress_context__ and not with_suppressed
        current = current.__cause__ or (None if is_suppressed else current.__context__)
