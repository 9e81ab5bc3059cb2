"""The samples that the page plays."""

import re
from collections.abc import Callable
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from halfstep.data.tokenizer import train_bpe_tokenizer, train_word_tokenizer
from halfstep.report.samples import browser_data, load_samples, token_pieces, tokens_together
from halfstep.tools import cli


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


TEXTS = [
    "the cat sat on the mat, and the dog didn't.",
    " leading and  double spaces ",
    "Über die Brücke läuft ein Bär; naïve",
    "smile 😀 twice 😀😀 and 中文",
    "it ' s the cat ' s . Is n't it ?",
]


def _words() -> PreTrainedTokenizerFast:
    return train_word_tokenizer(TEXTS, vocab_size=100)


def _bytes() -> PreTrainedTokenizerFast:
    return train_bpe_tokenizer(TEXTS[:2], vocab_size=300)


def _sentencepiece(byte_fallback: bool) -> PreTrainedTokenizerFast:
    """Spaces as part of words, the first one left out in decoding, and characters by bytes if need be."""
    pieces = sorted({piece for text in TEXTS[:3] for piece in re.findall("▁?[^▁]{1,4}", text.replace(" ", "▁"))})
    vocab = [("<unk>", 0.0), ("▁", -2.0), *((piece, -1.0) for piece in pieces if piece != "▁")]
    vocab += [(f"<0x{byte:02X}>", -9.0) for byte in range(256)] if byte_fallback else []
    backend = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=byte_fallback))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    fallback = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(fallback) if byte_fallback else decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", mask_token="<mask>")


def _wordpiece(clean_up: bool) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=clean_up)
    trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=["[UNK]"], show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", mask_token="[MASK]", clean_up_tokenization_spaces=clean_up
    )


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "words": _words,
    "bytes": _bytes,
    "sentencepiece": lambda: _sentencepiece(False),
    "sentencepiece with bytes": lambda: _sentencepiece(True),
    "wordpiece": lambda: _wordpiece(False),
    "wordpiece, cleaned up": lambda: _wordpiece(True),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_pieces_of_any_tokenizer_join_to_the_text_whatever_is_drawn(kind: str) -> None:
    """Also of what no text is tokenized to: half characters, and masks in between."""
    tokenizer = TOKENIZERS[kind]()
    generator = np.random.default_rng(0)
    drawn = [generator.integers(len(tokenizer), size=40).tolist() for _ in range(20)]
    given = [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    masked = [[id if i % 3 else tokenizer.mask_token_id for i, id in enumerate(ids)] for ids in given]
    for ids in (*given, *drawn, *masked, []):
        pieces = token_pieces(ids, tokenizer.decode)
        # What more of the whole text the beginning has with a token than without it.
        text = tokenizer.decode(ids)
        beginnings = (tokenizer.decode(ids[:end]) for end in range(1, len(ids) + 1))
        known = (next(n for n in range(len(b), -1, -1) if text.startswith(b[:n])) for b in beginnings)
        ends = [0, *accumulate(known, max)]
        assert pieces == [text[start:end] for start, end in pairwise(ends)]
        assert "".join(pieces) == text


def test_a_text_that_is_shown_keeps_the_spaces_of_its_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = _sentencepiece(False)
    ids = tokenizer.encode("the cat sat on the dog", add_special_tokens=False)
    frames: list[str] = []

    class Live:
        def __init__(self, frame: Any, **options: Any) -> None:
            self.update(frame)

        def update(self, frame: Any, **options: Any) -> None:
            frames.append(frame.renderable.plain)

        def __enter__(self) -> "Live":
            return self

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(cli, "Live", Live)
    mask = tokenizer.mask_token_id
    x_init = torch.tensor([ids[:3] + [mask] * (len(ids) - 3)])
    cli._draw_shown(lambda on_step: torch.tensor([ids]), x_init, tokenizer.decode, mask, 1, 0.0, 0)
    assert frames[-1] == tokenizer.decode(ids)
    assert frames[-1].startswith("the cat sat on the ")
    assert frames[0] == tokenizer.decode(ids[:3]) + cli.MASK_GLYPH * (len(ids) - 3)


def test_the_same_index_is_read_of_every_model_in_every_setting(project: Any) -> None:
    words = ["Once", " upon", " a", " time", " x", " there", " was", " one"]
    samples = load_samples(project.root / "samples", ["0", "ar"], lambda ids: "".join(words[i] for i in ids))
    assert [(s.model, s.kind, s.drawn, s.index) for s in samples] == [
        (model, kind, drawn, index)
        for model, settings in (
            ("0", [("ancestral", "num_steps=4"), ("ancestral", "num_steps=16")]),
            ("ar", [("autoregressive", "")]),
        )
        for kind in ("unconditional", "continuations")
        for drawn in settings
        for index in (0, 1)
    ]
    continuation = next(s for s in samples if s.kind == "continuations" and s.index == 1)
    assert continuation.num_given == 2
    assert "".join(continuation.pieces) == "Once upon time x there was one a"
    assert continuation.unmask_step == (0, 0, 2, 2, 3, 3, 4, 4)

    data = browser_data(samples, {"0": "teacher", "ar": "autoregressive"})
    assert data["settings"] == ["4 steps", "16 steps"]
    assert data["prompts"][0] == "from nothing, sample 0"
    assert data["prompts"][2:] == ["continue “Once upon”"] * 2
    entry = next(e for e in data["samples"] if e["prompt"] == 3 and e["model"] == 0)
    assert [data["pieces"][piece] for piece in entry["pieces"]] == list(continuation.pieces)
    assert len(set(data["pieces"])) == len(data["pieces"])
    # The autoregressive model writes one token after the other, of six that are not given.
    last = data["samples"][-1]
    assert (last["setting"], last["steps"], last["unit"], last["nfe"]) == (-1, 6, "tokens", 4)


def test_tokens_together_are_weighted_by_token_and_given_ones_left_out(tmp_path: Path) -> None:
    # Three tokens together and one alone: (3 * 3 + 1) / 4. Two samples of one token each: 1. Other samplers: none.
    (tmp_path / "0").mkdir()
    ways = [("ancestral", 2), ("ancestral", 4), ("ancestral", 4), ("confidence", None)]
    columns = {
        "sampler": [sampler for sampler, _ in ways],
        "setting": [f"num_steps={steps}" if steps else "threshold=0.9" for _, steps in ways],
        "temperature": [1.0] * 4,
        "num_steps": [steps for _, steps in ways],
        "sample_index": [0, 0, 1, 0],
        "prefix_row": [-1] * 4,
        "nfe": [1] * 4,
        "token_ids": [[1]] * 4,
        "unmask_step": [[0, 1, 1, 1, 2], [0, 0, 3], [0, 0, 3], [1]],
        "text": [""] * 4,
    }
    table = pa.table(columns).replace_schema_metadata({b"halfstep": b'{"prefix_length": 1}'})
    pq.write_table(table, tmp_path / "0" / "unconditional.parquet")
    together = tokens_together(tmp_path, "0")
    assert (together[2].value, together[2].count, together[2].interval) == (2.5, 4, (1, 3))
    assert (together[4].value, together[4].count) == (1, 2)
    assert set(together) == {2, 4}
