"""Batches: every row once per epoch, a pure function of seed and step, seekable."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from halfstep.data.tokens import first_batches, load_tokens, token_batches, vocab_size_of
from halfstep.errors import UserError
from halfstep.files import write_json

ROWS = np.arange(10, dtype=np.uint16)[:, None] * np.ones(3, dtype=np.uint16)


def batches(batch_size: int, num: int, *, seed: int = 0, start_step: int = 0, **options: slice) -> list[torch.Tensor]:
    return list(islice(token_batches(ROWS, batch_size, seed=seed, start_step=start_step, **options), num))


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 10, 23])
def test_every_row_comes_once_per_epoch(batch_size: int) -> None:
    rows = torch.cat(batches(batch_size, 10))[:, 0]
    for epoch in rows[: len(rows) // 10 * 10].view(-1, 10):
        assert sorted(epoch.tolist()) == list(range(10))


@pytest.mark.parametrize("start_step", [1, 2, 3, 17])
def test_starting_late_gives_the_same_batches(start_step: int) -> None:
    late = batches(4, 5, start_step=start_step)
    whole = batches(4, start_step + 5)[start_step:]
    assert all(torch.equal(a, b) for a, b in zip(late, whole, strict=True))


def test_ranks_read_their_rows_of_the_same_batches() -> None:
    whole = batches(7, 9)
    parts = [batches(7, 9, rows=slice(rank, None, 3)) for rank in range(3)]
    for batch, *of_ranks in zip(whole, *parts, strict=True):
        assert [len(part) for part in of_ranks] == [3, 2, 2]
        assert all(torch.equal(batch[rank::3], part) for rank, part in enumerate(of_ranks))


def test_order_depends_on_seed_and_epoch() -> None:
    first, second = batches(10, 2)
    assert not torch.equal(first, second)
    assert not torch.equal(first, batches(10, 1, seed=1)[0])
    assert torch.equal(first, batches(10, 1)[0])


def test_batches_are_int64_copies() -> None:
    batch = batches(4, 1)[0]
    assert batch.dtype == torch.int64
    batch.zero_()
    assert ROWS.max() == 9


@pytest.mark.parametrize(("num_sequences", "sizes"), [(5, [4, 1]), (8, [4, 4]), (99, [4, 4, 2])])
def test_first_batches_are_the_first_rows_with_the_last_part(num_sequences: int, sizes: list[int]) -> None:
    found = list(first_batches(ROWS, num_sequences, 4))
    assert [len(batch) for batch in found] == sizes
    assert torch.cat(found)[:, 0].tolist() == list(range(sum(sizes)))


def test_tokens_are_mapped_and_read_back(tmp_path: Path) -> None:
    np.save(tmp_path / "train.npy", ROWS)
    tokens = load_tokens(tmp_path / "train.npy")
    assert isinstance(tokens, np.memmap)
    assert np.array_equal(tokens, ROWS)


def test_missing_tokens_name_the_stage(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.npy is not there.*prepare"):
        load_tokens(tmp_path / "train.npy")


@pytest.mark.parametrize("array", [ROWS[0], ROWS.astype(np.int64), ROWS[:0]])
def test_other_arrays_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "train.npy", array)
    with pytest.raises(UserError, match=r"shape .*dvc repro -f prepare"):
        load_tokens(tmp_path / "train.npy")


def test_broken_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr'")
    with pytest.raises(UserError, match="is not a file of tokens"):
        load_tokens(tmp_path / "train.npy")


def test_vocab_size_is_the_manifests(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.json is not there"):
        vocab_size_of(tmp_path)
    write_json(tmp_path / "manifest.json", {"vocab_size": 50258})
    assert vocab_size_of(tmp_path) == 50258
    write_json(tmp_path / "manifest.json", {})
    with pytest.raises(UserError, match="does not say vocab_size"):
        vocab_size_of(tmp_path)


def _prepared(folder: Path) -> Path:
    np.save(folder / "train.npy", ROWS)
    write_json(folder / "manifest.json", {"context_length": 3, "train": {"num_sequences": 10}})
    return folder / "train.npy"


def test_tokens_that_changed_since_they_were_counted_are_noticed(tmp_path: Path) -> None:
    path = _prepared(tmp_path)
    assert np.array_equal(load_tokens(path), ROWS)
    np.save(path, ROWS[:9])
    with pytest.raises(UserError, match=r"9 sequences of 3 tokens.*counts 10 of 3: it changed since.*-f prepare"):
        load_tokens(path)
    np.save(path, np.zeros((10, 4), np.uint16))
    with pytest.raises(UserError, match="10 sequences of 4 tokens"):
        load_tokens(path)


def test_tokens_with_bytes_beyond_their_rows_are_noticed(tmp_path: Path) -> None:
    path = _prepared(tmp_path)
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match="in 64 bytes"):
        load_tokens(path)
