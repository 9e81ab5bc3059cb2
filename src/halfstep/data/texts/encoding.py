"""Texts to token ids, in this process or in several, always in the texts' order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from halfstep.run.errors import MachineFault, UserError, one_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

Ids = NDArray[np.unsignedinteger[Any]]
"""Token ids in the type of the file, [num_tokens]."""

Batch = tuple[range, list[str | None]]
"""Numbers of documents, and the texts of those of them that are tokenized; a null or a blank text gives nothing."""

CHARACTERS_PER_BATCH = 1_000_000
"""Of the texts that are written, read and tokenized at once."""

BATCHES_PER_PROCESS = 3
"""At work or waiting: no process waits for text, and what is held does not grow with the corpus."""


def batches(texts: Iterable[str | None]) -> Iterator[list[str | None]]:
    """Texts in lists of about `CHARACTERS_PER_BATCH`; a longer text is in a list of its own, or ends one."""
    batch: list[str | None] = []
    num_characters = 0
    for text in texts:
        batch.append(text)
        num_characters += len(text or "") + 1
        if num_characters >= CHARACTERS_PER_BATCH:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


def encode_batches(
    batches: Iterable[Batch], tokenizer: Tokenizer, eos_token_id: int, dtype: np.dtype[Any], num_processes: int
) -> Generator[tuple[Batch, Ids]]:
    """Yield each batch with the tokens of its texts, an EOS after each.

    Text that spells a special token is tokenized as the text it is.

    Args:
        num_processes: 1 tokenizes in this process, with the tokenizer's own threads.
    Raises:
        UserError: the tokenizer cannot tokenize a text.
        MachineFault: a process died.
    """
    if num_processes == 1:
        for batch in batches:
            yield batch, encode(batch[1], tokenizer, eos_token_id, dtype)
        return
    # New processes hold no lock and no thread of this one.
    pool = ProcessPoolExecutor(
        num_processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(tokenizer.to_str(), eos_token_id, dtype),
    )
    pending: deque[tuple[Batch, Future[Ids]]] = deque()
    try:
        for batch in batches:
            pending.append((batch, pool.submit(_encode_there, batch[1])))
            if len(pending) == BATCHES_PER_PROCESS * num_processes:
                yield pending[0][0], pending[0][1].result()
                pending.popleft()
        while pending:
            yield pending[0][0], pending[0][1].result()
            pending.popleft()
    except BrokenProcessPool:
        first, last = pending[0][0][0].start, pending[-1][0][0].stop - 1
        raise MachineFault(
            f"one of the {num_processes} processes that tokenize was ended from outside, perhaps for want of memory; at"
            f" work: documents {first} to {last}. The same command goes on from there, with fewer"
            f" processes if it happens again: -S data.num_workers={max(num_processes // 2, 1)}"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def encode(texts: list[str | None], tokenizer: Tokenizer, eos_token_id: int, dtype: np.dtype[Any]) -> Ids:
    """The tokens of texts, an EOS after each; a null or a blank text gives nothing."""
    # Text that spells a special token stays text. The flag is set here because `to_str` loses it.
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    found = [text for text in texts if text and not text.isspace()]
    try:
        encodings = tokenizer.encode_batch_fast(found, add_special_tokens=False)
    # The library raises plain exceptions, as where a word is not known and there is no token for that.
    except Exception as error:
        raise UserError(
            f"the tokenizer cannot tokenize the corpus ({one_line(error)}): set data.tokenizer.source to another"
        ) from None
    ids = [np.array([*encoding.ids, eos_token_id], dtype) for encoding in encodings]
    return np.concatenate([np.empty(0, dtype), *ids])


def as_rows(ids: Ids, context_length: int, tokenizer: PreTrainedTokenizerFast) -> tuple[Ids, Ids]:
    """(the full rows `[BOS] chunk [EOS]` of a stream of tokens, [num_rows, context_length]; the rest of the stream)."""
    num_rows, num_left = divmod(len(ids), context_length - 2)
    rows = np.empty((num_rows, context_length), ids.dtype)
    rows[:, 0] = tokenizer.bos_token_id
    rows[:, -1] = tokenizer.eos_token_id
    rows[:, 1:-1] = ids[: len(ids) - num_left].reshape(num_rows, context_length - 2)
    return rows, ids[len(ids) - num_left :]


def id_type(vocab_size: int) -> Literal["uint16", "uint32"]:
    """The name of the smallest type that holds all ids of a vocabulary."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def encode_pair(
    tokenizer: PreTrainedTokenizerBase, context: str, continuation: str, max_length: int, *, is_chat: bool = False
) -> tuple[list[int], list[int], bool]:
    """Token ids of a context and what is asked of it, the context beginning with BOS as in training.

    Both are tokenized together and cut where the context alone would end; white space at the end of the context
    belongs to the continuation, as with lm-eval's own models. Text that spells a special token is the text it is.
    What a chat template wrote has a beginning and special tokens of its own.

    Args:
        tokenizer: with a BOS token.
        context: what is given; it may be empty.
        continuation: what is to be judged.
        max_length: tokens of both together; a longer context loses tokens after its BOS.
        is_chat: a chat template wrote the context.
    Returns:
        (context with its beginning, continuation, whether the context was cut).
    Raises:
        UserError: the continuation has no token of its own, or does not fit.
    """
    begin = [] if is_chat else [tokenizer.bos_token_id]
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    whole, context_ids = (
        tokenizer.encode(text, add_special_tokens=False, split_special_tokens=not is_chat)
        for text in (stripped + continuation, stripped)
    )
    target_ids = whole[len(context_ids) :]
    if not target_ids:
        raise UserError(
            f"{continuation!r} has no tokens of its own after {context[-40:]!r}, so there is nothing to judge"
        )
    room = max_length - len(begin) - len(target_ids)
    if room < 0:
        raise UserError(
            f"{continuation[:60]!r} has {len(target_ids)} tokens, more than fit into the {max_length} that are"
            " read, BOS included"
        )
    kept = context_ids[max(len(context_ids) - room, 0) :]
    return [*begin, *kept], target_ids, len(kept) < len(context_ids)


_encoder: tuple[Tokenizer, int, np.dtype[Any]]
"""Of a process that tokenizes."""


def _begin(tokenizer_json: str, eos_token_id: int, dtype: np.dtype[Any]) -> None:
    """Prepare a process that tokenizes until the process that started it ends."""
    global _encoder
    # Threads of the processes would compete for the same cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer

    # A terminal's Ctrl-C, and a SIGTERM to a group, reach all processes; the one that started this one ends it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _encoder = Tokenizer.from_str(tokenizer_json), eos_token_id, dtype


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _encode_there(texts: list[str | None]) -> Ids:
    return encode(texts, *_encoder)
