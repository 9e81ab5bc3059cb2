"""The samples that the page plays."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from halfstep.errors import UserError
from halfstep.report.samples import browser_data, load_samples, token_pieces, tokens_together


def decode_bytes(token_ids: list[int]) -> str:
    """A byte-level tokenizer: every token is a byte."""
    return bytes(token_ids).decode("utf-8", errors="replace")


def decode_words(token_ids: list[int]) -> str:
    """A tokenizer that drops the space before the first word of a text."""
    return "".join(" " + "abc"[i] for i in token_ids).lstrip()


def test_pieces_join_to_the_text_and_a_character_comes_whole() -> None:
    ids = list("né €!".encode())
    pieces = token_pieces(ids, decode_bytes)
    assert pieces == ["n", "", "é", " ", "", "", "€", "!"]


def test_bytes_that_are_no_character_are_not_lost() -> None:
    ids = [*b"a", 0xE2, 0x82]
    assert "".join(token_pieces(ids, decode_bytes)) == decode_bytes(ids)
    assert len(token_pieces(ids, decode_bytes)) == 3


def test_pieces_are_those_within_the_text() -> None:
    assert token_pieces([0, 1, 2], decode_words) == ["a", " b", " c"]


def test_the_same_index_is_read_of_every_model_at_every_number_of_steps(project: Any) -> None:
    words = ["Once", " upon", " a", " time", " x", " there", " was", " one"]
    samples = load_samples(
        project.root / "samples",
        ["0", "ar"],
        num_unconditional=1,
        num_continuations=2,
        decode=lambda ids: "".join(words[i] for i in ids),
    )
    assert {(s.kind, s.sample_index, s.num_steps) for s in samples if s.model == "0"} == {
        *(("unconditional", 0, n) for n in (4, 16)),
        *(("continuations", i, n) for i in (0, 1) for n in (4, 16)),
    }
    continuation = next(s for s in samples if s.kind == "continuations" and s.sample_index == 1)
    assert continuation.prefix == "Once upon"
    assert continuation.text == " time x there was one a"
    assert continuation.unmask_step == (0, 0, 2, 2, 3, 3, 4, 4)

    data = browser_data(samples, {"0": "teacher", "ar": "autoregressive"}, {"0": "denoising steps", "ar": "tokens"})
    assert data["prompts"] == ["from nothing, sample 0", *["continue “Once upon”"] * 2]
    entry = next(e for e in data["samples"] if e["prompt"] == 2 and e["model"] == 0)
    assert "".join(data["pieces"][piece] for piece in entry["pieces"]) == continuation.prefix + continuation.text
    assert len(set(data["pieces"])) == len(data["pieces"])


def write_steps(path: Path, rows: list[tuple[int, list[int]]]) -> None:
    path.parent.mkdir(parents=True)
    columns = {"num_steps": [n for n, _ in rows], "unmask_step": [steps for _, steps in rows]}
    pq.write_table(
        pa.table(columns, schema=pa.schema({"num_steps": pa.int64(), "unmask_step": pa.list_(pa.int16())})), path
    )


def test_tokens_together_are_weighted_by_token_and_given_ones_left_out(tmp_path: Path) -> None:
    # Three tokens together and one alone: (3 * 3 + 1) / 4. Two samples of one token each: 1.
    write_steps(tmp_path / "0" / "unconditional.parquet", [(2, [0, 1, 1, 1, 2]), (4, [0, 0, 3]), (4, [0, 0, 3])])
    together = tokens_together(tmp_path, "0")
    assert (together[2].value, together[2].count, together[2].interval) == (2.5, 4, (1, 3))
    assert (together[4].value, together[4].count) == (1, 2)


def test_no_samples_are_no_counts_and_a_broken_file_is_named(tmp_path: Path) -> None:
    write_steps(tmp_path / "0" / "unconditional.parquet", [])
    assert tokens_together(tmp_path, "0") == {}
    (tmp_path / "0" / "unconditional.parquet").write_text("no parquet")
    with pytest.raises(UserError, match=r"unconditional\.parquet is not what sample writes"):
        tokens_together(tmp_path, "0")
