"""Packing against a slow version in plain lists, at any number of processes, kills and shard sizes."""

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfstep.data.packing import shards as packing
from halfstep.data.packing.documents import Documents, store_documents
from halfstep.data.packing.shards import num_documents_packed, pack_documents, split_documents
from halfstep.data.texts import encoding
from halfstep.data.tokenizer import train_bpe_tokenizer
from halfstep.data.tokens.manifest import Split
from halfstep.run.errors import MachineFault, UserError

TEXTS = [f"Document {i} says {'very ' * (i % 5)}little.\nIt <|mask|> ends <|eos|> here." for i in range(40)]
TOKENIZER = train_bpe_tokenizer(TEXTS, 300)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that rows and shards cross the borders of batches, and there are batches for several processes."""
    monkeypatch.setattr(encoding, "CHARACTERS_PER_BATCH", 150)
    monkeypatch.setattr(packing, "BYTES_PER_PROCESS", 100)


def stored(texts: list[Any], folder: Path) -> Documents:
    folder.mkdir(exist_ok=True)
    return store_documents(texts, None, folder)


def pack(
    texts: list[Any],
    folder: Path,
    *,
    num_workers: int | None = 1,
    context_length: int = 16,
    rows_per_shard: int = 1000,
    is_chosen: Any = None,
    on_documents: Callable[[int, str], None] = lambda done, note: None,
) -> tuple[np.ndarray, Split]:
    documents = stored(texts, folder)
    split = pack_documents(
        documents,
        np.ones(len(texts), np.bool_) if is_chosen is None else is_chosen,
        TOKENIZER,
        folder,
        "train",
        context_length=context_length,
        tokens_per_shard=rows_per_shard * context_length,
        num_workers=num_workers,
        on_documents=on_documents,
    )
    return np.concatenate([np.load(folder / shard.file) for shard in split.shards]), split


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.npy"))}


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


@pytest.mark.parametrize(
    ("context_length", "rows_per_shard"), [(3, 200), (16, 1000), (16, 7), (101, 1), (101, 2), (101, 1000)]
)
def test_rows_are_those_of_the_slow_version(tmp_path: Path, context_length: int, rows_per_shard: int) -> None:
    tokens, split = pack(TEXTS, tmp_path, context_length=context_length, rows_per_shard=rows_per_shard)
    rows, num_tokens = packed_slowly(TEXTS, context_length)
    assert tokens.tolist() == rows
    assert tokens.dtype == np.uint16
    assert (split.num_documents, split.num_tokens, split.num_sequences) == (40, num_tokens, len(rows))
    start = 0
    for number, shard in enumerate(split.shards):
        content = (tmp_path / shard.file).read_bytes()
        part = rows[start : start + rows_per_shard]
        assert shard.file == f"train-{number:05}.npy"
        assert shard.num_sequences == len(part)
        assert (shard.num_bytes, shard.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        start += rows_per_shard
    assert start >= len(rows)


def test_processes_write_the_same_files(tmp_path: Path) -> None:
    _, alone = pack(TEXTS, tmp_path / "one", rows_per_shard=7)
    _, together = pack(TEXTS, tmp_path / "three", rows_per_shard=7, num_workers=3)
    assert alone == together
    assert shards(tmp_path / "one") == shards(tmp_path / "three")


def test_only_the_chosen_documents_are_packed(tmp_path: Path) -> None:
    is_chosen = np.arange(40) % 3 == 1
    tokens, split = pack(TEXTS, tmp_path, is_chosen=is_chosen)
    assert tokens.tolist() == packed_slowly(TEXTS[1::3], 16)[0]
    assert split.num_documents == len(TEXTS[1::3])


def test_text_that_spells_a_special_token_stays_text(tmp_path: Path) -> None:
    tokens, split = pack(TEXTS, tmp_path)
    inside = tokens[:, 1:-1]
    assert not (inside == TOKENIZER.mask_token_id).any()
    assert not (inside == TOKENIZER.bos_token_id).any()
    assert split.num_documents - 1 <= (inside == TOKENIZER.eos_token_id).sum() <= split.num_documents
    text = TOKENIZER.decode([token for row in inside.tolist() for token in row if token != TOKENIZER.eos_token_id])
    assert text == "".join(TEXTS)[: len(text)]


def test_nulls_and_blanks_are_no_documents(tmp_path: Path) -> None:
    tokens, _ = pack([TEXTS[0], None, " \n", "", TEXTS[1]], tmp_path)
    assert tokens.tolist() == packed_slowly(TEXTS[:2], 16)[0]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_large_vocabularies_need_uint32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int) -> None:
    monkeypatch.setattr("halfstep.data.packing.shards.vocab_size_of", lambda tokenizer: 2**16 + 1)
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
def test_as_many_documents_as_asked_for_are_for_validation(num_documents: int, fraction: float, num_valid: int) -> None:
    is_valid = split_documents(num_documents, fraction, seed=0)
    assert is_valid.shape == (num_documents,)
    assert is_valid.sum() == num_valid


def test_the_split_is_the_one_that_results_rest_on() -> None:
    order = np.random.default_rng(5).permutation(40)
    assert np.flatnonzero(split_documents(40, 0.2, seed=5)).tolist() == sorted(order[:8])


def test_one_document_cannot_be_split() -> None:
    with pytest.raises(UserError, match=r"has 1 document.*data\.split_on_blank_lines=1"):
        split_documents(1, 0.1, seed=0)


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("at", ["_write", "_note", "_finish_shard"])
def test_cut_off_anywhere_and_called_again_it_writes_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Killed in every call a little later, before and after a write, a note or the end of a shard."""
    monkeypatch.setattr(packing, "SECONDS_BETWEEN_NOTES", 0.0)
    _, whole = pack(TEXTS, tmp_path / "whole", rows_per_shard=7)
    original = getattr(packing._Shards, at)
    calls_left = is_before = 0

    def step(self: Any, *arguments: Any) -> Any:
        nonlocal calls_left
        calls_left -= 1
        if calls_left < 0 and is_before:
            raise Killed
        result = original(self, *arguments)
        if self._file is not None:
            self._file.flush()
        if calls_left < 0:
            raise Killed
        return result

    monkeypatch.setattr(packing._Shards, at, step)
    num_kills, split = 0, None
    while split is None:
        calls_left, is_before = num_kills // 2 % 5, num_kills % 2
        try:
            _, split = pack(TEXTS, tmp_path / "cut", rows_per_shard=7)
        except Killed:
            num_kills += 1
    assert num_kills > 4
    assert split == whole
    assert shards(tmp_path / "cut") == shards(tmp_path / "whole")


