"""Documents to packed tokens: split, tokenize, concatenate, cut, and write shard after shard as they come."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from halfstep.data.texts.encoding import Batch, as_rows, encode_batches, id_type
from halfstep.data.tokenizer import vocab_size_of
from halfstep.data.tokens.manifest import PackedSplit, Shard
from halfstep.run.console import console
from halfstep.run.errors import UserError
from halfstep.run.files import file_hash, read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from halfstep.data.packing.documents import Documents

BYTES_PER_PROCESS = 16_000_000
"""Text for which a further process is worth its start."""

SECONDS_BETWEEN_NOTES = 5.0

RowsOf = Callable[[list[str | None], "PreTrainedTokenizerFast", int], NDArray[np.int32]]


def split_documents(num_documents: int, valid_fraction: float, *, seed: int) -> NDArray[np.bool_]:
    """Choose whole documents for validation.

    Returns:
        which documents are for validation, [num_documents]: at least one is, and one is not.
    Raises:
        UserError: there are fewer than two documents.
    """
    if num_documents < 2:
        raise UserError(
            f"the corpus has {num_documents} document, but training and validation need one each; to split"
            " .txt files into documents at blank lines: dvc exp run -S data.split_on_blank_lines=1"
        )
    num_valid = min(max(round(valid_fraction * num_documents), 1), num_documents - 1)
    is_valid = np.zeros(num_documents, np.bool_)
    is_valid[np.random.default_rng(seed).permutation(num_documents)[:num_valid]] = True
    return is_valid


def chosen_batches(documents: Documents, is_chosen: NDArray[np.bool_], start: int = 0) -> Iterator[Batch]:
    """The chosen ones of some documents, in batches, from document `start` on."""
    for first, texts in documents.batches(start):
        numbers = range(first, first + len(texts))
        yield numbers, [text for number, text in zip(numbers, texts, strict=True) if is_chosen[number]]


def pack_documents(
    documents: Documents,
    is_chosen: NDArray[np.bool_],
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    name: str,
    *,
    context_length: int,
    tokens_per_shard: int,
    num_workers: int | None,
    on_documents: Callable[[int, str], None],
    rows_of: RowsOf | None = None,
) -> PackedSplit:
    """Write documents as rows of tokens: joined with an EOS each, cut, every chunk as `[BOS] chunk [EOS]`.

    The last chunk is dropped where it is not full. Text that spells a special token is tokenized as the text
    it is. What is written does not depend on `num_workers`, nor on whether the work was cut off on the way: how far
    it came lies beside the shards, and a second call goes on from there.

    Args:
        documents: a null is no document. The same ones in every call for one `folder` and `name`.
        is_chosen: the documents that are packed, [number of documents].
        tokenizer: with BOS, EOS and the mask token as its last id.
        folder, name: for shards `name-00000.npy` and so on, uint16 if the ids fit and else uint32.
        context_length: tokens per row, BOS and EOS included.
        num_workers: processes that tokenize, fewer for little text; 1 leaves it to the tokenizer's own threads, None
            takes as many as there are cores.
        on_documents: called with the number of documents done and a note, now and then.
        rows_of: of a corpus whose documents are rows of their own, `rows`, see `halfstep.data.corpora`.
    Raises:
        UserError: the documents do not fill one row.
        MachineFault: a process died.
    """
    dtype = np.dtype("int32" if rows_of else id_type(vocab_size_of(tokenizer)))
    num_chosen = int(np.count_nonzero(is_chosen))
    num_bytes = documents.num_bytes * num_chosen / max(len(documents), 1)
    num_processes = max(min(num_workers or num_cores(), int(num_bytes // BYTES_PER_PROCESS)), 1)
    with closing(_Shards(folder, name, context_length, tokens_per_shard, tokenizer, dtype)) as shards:
        done, started, num_tokens_before = shards.done, time.monotonic(), shards.done.num_tokens
        batches = chosen_batches(documents, is_chosen, done.next_document)
        encoding = (
            ((batch, rows_of(batch[1], tokenizer, context_length)) for batch in batches)
            if rows_of
            else encode_batches(batches, tokenizer.backend_tokenizer, tokenizer.eos_token_id, dtype, num_processes)
        )
        with closing(encoding) as encoded:
            for (numbers, texts), ids in encoded:
                shards.append(ids, len(texts), numbers.stop)
                rate = (done.num_tokens - num_tokens_before) / max(time.monotonic() - started, 1e-9)
                on_documents(done.num_documents, f"{rate:.3g} tokens/s")
        return shards.finish()


class Progress(BaseModel):
    """How far a split is; `num_rows` are those of the open shard, `rest` the tokens that fill no row yet.

    Attributes:
        next_document: the one to go on with.
        shards: those that are full.
    """

    num_documents: int = 0
    num_tokens: int = 0
    next_document: int = 0
    shards: list[Shard] = []
    num_rows: int = 0
    rest: list[int] = []


def num_documents_packed(folder: Path, name: str) -> int:
    """How many documents an earlier call of `pack_documents` had noted as done."""
    return _read_progress(folder, name).num_documents


def _read_progress(folder: Path, name: str) -> Progress:
    path = _progress_path(folder, name)
    return Progress.model_validate(read_json(path)) if path.is_file() else Progress()


def _progress_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.progress.json"


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Shards:
    """The shards of a split as they grow, and how far they are: a stream of tokens goes in, rows come out.

    A shard that is full is hashed and never opened for writing again, so that it may have a second name elsewhere.
    NumPy pads the header of a `.npy` file so that its first dimension can grow in place: it is written once for no
    rows and, when their number is known, again.

    Attributes:
        done: how far they are.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        context_length: int,
        tokens_per_shard: int,
        tokenizer: PreTrainedTokenizerFast,
        dtype: np.dtype[Any],
    ) -> None:
        self._folder, self._name, self._tokenizer = folder, name, tokenizer
        self._context_length, self._dtype = context_length, dtype
        self._rows_per_shard = max(tokens_per_shard // context_length, 1)
        self._file: IO[bytes] | None = None
        self._noted_at = time.monotonic()
        self.done = self._unchanged_progress()
        self._rest = np.array(self.done.rest, dtype)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, ids: NDArray[np.integer[Any]], num_documents: int, next_document: int) -> None:
        """Add the tokens of some more documents, a stream of them or whole rows."""
        rows = ids
        if ids.ndim == 1:
            rows, self._rest = as_rows(np.concatenate([self._rest, ids]), self._context_length, self._tokenizer)
        while len(rows):
            room = self._rows_per_shard - self.done.num_rows
            self._write(rows[:room])
            rows = rows[room:]
        self.done.num_documents += num_documents
        self.done.num_tokens += ids.size
        self.done.next_document = next_document
        if time.monotonic() - self._noted_at >= SECONDS_BETWEEN_NOTES:
            self._note()

    def finish(self) -> PackedSplit:
        """Close the last shard; what was not a full row is dropped.

        Raises:
            UserError: there is no row.
        """
        done = self.done
        if done.num_rows:
            self._finish_shard()
        if not done.shards and self._dtype.kind == "i":
            raise UserError(
                f"the {self._name} split has {done.num_documents} prompts, none of which is shorter than"
                f" data.context_length {self._context_length}: set a larger one"
            )
        if not done.shards:
            raise UserError(
                f"the {self._name} split has {done.num_tokens} tokens in {done.num_documents} documents, but one"
                f" context needs {self._context_length - 2}: give more text, or set data.context_length below"
                f" {self._context_length}" + (", or set a larger data.valid_fraction" if self._name == "valid" else "")
            )
        self._note()
        return PackedSplit(
            num_documents=done.num_documents,
            num_tokens=done.num_tokens,
            num_sequences=sum(shard.num_sequences for shard in done.shards),
            shards=tuple(done.shards),
        )

    @property
    def _path(self) -> Path:
        """Of the open shard."""
        return self._folder / f"{self._name}-{len(self.done.shards):05}.npy"

    def _write(self, rows: NDArray[np.integer[Any]]) -> None:
        """Add rows to the open shard, which has room for them."""
        self._opened().write(rows.tobytes())
        self.done.num_rows += len(rows)
        if self.done.num_rows == self._rows_per_shard:
            self._finish_shard()

    def _opened(self) -> IO[bytes]:
        """The open shard, at its end as noted; what was written after that is written again, the same."""
        if self._file is None:
            if not self.done.num_rows:
                # A new file, should the name be another's too.
                self._path.unlink(missing_ok=True)
            self._file = self._path.open("rb+" if self.done.num_rows else "xb")
            self._write_header(self._file, 0)
            self._file.seek(self.done.num_rows * self._context_length * self._dtype.itemsize, os.SEEK_CUR)
        return self._file

    def _finish_shard(self) -> None:
        file, path = self._opened(), self._path
        file.seek(0)
        self._write_header(file, self.done.num_rows)
        self._sync()
        file.close()
        self._file = None
        num_bytes, sha256 = path.stat().st_size, file_hash(path)
        shard = Shard(file=path.name, num_sequences=self.done.num_rows, num_bytes=num_bytes, sha256=sha256)
        self.done.shards.append(shard)
        self.done.num_rows = 0

    def _note(self) -> None:
        """Note how far the shards are; the documents before are not read again by the next process."""
        self._sync()
        self.done.rest = self._rest.tolist()
        write_json(_progress_path(self._folder, self._name), self.done.model_dump())
        self._noted_at = time.monotonic()

    def _sync(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def _write_header(self, file: IO[bytes], num_rows: int) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (num_rows, self._context_length),
        }
        np.lib.format.write_array_header_1_0(file, header)

    def _unchanged_progress(self) -> Progress:
        """What an earlier process noted; nothing where a shard is no longer what it was then."""
        done = _read_progress(self._folder, self._name)
        hashes: dict[str, str | None] = {shard.file: shard.sha256 for shard in done.shards}
        if done.num_rows:
            hashes[f"{self._name}-{len(hashes):05}.npy"] = None
        for name, known in hashes.items():
            path = self._folder / name
            if not path.is_file() or (known and file_hash(path) != known):
                line = f"{path} changed since it was written: {self._name} is tokenized again"
                console.print(line, style="yellow", markup=False, soft_wrap=True)
                return Progress()
        return done
