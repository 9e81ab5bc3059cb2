"""What our models have in common when lm-eval asks them."""

import contextlib
import io
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from halfstep.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_passage(
    tokenizer: "PreTrainedTokenizerBase", context: str, target: str, max_length: int
) -> tuple[list[int], list[int], bool]:
    """Token ids of context and target, the context beginning with BOS as in training.

    Args:
        tokenizer: with a BOS token.
        context: what is given.
        target: what is to be guessed.
        max_length: tokens of both together; a longer context loses tokens after its BOS.
    Returns:
        (context with BOS, target, whether the context was cut).
    Raises:
        UserError: the target has no token of its own, or does not fit.
    """
    whole = tokenizer.encode(context + target, add_special_tokens=False)
    context_ids = tokenizer.encode(context, add_special_tokens=False)
    target_ids = whole[len(context_ids) :]
    if not target_ids:
        raise UserError(f"cloze target {target!r} has no tokens of its own after {context[-40:]!r}: remove the passage")
    room = max_length - 1 - len(target_ids)
    if room < 0:
        raise UserError(
            f"cloze target {target[:60]!r} has {len(target_ids)} tokens, more than the model's length"
            f" {max_length} holds: remove the passage, or raise data.context_length"
        )
    kept = context_ids[max(len(context_ids) - room, 0) :]
    return [tokenizer.bos_token_id, *kept], target_ids, len(kept) < len(context_ids)


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