def test_what_is_done_is_not_tokenized_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "SECONDS_BETWEEN_NOTES", 0.0)

    def stop(done: int, note: str) -> None:
        assert note.endswith("tokens/s")
        if done > 20:
            raise Killed

    with pytest.raises(Killed):
        pack(TEXTS, tmp_path, rows_per_shard=7, on_documents=stop)
    done = num_documents_packed(tmp_path, "train")
    assert 20 < done < 40
    encoded: list[str] = []
    encode = encoding.encode
    monkeypatch.setattr(encoding, "encode", lambda texts, *rest: (encoded.extend(texts), encode(texts, *rest))[1])
    tokens, _ = pack(TEXTS, tmp_path, rows_per_shard=7)
    assert encoded == TEXTS[done:]
    assert tokens.tolist() == packed_slowly(TEXTS, 16)[0]
    encoded.clear()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npy")}
    pack(TEXTS, tmp_path, rows_per_shard=7)
    assert encoded == []
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npy")}


def test_a_shard_that_was_damaged_meanwhile_is_not_gone_on_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens, _ = pack(TEXTS, tmp_path, rows_per_shard=7)
    damaged = tmp_path / "train-00001.npy"
    other_name = tmp_path / "of-the-cache"
    other_name.hardlink_to(damaged)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    changed = other_name.read_bytes()
    again, _ = pack(TEXTS, tmp_path, rows_per_shard=7)
    assert np.array_equal(again, tokens)
    assert "train-00001.npy changed since it was written: train is tokenized again" in capsys.readouterr().err
    assert other_name.read_bytes() == changed, "a file that others hold was written to"


@pytest.fixture
def guard() -> Iterator[None]:
    """A hang fails the test: nothing here takes a tenth of this."""

    def fail(signal_number: int, frame: object) -> None:
        raise AssertionError("tokenization hangs")

    previous = signal.signal(signal.SIGALRM, fail)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.mark.usefixtures("guard")
def test_a_process_that_is_killed_is_told_in_one_line(tmp_path: Path) -> None:
    """As the kernel does when memory is short: no exception, no farewell."""

    def kill(done: int, note: str) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(MachineFault, match=r"one of the 2 processes that tokenize was ended") as raised:
        pack(TEXTS, tmp_path, num_workers=2, on_documents=kill)
    told = str(raised.value)
    assert "\n" not in told
    assert "at work: documents " in told
    assert told.endswith("-S data.num_workers=1")


PACK_AND_DIE = """
import multiprocessing, os, sys
from pathlib import Path
import numpy as np
from halfstep.data.packing import shards as packing
from halfstep.data.packing.documents import Documents
from tokenizers import Tokenizer

class Loaded:
    backend_tokenizer = Tokenizer.from_file(sys.argv[1] + "/tokenizer/tokenizer.json")
    bos_token_id, eos_token_id = map(backend_tokenizer.token_to_id, ("<|bos|>", "<|eos|>"))

    def get_vocab(self):
        return self.backend_tokenizer.get_vocab()

def die(done, note):
    if done > 12:
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), 9)

if __name__ == "__main__":
    packing.BYTES_PER_PROCESS, packing.SECONDS_BETWEEN_NOTES = 100, 0.0
    folder = Path(sys.argv[1])
    packing.pack_documents(
        Documents(folder / "documents.arrow"), np.ones(40, np.bool_), Loaded(), folder, "train",
        context_length=16, tokens_per_shard=7 * 16, num_workers=2, on_documents=die,
    )
"""


@pytest.mark.usefixtures("guard")
def test_a_killed_command_leaves_no_process_and_what_it_did(tmp_path: Path) -> None:
    whole, _ = pack(TEXTS, tmp_path / "whole", rows_per_shard=7)
    stored(TEXTS, tmp_path / "cut")
    TOKENIZER.save_pretrained(tmp_path / "cut/tokenizer")
    script = tmp_path / "pack_and_die.py"
    script.write_text(PACK_AND_DIE)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "cut")], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    while any(is_running(pid) for pid in pids):
        time.sleep(0.05)
    assert json.loads((tmp_path / "cut/train.progress.json").read_text())["num_documents"] > 0
    tokens, _ = pack(TEXTS, tmp_path / "cut", rows_per_shard=7)
    assert np.array_equal(tokens, whole)
    assert shards(tmp_path / "cut") == shards(tmp_path / "whole")


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
