"""Packing against a slow version in plain lists, at any number of processes."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from halfstep.data import packing
from halfstep.data.packing import PackedSize, pack_documents, split_documents
from halfstep.data.tokenizer import train_bpe_tokenizer
from halfstep.errors import MachineFault, UserError

TEXTS = [f"Document {i} says {'very ' * (i % 5)}little.\nIt <|mask|> ends <|eos|> here." for i in range(40)]
TOKENIZER = train_bpe_tokenizer(TEXTS, 300)


def pack(
    texts: list[Any], folder: Path, *, num_workers: int = 1, context_length: int = 16
) -> tuple[np.ndarray, PackedSize]:
    folder.mkdir(exist_ok=True)
    size = pack_documents(
        Dataset.from_dict({"text": texts}),
        TOKENIZER,
        folder / "train.npy",
        context_length=context_length,
        num_workers=num_workers,
        scratch=Path(tempfile.mkdtemp(dir=folder)),
        on_documents=lambda num_done, note: None,
    )
    return np.load(folder / "train.npy"), size


def packed_slowly(texts: list[str], context_length: int) -> tuple[list[list[int]], int]:
    stream: list[int] = []
    for text in texts:
        ids = TOKENIZER(text, add_special_tokens=False, split_special_tokens=True).input_ids
        stream += [*ids, TOKENIZER.eos_token_id]
    rows = []
    while len(stream) - len(rows) * (context_length - 2) >= context_length - 2:
        start = len(rows) * (context_length - 2)
        chunk = stream[start : start + context_length - 2]
        rows.append([TOKENIZER.bos_token_id, *chunk, TOKENIZER.eos_token_id])
    return rows, len(stream)


@pytest.mark.parametrize("context_length", [3, 16, 101])
def test_rows_are_those_of_the_slow_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, context_length: int
) -> None:
    monkeypatch.setattr(packing, "MAX_DOCUMENTS_PER_BATCH", 7)  # so that rows cross the borders of batches
    tokens, size = pack(TEXTS, tmp_path, context_length=context_length)
    rows, num_tokens = packed_slowly(TEXTS, context_length)
    assert tokens.tolist() == rows
    assert tokens.dtype == np.uint16
    assert size == PackedSize(num_documents=40, num_tokens=num_tokens, num_sequences=len(rows))


def test_processes_write_the_same_file(tmp_path: Path) -> None:
    pack(TEXTS, tmp_path / "one")
    pack(TEXTS, tmp_path / "three", num_workers=3)
    assert (tmp_path / "one/train.npy").read_bytes() == (tmp_path / "three/train.npy").read_bytes()


def test_text_that_spells_a_special_token_stays_text(tmp_path: Path) -> None:
    tokens, size = pack(TEXTS, tmp_path)
    inside = tokens[:, 1:-1]
    assert not (inside == TOKENIZER.mask_token_id).any()
    assert not (inside == TOKENIZER.bos_token_id).any()
    assert size.num_documents - 1 <= (inside == TOKENIZER.eos_token_id).sum() <= size.num_documents
    text = TOKENIZER.decode([token for row in inside.tolist() for token in row if token != TOKENIZER.eos_token_id])
    assert text == "".join(TEXTS)[: len(text)]


def test_nulls_and_blanks_are_no_documents(tmp_path: Path) -> None:
    tokens, _ = pack([TEXTS[0], None, " \n", "", TEXTS[1]], tmp_path)
    assert tokens.tolist() == packed_slowly(TEXTS[:2], 16)[0]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_large_vocabularies_need_uint32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int) -> None:
    monkeypatch.setattr(type(TOKENIZER), "__len__", lambda self: 2**16 + 1)
    tokens, _ = pack(TEXTS, tmp_path, num_workers=num_workers)
    assert tokens.dtype == np.uint32
    assert tokens.tolist() == packed_slowly(TEXTS, 16)[0]


def test_too_little_text_says_how_much_there_is(tmp_path: Path) -> None:
    num_tokens = packed_slowly(TEXTS[:2], 16)[1]
    with pytest.raises(UserError, match=rf"{num_tokens} tokens in 2 .* needs 998: .*data\.context_length"):
        pack(TEXTS[:2], tmp_path, context_length=1000)


@pytest.mark.parametrize(
    ("num_documents", "fraction", "num_valid"), [(40, 0.1, 4), (40, 0.001, 1), (40, 0.999, 39), (2, 0.5, 1)]
)
def test_split_is_a_partition_in_order(num_documents: int, fraction: float, num_valid: int) -> None:
    documents = Dataset.from_dict({"text": [f"{i:02}" for i in range(num_documents)]})
    train, valid = (list(part["text"]) for part in split_documents(documents, fraction, seed=0))
    assert len(valid) == num_valid
    assert sorted(train + valid) == list(documents["text"])
    assert train == sorted(train)
    assert valid == sorted(valid)


def test_split_depends_on_the_seed() -> None:
    documents = Dataset.from_dict({"text": TEXTS})
    valid = [list(split_documents(documents, 0.2, seed=seed)[1]["text"]) for seed in (0, 0, 1)]
    assert valid[0] == valid[1] != valid[2]


def test_one_document_cannot_be_split() -> None:
    with pytest.raises(UserError, match=r"has 1 document.*data\.split_on_blank_lines=1"):
        split_documents(Dataset.from_dict({"text": ["one"]}), 0.1, seed=0)


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("num_workers", [1, 2])
def test_cut_off_and_called_again_it_writes_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    """Killed in every call after one more piece, with what was written since the last note left in the file."""
    monkeypatch.setattr(packing, "MAX_DOCUMENTS_PER_BATCH", 3)
    monkeypatch.setattr(packing, "BATCHES_PER_WORKER", 2)
    monkeypatch.setattr(packing, "SECONDS_BETWEEN_NOTES", 0.0)
    whole, size = pack(TEXTS, tmp_path / "whole")
    encoded: list[int] = []
    original = packing._Rows.append

    def append(rows: Any, tokens: Any, num_documents: int) -> None:
        original(rows, tokens, num_documents)
        encoded.append(num_documents)
        rows._file.flush()
        if sum(encoded) > 12:
            raise Killed

    monkeypatch.setattr(packing._Rows, "append", append)
    for _ in range(3):
        encoded.clear()
        with pytest.raises(Killed):
            pack(TEXTS, tmp_path / "cut", num_workers=num_workers)
    encoded.clear()
    tokens, resumed_size = pack(TEXTS, tmp_path / "cut", num_workers=num_workers)
    assert sum(encoded) == 40 - 3 * 12
    assert (tmp_path / "cut/train.npy").read_bytes() == (tmp_path / "whole/train.npy").read_bytes()
    assert resumed_size == size
    np.testing.assert_array_equal(tokens, whole)


@pytest.fixture
def guard() -> Iterator[None]:
    """A hang fails the test: nothing here takes a hundredth of this."""

    def fail(signal_number: int, frame: object) -> None:
        raise AssertionError("tokenization hangs")

    previous = signal.signal(signal.SIGALRM, fail)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.mark.usefixtures("guard")
@pytest.mark.parametrize("victim", [0, 25])
def test_a_process_that_is_killed_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: int
) -> None:
    """As the kernel does when memory is short: no exception, no farewell."""
    encode = packing._encode

    def encode_or_die(texts: list[str | None], *rest: Any) -> list[Any]:
        if texts[0] == TEXTS[victim]:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(texts, *rest)

    monkeypatch.setattr(packing, "_encode", encode_or_die)
    monkeypatch.setattr(packing, "MAX_DOCUMENTS_PER_BATCH", 5)
    with pytest.raises(MachineFault, match=r"from document 0: one of the 2 processes was ended") as raised:
        pack(TEXTS, tmp_path, num_workers=2)
    told = str(raised.value)
    assert "\n" not in told
    assert f"process {1 + victim // 20} of 2 at documents {victim} to {victim + 4}" in told
    assert told.endswith("-S data.num_workers=1")
    monkeypatch.undo()
    (tmp_path / "again").mkdir()
    tokens, _ = pack(TEXTS, tmp_path / "again", num_workers=2)
    assert tokens.tolist() == packed_slowly(TEXTS, 16)[0]


@pytest.mark.usefixtures("guard")
def test_a_process_without_room_on_the_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(texts: list[str | None], *rest: Any) -> list[Any]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing, "_encode", refuse)
    with pytest.raises(OSError, match="No space left") as raised:
        pack(TEXTS, tmp_path, num_workers=2)
    assert raised.value.errno == 28
    assert Path(raised.value.filename).name == "train-0"
