"""Packed tokens on disk, and batches of them whose order is a pure function of the seed."""

from collections.abc import Iterator
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halfstep.errors import UserError, one_line
from halfstep.files import read_json
from halfstep.retries import with_retries

MANIFEST_FILE = "manifest.json"

Tokens = NDArray[np.unsignedinteger[Any]]
"""Token ids, uint16 or uint32 [num_sequences, context_length], each row `[BOS] chunk [EOS]`."""


def load_tokens(path: Path) -> Tokens:
    """Map a file of packed tokens into memory, without reading it.

    Raises:
        UserError: the file is missing, or is not what `prepare` writes.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is a folder or a device")
        tokens = with_retries(str(path), lambda: np.load(path, mmap_mode="r", allow_pickle=False))
    except FileNotFoundError:
        raise UserError(f"{path} is not there; the stage prepare writes it: dvc repro prepare") from None
    # The header is Python's syntax, and its reader raises what Python's parser can.
    except Exception as error:
        raise UserError(
            f"{path} is not a file of tokens ({one_line(error)}); write it again: dvc repro -f prepare"
        ) from None
    if not isinstance(tokens, np.ndarray):
        raise UserError(f"{path} is an archive, not a file of tokens; write it again: dvc repro -f prepare")
    if tokens.ndim != 2 or tokens.dtype.kind != "u" or not tokens.size:
        raise UserError(
            f"{path} holds {tokens.dtype} of shape {tokens.shape}, but unsigned token ids [num_sequences,"
            " context_length] are expected; write it again: dvc repro -f prepare"
        )
    _check_against_manifest(tokens, path)
    return tokens


def _check_against_manifest(tokens: Tokens, path: Path) -> None:
    """Notice a file of tokens that was written or cut after `prepare` had counted its rows.

    Tokens without a manifest beside them, or of another name than it counts, are the caller's own.
    """
    manifest = path.with_name(MANIFEST_FILE)
    try:
        values = read_json(manifest)
        counted = values[path.stem]["num_sequences"], values["context_length"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    num_bytes = path.stat().st_size - tokens.offset if isinstance(tokens, np.memmap) else tokens.nbytes
    if tokens.shape != counted or num_bytes != tokens.nbytes:
        raise UserError(
            f"{path} holds {tokens.shape[0]} sequences of {tokens.shape[1]} tokens in {num_bytes} bytes, but"
            f" {manifest} counts {counted[0]} of {counted[1]}: it changed since; write it again: dvc repro -f prepare"
        )


def vocab_size_of(tokens_path: Path) -> int:
    """The number of token ids of packed tokens, the mask token included, from their manifest.

    Raises:
        UserError: there is no manifest, or it does not say.
    """
    path = tokens_path / MANIFEST_FILE
    try:
        vocab_size = read_json(path)["vocab_size"]
        if not isinstance(vocab_size, int) or not 2 <= vocab_size < 2**31:
            raise ValueError
        return vocab_size
    except FileNotFoundError:
        raise UserError(f"{path} is not there; the stage prepare writes it: dvc repro prepare") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path} does not say vocab_size; write it again: dvc repro -f prepare") from None


def token_batches(
    tokens: Tokens, batch_size: int, *, seed: int, start_step: int = 0, rows: slice = slice(None)
) -> Iterator[Tensor]:
    """Yield batches without end; the batch of a step depends on the seed and the step only.

    Every epoch is a new permutation of the rows and uses each of them once. A batch may lie across the border
    of two epochs, so no row is left out. Starting late costs one permutation, whatever the step.

    Args:
        tokens: packed tokens [num_sequences, length].
        batch_size: rows per batch.
        seed: decides the order.
        start_step: number of batches to skip.
        rows: the rows of each batch that are read and yielded, such as `slice(rank, None, num_ranks)`.
    Yields:
        x0, int64 [number of these rows, length].
    """
    num_rows = len(tokens)

    @lru_cache(maxsize=2)
    def rows_of_epoch(epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([seed, epoch]).permutation(num_rows)

    for step in count(start_step):
        epochs, places = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size)[rows], num_rows)
        chosen = np.concatenate([rows_of_epoch(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)])
        yield torch.from_numpy(tokens[chosen].astype(np.int64))


ROWS_PER_PIECE = 4096


def token_pieces(tokens: Tokens) -> Iterator[Tokens]:
    """Yield all rows in order, a few thousand at a time, so that a large file is never held whole."""
    for start in range(0, len(tokens), ROWS_PER_PIECE):
        yield tokens[start : start + ROWS_PER_PIECE]


def first_batches(tokens: Tokens, num_sequences: int, batch_size: int) -> Iterator[Tensor]:
    """Yield the first rows in order, all of them where there are fewer than asked for.

    Yields:
        x0, int64 [batch, length]; the last batch may be smaller than `batch_size`.
    """
    num_rows = min(num_sequences, len(tokens))
    for start in range(0, num_rows, batch_size):
        yield torch.from_numpy(tokens[start : min(start + batch_size, num_rows)].astype(np.int64))
