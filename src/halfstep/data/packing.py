"""Documents to packed tokens: split, tokenize, concatenate, cut, and write as they come."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from halfstep.errors import MachineFault, UserError, one_line
from halfstep.files import read_json, storage_faults_named, write_json

if TYPE_CHECKING:
    from datasets import Dataset
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

Ids = NDArray[np.unsignedinteger[Any]]
"""Token ids in the type of the file, [num_tokens]."""

BYTES_PER_BATCH = 4_000_000
"""Text that is tokenized at once; its tokens are what is held in memory."""

MAX_DOCUMENTS_PER_BATCH = 1000

BATCHES_PER_WORKER = 64
"""What processes tokenize before their tokens are gathered, and can be gone on after."""

SECONDS_BETWEEN_NOTES = 5.0

AT_WORK = "at-work-"
"""Each process keeps a file of this name and its number while it tokenizes a batch, which outlives the process."""


@dataclass(frozen=True)
class PackedSize:
    """What a split became; `num_tokens` counts the documents' tokens with an EOS each, before the cut."""

    num_documents: int
    num_tokens: int
    num_sequences: int


def split_documents(documents: Dataset, valid_fraction: float, *, seed: int) -> tuple[Dataset, Dataset]:
    """Choose whole documents for validation; both splits keep the documents' order.

    Returns:
        the training and the validation documents, at least one each.
    Raises:
        UserError: there are fewer than two documents.
    """
    num_documents = len(documents)
    if num_documents < 2:
        raise UserError(
            f"the corpus has {num_documents} document, but training and validation need one each; to split"
            " .txt files into documents at blank lines: dvc exp run -S data.split_on_blank_lines=1"
        )
    num_valid = min(max(round(valid_fraction * num_documents), 1), num_documents - 1)
    order = np.random.default_rng(seed).permutation(num_documents)
    return documents.select(np.sort(order[num_valid:])), documents.select(np.sort(order[:num_valid]))


def pack_documents(
    documents: Dataset,
    tokenizer: PreTrainedTokenizerFast,
    path: Path,
    *,
    context_length: int,
    num_workers: int,
    scratch: Path,
    on_documents: Callable[[int, str], None],
) -> PackedSize:
    """Write documents as rows of tokens: joined with an EOS each, cut, every chunk as `[BOS] chunk [EOS]`.

    The last chunk is dropped where it is not full. Text that spells a special token is tokenized as the text
    it is. What is written does not depend on `num_workers`, nor on whether the work was cut off on the way: how far
    it came lies beside `path`, and a second call goes on from there.

    Args:
        documents: column "text"; a null is no document. The same ones in every call for one `path`.
        tokenizer: with BOS and EOS and the mask token as its last id.
        path: `.npy` file to write, uint16 if the ids fit and else uint32, [num_sequences, context_length].
        context_length: tokens per row, BOS and EOS included.
        num_workers: processes that tokenize; with 1, the tokenizer's own threads do.
        scratch: folder for the workers' results.
        on_documents: told the number of documents done and a note, now and then.
    Raises:
        UserError: the documents do not fill one row.
        MachineFault: a process died.
    """
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32)
    num_workers = min(num_workers, len(documents))
    documents_per_batch = _documents_per_batch(documents)
    with _Rows(path, context_length, tokenizer.bos_token_id, tokenizer.eos_token_id, dtype) as rows:
        while rows.num_documents < len(documents):
            start = rows.num_documents
            if num_workers == 1:
                end = min(start + documents_per_batch, len(documents))
                batches = _encode_alone(documents.select(range(start, end)), tokenizer, dtype)
            else:
                end = min(start + documents_per_batch * BATCHES_PER_WORKER * num_workers, len(documents))
                piece = documents.select(range(start, end))
                folder = scratch / f"{path.stem}-{start}"
                batches = _encode_in_processes(piece, tokenizer, dtype, num_workers, documents_per_batch, folder, start)
            for num_documents, tokens in batches:
                rows.append(tokens, num_documents)
                on_documents(rows.num_documents, "")
            rows.keep()
        size = PackedSize(len(documents), rows.num_tokens, rows.num_sequences)
    if not size.num_sequences:
        raise UserError(
            f"the {path.stem} split has {size.num_tokens} tokens in {len(documents)} documents, but one context"
            f" needs {context_length - 2}: give more text, or set data.context_length below {context_length}"
            + (", or set a larger data.valid_fraction" if path.stem == "valid" else "")
        )
    return size


