"""Batches: every row once per epoch, a pure function of seed and step, seekable, the same in any number of shards."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from halfstep.data.tokens import packed as tokens_module
from halfstep.data.tokens.packed import (
    PackedTokens,
    first_batches,
    load_tokens,
    token_batches,
    token_pieces,
    verify_tokens,
)
from halfstep.run.errors import UserError

ROWS = np.arange(10, dtype=np.uint16)[:, None] * np.ones(3, dtype=np.uint16)
WriteTokens = Callable[..., None]


@pytest.fixture(scope="module", params=[10, 4, 3, 1], ids="{} rows a shard".format)
def packed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, write_tokens: WriteTokens
) -> PackedTokens:
    folder = tmp_path_factory.mktemp("tokens")
    write_tokens(folder, {"train": ROWS}, rows_per_shard=request.param)
    return load_tokens(folder, "train")


def batches(
    packed: PackedTokens, batch_size: int, num: int, *, seed: int = 0, start_step: int = 0
) -> list[torch.Tensor]:
    batch = token_batches(packed, batch_size, seed=seed)
    return [batch(step) for step in range(start_step, start_step + num)]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 10, 23])
def test_every_row_comes_once_per_epoch(packed: PackedTokens, batch_size: int) -> None:
    rows = torch.cat(batches(packed, batch_size, 10))[:, 0]
    for epoch in rows[: len(rows) // 10 * 10].view(-1, 10):
        assert sorted(epoch.tolist()) == list(range(10))


@pytest.mark.parametrize("start_step", [1, 2, 3, 17])
def test_starting_late_gives_the_same_batches(packed: PackedTokens, start_step: int) -> None:
    late = batches(packed, 4, 5, start_step=start_step)
    whole = batches(packed, 4, start_step + 5)[start_step:]
    assert all(torch.equal(a, b) for a, b in zip(late, whole, strict=True))


def test_a_shard_is_used_up_before_the_next_one_begins(packed: PackedTokens) -> None:
    rows = torch.cat(batches(packed, 10, 6))[:, 0].view(6, 10)
    sizes = packed.num_rows_of_shards
    shard_of_row = np.repeat(np.arange(len(sizes)), sizes)
    for epoch in rows:
        shards = shard_of_row[epoch]
        assert np.count_nonzero(np.diff(shards)) == len(sizes) - 1
    if len(sizes) > 2:
        assert len({tuple(shard_of_row[epoch]) for epoch in rows}) > 1, "the shards come in the same order"


@pytest.mark.parametrize("seed", [0, 1, 77, 2_000_000_000, 2**32 + 5])
def test_one_shard_is_in_the_order_of_one_permutation_per_epoch(
    tmp_path: Path, write_tokens: WriteTokens, seed: int
) -> None:
    """The rule by which results were made before there were shards."""
    write_tokens(tmp_path, {"train": ROWS})
    found = torch.cat(batches(load_tokens(tmp_path, "train"), 4, 10, seed=seed))[:, 0]
    expected = np.concatenate([np.random.default_rng([seed, epoch]).permutation(10) for epoch in range(4)])
    assert found.tolist() == expected.tolist()


def test_order_depends_on_seed_and_epoch(packed: PackedTokens) -> None:
    first, second = batches(packed, 10, 2)
    assert not torch.equal(first, second)
    assert not torch.equal(first, batches(packed, 10, 1, seed=1)[0])
    assert torch.equal(first, batches(packed, 10, 1)[0])


def test_the_memory_of_the_order_is_that_of_one_shard(
    tmp_path: Path, write_tokens: WriteTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tokens(tmp_path, {"train": ROWS}, rows_per_shard=4)
    drawn: list[int] = []

    class Generator:
        def __init__(self, rng: np.random.Generator) -> None:
            self._rng = rng

        def permutation(self, size: int) -> np.ndarray:
            drawn.append(int(size))
            return self._rng.permutation(size)

    make = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: Generator(make(seed)))
    packed = load_tokens(tmp_path, "train")
    batches(packed, 1, 1, start_step=10**9)
    assert len(drawn) == 2, "the shards of the epoch, and the rows of one of them"
    assert max(drawn) <= 4


def test_batches_are_int64_copies(packed: PackedTokens) -> None:
    batch = batches(packed, 4, 1)[0]
    assert batch.dtype == torch.int64
    batch.zero_()
    assert packed[:].max() == 9


@pytest.mark.parametrize(("num_sequences", "sizes"), [(5, [4, 1]), (8, [4, 4]), (99, [4, 4, 2])])
def test_first_batches_are_the_first_rows_with_the_last_part(
    packed: PackedTokens, num_sequences: int, sizes: list[int]
) -> None:
    found = list(first_batches(packed, num_sequences, 4))
    assert [len(batch) for batch in found] == sizes
    assert torch.cat(found)[:, 0].tolist() == list(range(sum(sizes)))


def test_pieces_are_all_rows_in_order(packed: PackedTokens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens_module, "ROWS_PER_PIECE", 3)
    assert np.array_equal(np.concatenate(list(token_pieces(packed))), ROWS)


@given(
    rows=st.one_of(
        st.lists(st.integers(0, 9)),
        st.builds(slice, *[st.one_of(st.none(), st.integers(-12, 12))] * 2),
        st.builds(slice, *[st.one_of(st.none(), st.integers(-12, 12))] * 2, st.integers(1, 4)),
    )
)
def test_rows_are_those_of_one_array(packed: PackedTokens, rows: slice | list[int]) -> None:
    assert packed.shape == ROWS.shape
    assert len(packed) == len(ROWS)
    expected = ROWS[rows] if isinstance(rows, slice) else ROWS[np.array(rows, np.int64)]
    assert np.array_equal(packed[rows], expected)
    assert packed[rows].dtype == ROWS.dtype


@pytest.mark.parametrize("row", [-1, 10])
def test_there_are_no_other_rows(packed: PackedTokens, row: int) -> None:
    with pytest.raises(IndexError, match="of 10"):
        packed[[0, row]]


def test_rows_are_mapped_not_copied(tmp_path: Path, write_tokens: WriteTokens) -> None:
    write_tokens(tmp_path, {"train": ROWS}, rows_per_shard=4)
    assert isinstance(load_tokens(tmp_path, "train")[4:8], np.memmap)


def test_few_files_are_open_at_once(tmp_path: Path, write_tokens: WriteTokens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens_module, "MAX_MAPPED_SHARDS", 2)
    write_tokens(tmp_path, {"train": ROWS}, rows_per_shard=1)
    packed = load_tokens(tmp_path, "train")
    assert np.array_equal(packed[:], ROWS)
    assert packed._shard.cache_info().currsize == 2


def test_missing_tokens_name_the_stage(tmp_path: Path, write_tokens: WriteTokens) -> None:
    with pytest.raises(UserError, match=r"manifest\.json is not there.*prepare"):
        load_tokens(tmp_path, "train")
    write_tokens(tmp_path, {"train": ROWS}, rows_per_shard=4)
    (tmp_path / "train-00002.npy").unlink()
    with pytest.raises(UserError, match=r"train-00002\.npy is not there.*prepare"):
        load_tokens(tmp_path, "train")


def test_tokens_that_changed_since_they_were_written_are_noticed(tmp_path: Path, write_tokens: WriteTokens) -> None:
    write_tokens(tmp_path, {"train": ROWS, "valid": ROWS}, rows_per_shard=4)
    assert verify_tokens(tmp_path) == 6
    path = tmp_path / "valid-00001.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    load_tokens(tmp_path, "valid")
    with pytest.raises(UserError, match=r"valid-00001\.npy changed since prepare wrote it.*-f prepare"):
        verify_tokens(tmp_path)
    path.write_bytes(content + b"more")
    with pytest.raises(UserError, match=r"valid-00001\.npy has 156 bytes, but .*counts 152.*-f prepare"):
        load_tokens(tmp_path, "valid")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"num_sequences": 10', '"num_sequences": 11'),
        ("train-00000.npy", "../train-00000.npy"),
        ('"num_sequences": 2', '"num_sequences": 5'),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    tmp_path: Path, write_tokens: WriteTokens, old: str, new: str
) -> None:
    write_tokens(tmp_path, {"train": ROWS}, rows_per_shard=4)
    path = tmp_path / "manifest.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=r"manifest\.json is not what prepare writes \(train"):
        load_tokens(tmp_path, "train")
