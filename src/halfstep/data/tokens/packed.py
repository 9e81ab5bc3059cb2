"""Packed tokens on disk, and batches of them whose order is a pure function of the seed."""

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from halfstep.data.tokens.manifest import MANIFEST_FILE, Shard, Split, read_manifest
from halfstep.run.errors import UserError, one_line
from halfstep.run.files import file_hash
from halfstep.run.retries import with_retries

Tokens = NDArray[np.integer[Any]]
"""Token ids, uint16 or uint32 [num_sequences, context_length], each row `[BOS] chunk [EOS]`; or int32, where some are
given, see `halfstep.data.tokens.given`."""

WAY_OUT = "write it again: dvc repro -f prepare"

MAX_MAPPED_SHARDS = 32
"""Each holds a file open."""


class PackedTokens:
    """The rows of a split, read from its shards as they are asked for.

    Slices and arrays of row numbers give arrays, as with one array of all rows. A slice within one shard is a view
    of the file, anything else a copy of these rows.

    Attributes:
        shape: (rows, context_length).
        has_given: whether tokens that are given are among them.
        num_rows_of_shards: rows of each shard, int64 [num_shards].
    """

    def __init__(self, folder: Path, split: Split, context_length: int, dtype: str) -> None:
        self.shape = (split.num_sequences, context_length)
        self.num_rows_of_shards = np.array([shard.num_sequences for shard in split.shards])
        self._paths = [folder / shard.file for shard in split.shards]
        self._dtype = np.dtype(dtype)
        self.has_given = self._dtype.kind == "i"
        # All shards but the last have as many rows, so that a division finds a row's shard.
        self._rows_per_shard = split.shards[0].num_sequences
        self._shard = lru_cache(MAX_MAPPED_SHARDS)(self._map)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | ArrayLike) -> Tokens:
        """`stored` rows, without a sign of what is given."""
        tokens = self.stored(rows)
        return np.maximum(tokens, ~tokens) if self.has_given else tokens

    def stored(self, rows: slice | ArrayLike) -> Tokens:
        """The rows of a slice, or of row numbers [num_rows], as [num_rows, context_length].

        Raises:
            IndexError: there is no such row.
            UserError: a shard is not what the manifest says.
        """
        if isinstance(rows, slice):
            start, stop, stride = rows.indices(len(self))
            shard, first = divmod(start, self._rows_per_shard)
            if start < stop and stride > 0 and (stop - 1) // self._rows_per_shard == shard:
                return self._shard(shard)[first : stop - shard * self._rows_per_shard : stride]
            rows = np.arange(start, stop, stride)
        numbers = np.asarray(rows, dtype=np.int64)
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < len(self):
            raise IndexError(f"rows {numbers.min()} to {numbers.max()} of {len(self)}")
        shards, places = np.divmod(numbers, self._rows_per_shard)
        found = np.empty((len(numbers), self.shape[1]), self._dtype)
        for shard in np.unique(shards):
            is_here = shards == shard
            found[is_here] = self._shard(int(shard))[places[is_here]]
        return found

    def _map(self, number: int) -> Tokens:
        path = self._paths[number]
        try:
            tokens = with_retries(str(path), lambda: np.load(path, mmap_mode="r", allow_pickle=False))
        # The header is Python's syntax, and its reader raises what Python's parser can.
        except Exception as error:
            raise UserError(f"{path} is not a file of tokens ({one_line(error)}); {WAY_OUT}") from None
        expected = (int(self.num_rows_of_shards[number]), self.shape[1])
        if not isinstance(tokens, np.ndarray) or tokens.shape != expected or tokens.dtype != self._dtype:
            raise UserError(
                f"{path} does not hold {self._dtype} of shape {expected}, as {path.with_name(MANIFEST_FILE)} says;"
                f" {WAY_OUT}"
            )
        return tokens


def load_tokens(tokens_path: Path, split: Literal["train", "valid"]) -> PackedTokens:
    """The packed tokens of a split, none of which is read yet.

    The shards' sizes are compared with the manifest; their contents, which takes reading them, by `verify_tokens`.

    Args:
        tokens_path: folder that `prepare` wrote.
    Raises:
        UserError: a file is missing, or is not the one that `prepare` wrote.
    """
    manifest = read_manifest(tokens_path)
    part: Split = getattr(manifest, split)
    for shard in part.shards:
        _check_size(tokens_path / shard.file, shard)
    return PackedTokens(tokens_path, part, manifest.context_length, manifest.dtype)