def _encode_alone(
    documents: Dataset, tokenizer: PreTrainedTokenizerFast, dtype: np.dtype[Any]
) -> Iterator[tuple[int, Ids]]:
    """Yield (number of documents, their tokens) in order."""
    texts = documents["text"][:]
    yield len(texts), np.concatenate(_encode(texts, tokenizer.backend_tokenizer, tokenizer.eos_token_id, dtype))


def _encode_in_processes(
    documents: Dataset,
    tokenizer: PreTrainedTokenizerFast,
    dtype: np.dtype[Any],
    num_workers: int,
    documents_per_batch: int,
    scratch: Path,
    first: int,
) -> Iterator[tuple[int, Ids]]:
    """Yield the same as `_encode_alone`; processes write their tokens to `scratch`, which is then read.

    `first` is the number of the first of these documents among all, for messages.
    """
    from datasets import Features, List, Value
    from multiprocess import TimeoutError

    backend, eos_token_id = tokenizer.backend_tokenizer, tokenizer.eos_token_id

    def encode_batch(texts: list[str | None], indices: list[int], rank: int) -> dict[str, list[Ids]]:
        # Threads inside the processes would compete for the same cores, and do not survive the fork.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        at_work = scratch / f"{AT_WORK}{rank}"
        at_work.write_text(
            f"process {rank + 1} of {num_workers} at documents {first + indices[0]} to {first + indices[-1]}"
        )
        encoded = {"token_ids": _encode(texts, backend, eos_token_id, dtype)}
        at_work.unlink()
        return encoded

    scratch.mkdir(parents=True)
    try:
        encoded = documents.map(
            encode_batch,
            with_indices=True,
            with_rank=True,
            input_columns=["text"],
            batched=True,
            batch_size=documents_per_batch,
            writer_batch_size=documents_per_batch,
            remove_columns=documents.column_names,
            features=Features({"token_ids": List(Value(dtype.name))}),
            num_proc=min(num_workers, len(documents)),
            cache_file_name=str(scratch / "tokens.arrow"),
            # The folder is new, so there is nothing to find; a fixed name spares hashing the function.
            load_from_cache_file=False,
            new_fingerprint=f"tokens-of-{scratch.name}",
            desc=f"tokenizing from document {first}",
        )
    except TimeoutError as error:
        # When a signal stops it, `map` asks its processes for their results once more and hides the signal's
        # exception behind theirs.
        raise (error.__context__ or error) from None
    except OSError:
        with storage_faults_named(scratch):
            raise
    except RuntimeError as error:
        if "abruptly died" not in str(error):
            raise
        at_work = sorted(scratch.glob(f"{AT_WORK}*"))
        where = "; at work: " + ", ".join(path.read_text() for path in at_work) if at_work else ""
        raise MachineFault(
            f"tokenizing from document {first}: one of the {num_workers} processes was ended from outside, perhaps for"
            f" want of memory{where}. The same command goes on from there, with fewer processes if it happens again:"
            f" -S data.num_workers={max(num_workers // 2, 1)}"
        ) from None
    for table in encoded.with_format("arrow").iter(documents_per_batch):
        ids = [column.flatten().to_numpy(zero_copy_only=False) for column in table["token_ids"].chunks]
        yield len(table), np.concatenate(ids)
    shutil.rmtree(scratch, ignore_errors=True)


