"""Reads that fail for a moment are tried again: of the hub, and of disks that hang on a network."""

import errno
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from halfstep.run.console import console

Result = TypeVar("Result")

WAIT_SECONDS = (1.0, 4.0)
"""Before the second and the third try."""

PASSING_ERRNOS = {
    errno.EIO, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED,
    errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EPIPE,
}  # fmt: skip
PASSING_STATUS = {408, 429, 500, 502, 503, 504}
PASSING_NAMES = {"TransportError", "IncompleteRead", "ConnectionError", "ChunkedEncodingError", "Timeout"}
"""Classes by which HTTP libraries call a broken connection; what derives from them is one, too."""

FINAL_NAMES = {
    "OfflineModeIsEnabled", "RepositoryNotFoundError", "RevisionNotFoundError", "RemoteEntryNotFoundError",
    "GatedRepoError", "DisabledRepoError", "DatasetNotFoundError", "HFValidationError",
}  # fmt: skip
"""What the hub answers for good: it would answer the same again."""


def with_retries(what: str, read: Callable[[], Result], *, sleep: Callable[[float], None] | None = None) -> Result:
    """Call `read`, and again after a while where what went wrong may pass; three times in all.

    Args:
        what: is read, for the line that says so.
        read: without side effects that a second call would mind.
        sleep: waits for so many seconds; None is `time.sleep`.
    Returns:
        what `read` returns.
    Raises:
        whatever its last call raises.
    """
    for seconds in WAIT_SECONDS:
        try:
            return read()
        except Exception as error:
            if not may_pass(error):
                raise
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            console.print(
                f"{what}: {reason}; tried again in {seconds:g} s", style="yellow", markup=False, soft_wrap=True
            )
        (sleep or time.sleep)(seconds)
    return read()


def may_pass(error: BaseException) -> bool:
    """Whether an exception tells of something that may be over in a moment.

    Libraries wrap errors of the network in others, so those behind an exception are looked at as well; one that is
    an answer for good decides.
    """
    chain = list(_chain(error))
    names = {kind.__name__ for link in chain for kind in type(link).__mro__}
    return not names & FINAL_NAMES and not _is_offline() and any(map(_passes, chain))


def _passes(error: BaseException) -> bool:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return status in PASSING_STATUS
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in PASSING_ERRNOS
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, TimeoutError) or bool(kinds & PASSING_NAMES)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _is_offline() -> bool:
    """Whether the hub's library was told to stay away from the network; without the library nothing was."""
    constants = sys.modules.get("huggingface_hub.constants")
    return constants is not None and constants.is_offline_mode()