def verify_tokens(tokens_path: Path) -> int:
    """Compare the content of every shard with its hash in the manifest.

    Returns:
        number of shards.
    Raises:
        UserError: one is missing or changed.
    """
    manifest = read_manifest(tokens_path)
    shards = [*manifest.train.shards, *manifest.valid.shards]
    for shard in shards:
        path = tokens_path / shard.file
        _check_size(path, shard)
        if file_hash(path) != shard.sha256:
            raise UserError(
                f"{path} changed since prepare wrote it: its SHA-256 is not the one in"
                f" {tokens_path / MANIFEST_FILE}; {WAY_OUT}"
            )
    return len(shards)


def _check_size(path: Path, shard: Shard) -> None:
    try:
        num_bytes = path.stat().st_size
    except FileNotFoundError:
        raise UserError(f"{path} is not there; the stage prepare writes it: dvc repro prepare") from None
    if num_bytes != shard.num_bytes:
        raise UserError(
            f"{path} has {num_bytes} bytes, but {path.with_name(MANIFEST_FILE)} counts {shard.num_bytes}: it changed"
            f" since; {WAY_OUT}"
        )


def token_batches(tokens: PackedTokens, batch_size: int, *, seed: int) -> Callable[[int], Tensor]:
    """The batch of each step, from 0, without end; it depends on the seed and the step only.

    Every epoch is a new permutation of the shards, and of the rows within each, and uses each row once. A batch may
    lie across the border of two shards or epochs, so no row is left out. Starting late costs the permutation of one
    shard, whatever the step.

    Args:
        tokens: a split.
        batch_size: rows per batch.
        seed: decides the order.
    Returns:
        step -> x0, int64 [batch, length].
    """
    row_numbers = _shuffled(tokens.num_rows_of_shards, seed)

    def batch(step: int) -> Tensor:
        places = np.arange(step * batch_size, (step + 1) * batch_size)
        return torch.from_numpy(tokens.stored(row_numbers(places)).astype(np.int64))

    return batch


def _shuffled(num_rows_of_shards: NDArray[np.int64], seed: int) -> Callable[[NDArray[np.int64]], NDArray[np.int64]]:
    """The row at each place of the endless sequence of epochs, as a function of places [num_places]."""
    num_shards = len(num_rows_of_shards)
    num_rows = int(num_rows_of_shards.sum())
    first_rows = np.cumsum(num_rows_of_shards) - num_rows_of_shards

    @lru_cache(maxsize=2)
    def shards_of_epoch(epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The shards in the epoch's order, and the place in the epoch at which each begins."""
        # Shard k draws from the stream k, so this is one that no shard has.
        order = np.random.default_rng([seed, epoch, num_shards]).permutation(num_shards)
        sizes = num_rows_of_shards[order]
        return order, np.cumsum(sizes) - sizes

    @lru_cache(maxsize=2)
    def rows_of_shard(epoch: int, shard: int) -> NDArray[np.int64]:
        order = np.random.default_rng([seed, epoch, shard]).permutation(num_rows_of_shards[shard])
        return first_rows[shard] + order

    def row_numbers(places: NDArray[np.int64]) -> NDArray[np.int64]:
        numbers = np.empty_like(places)
        epochs, places = np.divmod(places, num_rows)
        for epoch in np.unique(epochs):
            order, begins = shards_of_epoch(int(epoch))
            turns = np.searchsorted(begins, places, side="right") - 1
            for turn in np.unique(turns[epochs == epoch]):
                is_here = (epochs == epoch) & (turns == turn)
                numbers[is_here] = rows_of_shard(int(epoch), int(order[turn]))[places[is_here] - begins[turn]]
        return numbers

    return row_numbers


ROWS_PER_PIECE = 4096


def token_pieces(tokens: PackedTokens) -> Iterator[Tokens]:
    """Yield all rows in order, a few thousand at a time, so that a large file is never held whole."""
    for start in range(0, len(tokens), ROWS_PER_PIECE):
        yield tokens[start : start + ROWS_PER_PIECE]


def first_batches(tokens: PackedTokens, num_sequences: int, batch_size: int) -> Iterator[Tensor]:
    """Yield the first rows in order, all of them where there are fewer than asked for.

    Yields:
        x0, int64 [batch, length]; the last batch may be smaller than `batch_size`.
    """
    num_rows = min(num_sequences, len(tokens))
    for start in range(0, num_rows, batch_size):
        yield torch.from_numpy(tokens.stored(slice(start, min(start + batch_size, num_rows))).astype(np.int64))
