"""What our models have in common when lm-eval asks them."""

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from halfstep.run.errors import UserError

DEFAULT_MAX_GEN_TOKS = 256
"""What lm-eval's own models generate where a task does not say."""


def generation_limits(settings: Mapping[str, Any], max_length: int) -> tuple[list[str], int]:
    """Where a generated text stops, from a task's generation settings.

    Args:
        settings: until, max_gen_toks, and what only a greedy decoder has an answer to.
        max_length: tokens of the longest input, BOS included.
    Returns:
        (stop strings, tokens to generate).
    Raises:
        UserError: no room is left for a prompt, or a temperature other than 0 or 1 is asked for.
    """
    until = settings.get("until") or []
    num_tokens = int(settings.get("max_gen_toks", DEFAULT_MAX_GEN_TOKS))
    if not 1 <= num_tokens < max_length:
        raise UserError(
            f"max_gen_toks is {num_tokens}, but the model's length {max_length} must hold BOS and it: give"
            f" --gen_kwargs max_gen_toks={max_length // 2}"
        )
    if settings.get("do_sample") and float(settings.get("temperature", 1)) not in (0, 1):
        raise UserError(
            f"temperature is {settings['temperature']}, but a denoiser draws at temperature 1: give"
            " --gen_kwargs temperature=1"
        )
    return [until] if isinstance(until, str) else list(until), num_tokens


def cut_at_stops(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string in it."""
    for stop in filter(None, stops):
        text = text.split(stop, 1)[0]
    return text


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
