"""Documents to packed tokens: split, tokenize, concatenate, cut, and write as they come."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from halfstep.errors import UserError, one_line

if TYPE_CHECKING:
    from datasets import Dataset
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

Ids = NDArray[np.unsignedinteger[Any]]
"""Token ids in the type of the file, [num_tokens]."""

BYTES_PER_BATCH = 4_000_000
"""Text that is tokenized at once; its tokens are what is held in memory."""

MAX_DOCUMENTS_PER_BATCH = 1000


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
    it is. What is written does not depend on `num_workers`.

    Args:
        documents: column "text"; a null is no document.
        tokenizer: with BOS and EOS and the mask token as its last id.
        path: `.npy` file to write, uint16 if the ids fit and else uint32, [num_sequences, context_length].
        context_length: tokens per row, BOS and EOS included.
        num_workers: processes that tokenize; with 1, the tokenizer's own threads do.
        scratch: folder for the workers' results.
        on_documents: told the number of documents done and a note, now and then.
    Raises:
        UserError: the documents do not fill one row.
    """
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32)
    num_workers = min(num_workers, len(documents))
    encode = _encode_alone if num_workers == 1 else _encode_in_processes
    num_tokens, num_sequences = _write_rows(
        encode(documents, tokenizer, dtype, num_workers, scratch / path.stem, on_documents),
        path,
        context_length=context_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype=dtype,
    )
    if not num_sequences:
        raise UserError(
            f"the {path.stem} split has {num_tokens} tokens in {len(documents)} documents, but one context"
            f" needs {context_length - 2}: give more text, or set data.context_length below {context_length}"
            + (", or set a larger data.valid_fraction" if path.stem == "valid" else "")
        )
    return PackedSize(len(documents), num_tokens, num_sequences)


def _encode_alone(
    documents: Dataset,
    tokenizer: PreTrainedTokenizerFast,
    dtype: np.dtype[Any],
    num_workers: int,
    scratch: Path,
    on_documents: Callable[[int, str], None],
) -> Iterator[Ids]:
    """Yield the documents' tokens in order, several documents at a time."""
    num_done = 0
    for batch in documents.iter(_documents_per_batch(documents)):
        yield np.concatenate(_encode(batch["text"], tokenizer.backend_tokenizer, tokenizer.eos_token_id, dtype))
        num_done += len(batch["text"])
        on_documents(num_done, "")


def _encode_in_processes(
    documents: Dataset,
    tokenizer: PreTrainedTokenizerFast,
    dtype: np.dtype[Any],
    num_workers: int,
    scratch: Path,
    on_documents: Callable[[int, str], None],
) -> Iterator[Ids]:
    """Yield the same as `_encode_alone`; processes write their tokens to `scratch`, which is then read."""
    from datasets import Features, List, Value
    from multiprocess import TimeoutError

    backend, eos_token_id = tokenizer.backend_tokenizer, tokenizer.eos_token_id
    documents_per_batch = _documents_per_batch(documents)

    def encode_batch(texts: list[str | None]) -> dict[str, list[Ids]]:
        # Threads inside the processes would compete for the same cores, and do not survive the fork.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        return {"token_ids": _encode(texts, backend, eos_token_id, dtype)}

    scratch.mkdir(parents=True)
    try:
        encoded = documents.map(
            encode_batch,
            input_columns=["text"],
            batched=True,
            batch_size=documents_per_batch,
            writer_batch_size=documents_per_batch,
            remove_columns=documents.column_names,
            features=Features({"token_ids": List(Value(dtype.name))}),
            num_proc=num_workers,
            cache_file_name=str(scratch / "tokens.arrow"),
            # The folder is new, so there is nothing to find; a fixed name spares hashing the function.
            load_from_cache_file=False,
            new_fingerprint=f"tokens-of-{scratch.name}",
            desc=f"tokenizing {scratch.name}",
        )
    except TimeoutError as error:
        # When a signal stops it, `map` asks its processes for their results once more and hides the signal's
        # exception behind theirs.
        raise (error.__context__ or error) from None
    num_done = 0
    for table in encoded.with_format("arrow").iter(documents_per_batch):
        for column in table["token_ids"].chunks:
            yield column.flatten().to_numpy(zero_copy_only=False)
        num_done += len(table)
        on_documents(num_done, "")


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


def _write_rows(
    batches: Iterable[Ids],
    path: Path,
    *,
    context_length: int,
    bos_token_id: int,
    eos_token_id: int,
    dtype: np.dtype[Any],
) -> tuple[int, int]:
    """Cut a stream of tokens into rows and write them as they come; returns (num_tokens, num_sequences).

    NumPy pads the header of a `.npy` file so that its first dimension can grow in place: it is written once
    for no rows and, when their number is known, again.
    """
    chunk_length = context_length - 2
    num_tokens = num_sequences = 0
    rest = np.empty(0, dtype)
    with path.open("wb") as file:
        _write_header(file, (0, context_length), dtype)
        header_size = file.tell()
        for tokens in batches:
            num_tokens += len(tokens)
            stream = np.concatenate([rest, tokens])
            num_rows = len(stream) // chunk_length
            rows = np.empty((num_rows, context_length), dtype)
            rows[:, 0] = bos_token_id
            rows[:, -1] = eos_token_id
            rows[:, 1:-1] = stream[: num_rows * chunk_length].reshape(num_rows, chunk_length)
            file.write(rows.tobytes())
            num_sequences += num_rows
            rest = stream[num_rows * chunk_length :]
        file.seek(0)
        _write_header(file, (num_sequences, context_length), dtype)
        assert file.tell() == header_size, "the header grew into the rows"
    return num_tokens, num_sequences


def _write_header(file: Any, shape: tuple[int, int], dtype: np.dtype[Any]) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
