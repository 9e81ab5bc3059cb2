"""What our models have in common when lm-eval asks them."""

import contextlib
import hashlib
import io
import json
import logging
from collections.abc import Iterator
from typing import Any


def digest(requests: Any) -> str:
    """A name for requests, plain values, that no others have."""
    return hashlib.sha256(json.dumps(requests).encode()).hexdigest()[:16]


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep lm-eval's advice and progress bars off the terminal; errors are exceptions, which still show."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        # Its bars cannot be switched off, and elsewhere than on a terminal they fill the log.
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
