"""Corpora and packed tokens as people hand them in: read as text, or refused with the file's name."""

import gzip
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from halfstep.data.texts.cloze import load_cloze
from halfstep.data.texts.reading import read_texts
from halfstep.data.tokens.manifest import read_manifest
from halfstep.data.tokens.packed import load_tokens

ROOT = Path(__file__).parents[2]
LARGE = int(os.environ.get("HALFSTEP_FUZZ", "1")) > 1
SENTENCE = "Once upon a time there was a small grey cat who sat by the river and looked at the moon. "


def parquet(**columns: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


def zipped(text: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.txt", text)
    return stream.getvalue()


def not_utf8() -> Any:
    """A column of strings whose bytes are none."""
    offsets, values = pa.py_buffer(np.array([0, 2], np.int32).tobytes()), pa.py_buffer(b"\xff\xfe")
    return pa.StringArray.from_buffers(1, offsets, values)


GOOD_LINE = json.dumps({"text": SENTENCE}).encode() + b"\n"
PARQUET = parquet(text=[SENTENCE] * 50)

REFUSED: dict[str, tuple[str, bytes]] = {
    "empty": ("a.txt", b""),
    "white space only": ("a.txt", b" \n\t\r\n\xc2\xa0\n"),
    "only a byte order mark": ("a.txt", b"\xef\xbb\xbf"),
    "zero bytes": ("a.txt", SENTENCE.encode() + b"\0" + SENTENCE.encode()),
    "Latin-1": ("a.txt", SENTENCE.encode() * 500 + b"caf\xe9"),
    "UTF-16 without its mark": ("a.txt", SENTENCE.encode("utf-16-le")),
    "UTF-16": ("a.txt", SENTENCE.encode("utf-16")),
    "gzip named .txt": ("a.txt", gzip.compress(SENTENCE.encode() * 50, mtime=0x01020304)),
    "binary without a zero byte": ("a.txt", b"\x1f\x8b\x08\x01\xff\xfe\x02\x03" * 20),
    "zip named .txt": ("a.txt", zipped(SENTENCE * 50)),
    "parquet named .txt": ("a.txt", PARQUET),
    "gzip": ("a.txt.gz", gzip.compress(SENTENCE.encode())),
    "gzip that is not": ("a.jsonl.gz", GOOD_LINE),
    "no suffix": ("a", SENTENCE.encode()),
    "another suffix": ("a.csv", SENTENCE.encode()),
    "one line": ("a.txt", b"one line\n"),
    "empty lines": ("a.jsonl", b"\n\n\n"),
    "empty texts": ("a.jsonl", b'{"text": ""}\n{"text": null}\n{"text": " "}\n'),
    "a broken line in the middle": ("a.jsonl", GOOD_LINE * 3 + b'{"text": "cut off\n' + GOOD_LINE * 3),
    "a line of another kind": ("a.jsonl", GOOD_LINE * 3 + b"plain text\n" + GOOD_LINE),
    "a list in the middle": ("a.jsonl", GOOD_LINE + b'["text"]\n' + GOOD_LINE),
    "a number": ("a.jsonl", GOOD_LINE + b'{"text": 5}\n'),
    "a number of 5000 digits": ("a.jsonl", b'{"text": ' + b"1" * 5000 + b"}\n"),
    "a nested text": ("a.jsonl", b'{"text": {"text": "x"}}\n'),
    "no such column": ("a.jsonl", b'{"body": "x"}\n'),
    "ten thousand other columns": ("a.jsonl", json.dumps(dict.fromkeys(map(str, range(10_000)))).encode()),
    "a key in the middle that is missing": ("a.jsonl", GOOD_LINE + b'{"body": "x"}\n'),
    "zero bytes in a line": ("a.jsonl", b'{"text": "a\0b"}\n'),
    "invalid UTF-8 in a line": ("a.jsonl", b'{"text": "caf\xe9"}\n'),
    "half a character": ("a.jsonl", GOOD_LINE + b'{"text": "\\ud83d and no more"}\n'),
    "half a character in another key": ("a.jsonl", b'{"text": "x", "\\uDC00": 1}\n'),
    "nested deeply": ("a.jsonl", b'{"text": ' + b"[" * 100_000 + b"\n"),
    "a JSON array over lines": ("a.jsonl", json.dumps([{"text": "x"}], indent=1).encode()),
    "gzip named .jsonl": ("a.jsonl", gzip.compress(GOOD_LINE)),
    "not parquet": ("a.parquet", b"PAR1 nothing PAR1"),
    "an empty file": ("a.parquet", b""),
    "cut off": ("a.parquet", PARQUET[: len(PARQUET) // 2]),
    "without its end": ("a.parquet", PARQUET[:-8]),
    "without its begin": ("a.parquet", PARQUET[100:]),
    "no rows": ("a.parquet", parquet(text=pa.array([], pa.string()))),
    "only nulls": ("a.parquet", parquet(text=pa.array([None, None], pa.string()))),
    "no such column in parquet": ("a.parquet", parquet(body=["x"])),
    "a column of numbers": ("a.parquet", parquet(text=[1, 2])),
    "a column of bytes": ("a.parquet", parquet(text=[b"x"])),
    "a column of lists": ("a.parquet", parquet(text=[["x"]])),
    "a column of categories": ("a.parquet", parquet(text=pa.array(["x", "y"]).dictionary_encode())),
    "strings that are not UTF-8": ("a.parquet", parquet(text=not_utf8())),
}

ACCEPTED: dict[str, tuple[str, bytes, list[str]]] = {
    "Windows line ends": ("a.txt", b"one\r\ntwo\rthree\r\n", ["one\ntwo\nthree"]),
    "a byte order mark": ("a.txt", b"\xef\xbb\xbfone", ["one"]),
    "right to left": ("a.txt", "שלום \u202eעולם".encode(), ["שלום \u202eעולם"]),
    "no line end": ("a.txt", b"x" * 100_000, ["x" * 100_000]),
    "marks that combine": ("a.txt", ("e" + "\u0301" * 500).encode(), ["e" + "\u0301" * 500]),
    "unassigned characters": ("a.txt", "\U000e0fff\ufffe".encode(), ["\U000e0fff\ufffe"]),
    "a zero character spelled in JSON": ("a.jsonl", b'{"text": "a\\u0000b"}\n', ["a\0b"]),
    "a pair of halves": ("a.jsonl", b'{"text": "\\ud83d\\ude00"}\n', ["\U0001f600"]),
    "a byte order mark in JSONL": ("a.jsonl", b"\xef\xbb\xbf" + b'{"text": "x"}\r\n', ["x"]),
    "a script": ("a.txt", b"<script>alert(1)</script>", ["<script>alert(1)</script>"]),
}


def read(folder: Path, name: str) -> list[str]:
    return list(read_texts([str(folder / name)], "text", split_on_blank_lines=0))


@pytest.mark.parametrize("case", [case for case in REFUSED if case != "one line"])
def test_broken_files_are_refused(case: str, tmp_path: Path, refuse: Callable[..., None]) -> None:
    name, content = REFUSED[case]
    (tmp_path / name).write_bytes(content)
    refuse("corpora", lambda: read(tmp_path, name), name)


@pytest.mark.parametrize("case", ACCEPTED)
def test_strange_text_is_text(case: str, tmp_path: Path, attempt: Callable[..., Any]) -> None:
    name, content, expected = ACCEPTED[case]
    (tmp_path / name).write_bytes(content)
    assert attempt("corpora", lambda: read(tmp_path, name)) == expected


def test_what_is_no_file_is_refused(tmp_path: Path, refuse: Callable[..., None]) -> None:
    (tmp_path / "empty folder").mkdir()
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "nowhere.txt")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    (tmp_path / "device.txt").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.txt")
    for name in ("empty folder", "folder.txt", "dangling.txt", "loop.txt", "device.txt", "pipe.txt", "absent.txt"):
        refuse("corpora", lambda name=name: read(tmp_path, name), name)
    for name in ("x" * 300 + ".txt", "~nobody-has-this-name/a.txt", "[", "**/*.txt", "\0.txt"):
        refuse("corpora", lambda name=name: read(tmp_path, name))
    for name in ("", " ", "~nobody-has-this-name/a.txt"):
        refuse("corpora", lambda name=name: list(read_texts([name or "no such folder"], "text", 0)))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, refuse: Callable[..., None]) -> None:
    for name in ("a.txt", "a.jsonl", "a.parquet"):
        (tmp_path / name).write_bytes(GOOD_LINE)
        (tmp_path / name).chmod(0)
        refuse("corpora", lambda name=name: read(tmp_path, name), name)


def params(folder: Path, data: dict[str, Any]) -> None:
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    tokenizer = {"source": "train-bpe", "vocab_size": 300, "revision": None, "mask_token": None}
    values["data"] = {
        "source": "text", "path": "texts", "text_column": "text", "split_on_blank_lines": 0, "context_length": 64,
        "valid_fraction": 0.1, "max_documents": None, "num_workers": 1, "cloze": None, "tokenizer": tokenizer,
        "tokens_per_shard": 2**20, **data,
    }  # fmt: skip
    (folder / "params.yaml").write_text(yaml.safe_dump(values))


@pytest.mark.parametrize("case", ["empty", "one line", "a number", "cut off"])
def test_the_stage_refuses_them_and_writes_nothing(case: str, tmp_path: Path, run_stage: Callable[..., str]) -> None:
    from stages import prepare

    name, content = REFUSED[case]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / name).write_bytes(content)
    params(tmp_path, {"path": f"texts/{name}"})
    # One short line is a sound file, but no corpus.
    run_stage("corpora", prepare.main, named=("split_on_blank_lines=1",) if case == "one line" else (name,))


def test_random_bytes_are_text_or_refused(
    examples: Any, attempt: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    texts = st.text(st.characters(exclude_categories=()), max_size=20)
    lines = st.one_of(
        st.binary(max_size=40),
        texts.map(lambda text: json.dumps({"text": text}).encode()),
        st.dictionaries(st.sampled_from(["text", "body"]), st.none() | texts | st.floats() | st.lists(texts)).map(
            lambda row: json.dumps(row).encode()
        ),
    )

    @examples(150)
    @given(
        st.sampled_from(["a.txt", "a.jsonl", "a.parquet"]),
        st.binary(max_size=200) | st.lists(lines, max_size=5).map(b"\n".join),
    )
    def check(name: str, content: bytes) -> None:
        (folder / name).write_bytes(content)
        documents = attempt("corpora, random", lambda: read(folder, name), name)
        if documents is not None:
            assert documents
            assert all(document and not document.isspace() for document in documents)

    check()


def test_mutated_files_are_text_or_refused(
    examples: Any, attempt: Callable[..., Any], mutated: Callable[[bytes, int], bytes], tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    sound = {"a.parquet": PARQUET, "a.jsonl": GOOD_LINE * 10, "a.txt": SENTENCE.encode() * 10}

    @examples(200)
    @given(st.sampled_from(sorted(sound)), st.integers(0, 2**32))
    def check(name: str, seed: int) -> None:
        (folder / name).write_bytes(mutated(sound[name], seed))
        attempt("corpora, mutated", lambda: read(folder, name), name)

    check()


@pytest.mark.skipif(not LARGE, reason="takes a minute; HALFSTEP_FUZZ=2 runs it")
@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_a_line_of_a_hundred_megabytes_is_text(suffix: str, tmp_path: Path, attempt: Callable[..., Any]) -> None:
    text = SENTENCE * (10**8 // len(SENTENCE))
    content = text if suffix == "txt" else json.dumps({"text": text})
    (tmp_path / f"a.{suffix}").write_text(content)
    (document,) = attempt("corpora", lambda: read(tmp_path, f"a.{suffix}"))
    assert document == text.strip("\n")


def npy(array: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


TOKENS = npy(np.zeros((4, 8), np.uint16))
BROKEN_TOKENS = {
    "empty": b"",
    "not a file of arrays": b"nothing",
    "a pickle": b"\x80\x04cposix\nsystem\n(S'touch pwned'\ntR.",
    "pickled objects": npy(np.array([{"a": 1}], dtype=object), allow_pickle=True),
    "an archive": (lambda stream: (np.savez(stream, a=np.zeros(3)), stream.getvalue())[1])(io.BytesIO()),
    "a torn archive": b"PK\x03\x04 cut off",
    "cut off": TOKENS[:-10],
    "cut off in its header": TOKENS[:40],
    "a shape that lies": TOKENS.replace(b"(4, 8), }      ", b"(4000000, 8), }"),
    "a shape beyond memory": TOKENS.replace(b"(4, 8), }" + b" " * 20, b"(4611686018427387904, 8), }".ljust(29)),
    "a shape of text": TOKENS.replace(b"(4, 8)", b"('a',)"),
    "code in the header": TOKENS.replace(b"(4, 8)", b"exit()"),
    "signed": npy(np.zeros((4, 8), np.int64)),
    "real": npy(np.zeros((4, 8))),
    "one row too flat": npy(np.zeros(8, np.uint16)),
    "no rows": npy(np.zeros((0, 8), np.uint16)),
}


def write_broken_tokens(folder: Path, content: bytes) -> None:
    """A shard beside a manifest that says it is of this size, and holds what `TOKENS` holds."""
    (folder / "train-00000.npy").write_bytes(content)
    shard = {
        "file": "train-00000.npy", "num_sequences": 4, "num_bytes": max(len(content), 1), "sha256": "0" * 64,
    }  # fmt: skip
    split = {"num_sequences": 4, "shards": [shard]}
    manifest = {
        "context_length": 8,
        "vocab_size": 9,
        "mask_token_id": 8,
        "dtype": "uint16",
        "train": split,
        "valid": split,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("case", BROKEN_TOKENS)
def test_broken_tokens_are_refused(
    case: str, tmp_path: Path, refuse: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert BROKEN_TOKENS[case] != TOKENS
    monkeypatch.chdir(tmp_path)
    write_broken_tokens(tmp_path, BROKEN_TOKENS[case])
    refuse("packed tokens", lambda: load_tokens(tmp_path, "train")[:], "train-00000.npy")
    assert not (tmp_path / "pwned").exists(), "a pickle was run"


def test_mutated_tokens_are_tokens_or_refused(
    examples: Any, attempt: Callable[..., Any], mutated: Callable[[bytes, int], bytes], tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("tokens")

    @examples(150)
    @given(st.integers(0, 2**32))
    def check(seed: int) -> None:
        write_broken_tokens(folder, mutated(TOKENS, seed))
        tokens = attempt("packed tokens, mutated", lambda: load_tokens(folder, "train")[:], "train-00000.npy")
        if tokens is not None:
            assert tokens.ndim == 2
            assert tokens.sum() >= 0

    check()


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"vocab_size": null}', '{"vocab_size": "many"}', '{"vocab_size": -4}', "[" * 100_000,
                '{"vocab_size": 1e400}', '{"vocab_size": 2.5}', '{"vocab_size": true}', "\xff",
                '{"vocab_size": 99999999999}'],
)  # fmt: skip
def test_a_broken_manifest_is_refused(content: str, tmp_path: Path, refuse: Callable[..., None]) -> None:
    (tmp_path / "manifest.json").write_bytes(content.encode("latin-1"))
    refuse("packed tokens", lambda: read_manifest(tmp_path), "manifest.json")


def test_cloze_passages_of_any_source_are_read_or_refused(tmp_path: Path, refuse: Callable[..., None]) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder").mkdir()
    for name in ("pipe.jsonl", "folder", "absent.jsonl"):
        refuse("cloze passages", lambda name=name: list(load_cloze(str(tmp_path / name))), name)