def _documents_per_batch(documents: Dataset) -> int:
    """As many documents as make up about `BYTES_PER_BATCH`, judged by the mean of the whole corpus."""
    mean_bytes = max(documents.data.nbytes / max(documents.data.num_rows, 1), 1.0)
    return min(max(int(BYTES_PER_BATCH / mean_bytes), 1), MAX_DOCUMENTS_PER_BATCH)


def _encode(texts: list[str | None], backend: Tokenizer, eos_token_id: int, dtype: np.dtype[Any]) -> list[Ids]:
    """Tokenize documents, each followed by EOS; a null or blank document gives nothing."""
    # Text that spells a special token stays text. The flag is set here because pickling loses it.
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    texts = [text if text and not text.isspace() else None for text in texts]
    try:
        encodings = iter(backend.encode_batch_fast([text for text in texts if text], add_special_tokens=False))
    # The library raises plain exceptions, as where a word is not known and there is no token for that.
    except Exception as error:
        raise UserError(
            f"the tokenizer cannot tokenize the corpus ({one_line(error)}): set data.tokenizer.source to another"
        ) from None
    return [np.array([*next(encodings).ids, eos_token_id] if text else [], dtype=dtype) for text in texts]


class _Rows:
    """The file of rows as it grows, and how far it is: a stream of tokens goes in, rows come out.

    NumPy pads the header of a `.npy` file so that its first dimension can grow in place: it is written once
    for no rows and, when their number is known, again.

    Attributes:
        num_documents, num_tokens, num_sequences: written so far.
    """

    def __init__(
        self, path: Path, context_length: int, bos_token_id: int, eos_token_id: int, dtype: np.dtype[Any]
    ) -> None:
        self.num_documents = self.num_tokens = self.num_sequences = 0
        self._rest = np.empty(0, dtype)
        self._context_length, self._dtype = context_length, dtype
        self._bos_token_id, self._eos_token_id = bos_token_id, eos_token_id
        self._progress_path = path.with_suffix(".progress.json")
        self._kept_at = time.monotonic()
        is_begun = self._progress_path.is_file()
        self._file = path.open("rb+" if is_begun else "wb")
        _write_header(self._file, (0, context_length), dtype)
        if is_begun:
            progress = read_json(self._progress_path)
            self.num_documents, self.num_tokens = progress["num_documents"], progress["num_tokens"]
            self.num_sequences = progress["num_sequences"]
            self._rest = np.array(progress["rest"], dtype)
            # What was written after progress was last kept is written again, the same.
            self._file.seek(self.num_sequences * context_length * dtype.itemsize, os.SEEK_CUR)

    def __enter__(self) -> _Rows:
        return self

    def append(self, tokens: Ids, num_documents: int) -> None:
        """Add the tokens of some more documents."""
        chunk_length = self._context_length - 2
        stream = np.concatenate([self._rest, tokens])
        num_rows = len(stream) // chunk_length
        rows = np.empty((num_rows, self._context_length), self._dtype)
        rows[:, 0] = self._bos_token_id
        rows[:, -1] = self._eos_token_id
        rows[:, 1:-1] = stream[: num_rows * chunk_length].reshape(num_rows, chunk_length)
        self._file.write(rows.tobytes())
        self.num_documents += num_documents
        self.num_tokens += len(tokens)
        self.num_sequences += num_rows
        self._rest = stream[num_rows * chunk_length :]

    def keep(self) -> None:
        """Note how far the file is, now and then; the documents before are not read again by the next call."""
        if time.monotonic() - self._kept_at < SECONDS_BETWEEN_NOTES:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        progress = {
            "num_documents": self.num_documents,
            "num_tokens": self.num_tokens,
            "num_sequences": self.num_sequences,
            "rest": self._rest.tolist(),
        }
        write_json(self._progress_path, progress)
        self._kept_at = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        if kind is None:
            end = self._file.tell()
            self._file.seek(0)
            _write_header(self._file, (self.num_sequences, self._context_length), self._dtype)
            self._file.seek(end)
        self._file.close()


def _write_header(file: Any, shape: tuple[int, int], dtype: np.dtype[Any]) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
