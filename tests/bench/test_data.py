"""Tokenizing beside `datasets.map`: both sides see the same tokens."""

from pathlib import Path

import pytest
from benchmarks.data import compare_tokenizing

from halfstep.data.tokenizer import train_bpe_tokenizer

TEXTS = [f"Document {number} says little." for number in range(30)]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("\n\n".join(TEXTS))
    train_bpe_tokenizer(TEXTS, 280).save_pretrained(tmp_path / "tokenizer")
    return tmp_path


def test_both_sides_have_the_same_tokens(texts: Path) -> None:
    (texts / "work").mkdir()
    num_bytes, (by_map, ours) = compare_tokenizing(
        [str(texts / "a.txt")],
        str(texts / "tokenizer"),
        split_on_blank_lines=1,
        num_workers=1,
        context_length=8,
        num_repeats=1,
        folder=texts / "work",
    )
    assert num_bytes == sum(map(len, TEXTS))
    assert ours.num_tokens == by_map.num_tokens + len(TEXTS), "ours ends each document with an EOS"
    assert (by_map.name, ours.name) == ("datasets.map", "prepare")
