"""Reads that fail for a moment are tried again: of the hub, and of disks that hang on a network."""

import errno
import logging
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from halfstep.run.errors import causes, one_line

Result = TypeVar("Result")

_LOG = logging.getLogger(__name__)

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


def with_retries(what: str, read: Callable[[], Result]) -> Result:
    """Call `read`, up to three times if its error may pass; a warning names what is read and the error."""
    for seconds in WAIT_SECONDS:
        try:
            return read()
        except Exception as error:
            if not may_pass(error):
                raise
            _LOG.warning("%s: %s; tried again in %g s", what, one_line(error), seconds)
        time.sleep(seconds)
    return read()


def may_pass(error: BaseException) -> bool:
    """Whether what an exception reports may be over in a moment.

    Libraries wrap errors of the network in others, so its causes count as well; one of `FINAL_NAMES` decides.
    """
    chain = list(causes(error, with_suppressed=True))
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


def _is_offline() -> bool:
    """Whether the hub's library, if it is imported, must stay away from the network."""
    constants = sys.modules.get("huggingface_hub.constants")
    return constants is not None and constants.is_offline_mode()
