"""What counts as a document of a file or of a data set of the hub."""

import json
import os
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, IterableDataset
from hypothesis import given
from hypothesis import strategies as st

from halfstep.data.texts import reading
from halfstep.data.texts.hub import read_hub
from halfstep.data.texts.reading import read_texts
from halfstep.run.errors import UserError

Read = Callable[..., list[str]]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "project"))
    (tmp_path / "project").mkdir()
    return tmp_path / "project"


@pytest.fixture
def read(root: Path) -> Read:
    def read(*paths: str, column: str = "text", blank_lines: int = 0, limit: int | None = None) -> list[str]:
        return list(islice(read_texts(paths, column, blank_lines), limit))

    return read


def split_slowly(text: str, blank_lines: int) -> list[str]:
    """The rule as one expression over the whole text."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    documents = re.split(rf"\n(?:[^\S\n]*\n){{{blank_lines},}}", text) if blank_lines else [text]
    return [document.strip("\n") for document in documents if document.strip()]


@given(text=st.text(st.sampled_from("a \n\n\n\r\t\x0c\x1c\x85\u2028é"), min_size=1), blank_lines=st.integers(0, 3))
def test_lines_become_the_documents_of_the_slow_version(
    tmp_path_factory: pytest.TempPathFactory, text: str, blank_lines: int
) -> None:
    file = tmp_path_factory.mktemp("texts") / "a.txt"
    file.write_bytes(text.encode())
    found = [document for document in reading.READERS[".txt"](file, "text", blank_lines) if not document.isspace()]
    assert [document for document in found if document] == split_slowly(text, blank_lines)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_a_document_that_no_memory_holds_is_refused(
    root: Path, read: Read, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(reading, "MAX_DOCUMENT_BYTES", 2**20)
    text = "one\n\n" + "many words " * 100_000
    (root / f"a{suffix}").write_text(json.dumps({"text": text}) if suffix == ".jsonl" else text)
    with pytest.raises(UserError, match=rf"a{suffix}.* more than 1 MiB.*-S data\.split_on_blank_lines=1"):
        read(f"a{suffix}")
    monkeypatch.setattr(reading, "MAX_DOCUMENT_BYTES", 2**21)
    assert read(f"a{suffix}") == [text]


def test_jsonl_and_parquet_columns(root: Path, read: Read) -> None:
    rows = [{"body": "first"}, {"body": None}, {"body": "  "}, {"body": "second", "other": 1}]
    (root / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    pq.write_table(pa.table({"body": ["third", None, "", "fourth"], "n": [1, 2, 3, 4]}), root / "b.parquet")
    assert read(".", column="body") == ["first", "second", "third", "fourth"]
    assert read(".", column="body", limit=3) == ["first", "second", "third"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "x"}\n\n{"text": \n', r"a\.jsonl line 3 is not JSON"),
        (b'{"text": "x"}\n["x"]\n', r"a\.jsonl line 2 is not a JSON object"),
        (b'{"body": "x", "id": 1}\n', r"line 1 has no column 'text', but \['body', 'id'\]"),
        (b'{"text": 5}\n', r"line 1: text is 5, not a string"),
    ],
)
def test_bad_lines_are_named(root: Path, read: Read, content: bytes, message: str) -> None:
    (root / "a.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read("a.jsonl")


@pytest.mark.parametrize("change", ["longer", "same size", "gone"])
def test_a_file_that_changes_while_it_is_read_is_noticed(read: Read, root: Path, change: str) -> None:
    file = root / "a.txt"
    file.write_text("one\n\n" * 3)
    os.utime(file, ns=(0, 1_000_000_000))
    texts = read_texts(["a.txt"], "text", 1)
    assert next(texts) == "one"
    if change == "gone":
        file.unlink()
    else:
        file.write_text("two\n\n" * (4 if change == "longer" else 3))
    with pytest.raises(UserError, match="removed while it was read" if change == "gone" else "changed while"):
        list(texts)


def load_hub(*, streaming: bool = False, column: str = "body", limit: int | None = None) -> list[str | None]:
    options = {"config": None, "revision": "main", "split": "train", "text_column": column, "streaming": streaming}
    return list(islice(read_hub("someone/texts", **options), limit))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(hub_id: str, config: None, *, split: str, revision: str, streaming: bool, cache_dir: str) -> Any:
        assert (hub_id, split, revision) == ("someone/texts", "train", "main")
        assert cache_dir.endswith("datasets")
        rows = {"body": ["a", "b", "c"], "n": [1, 2, 3]}
        if streaming:
            return IterableDataset.from_generator(lambda: iter(Dataset.from_dict(rows)))
        return Dataset.from_dict(rows)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("streaming", [False, True])
def test_hub_gives_the_column_streamed_or_not(streaming: bool) -> None:
    assert load_hub(streaming=streaming) == ["a", "b", "c"]
    assert load_hub(streaming=streaming, limit=2) == ["a", "b"]
    with pytest.raises(UserError, match=r"someone/texts has no column 'text', but \['body', 'n'\]"):
        load_hub(streaming=streaming, column="text")
    with pytest.raises(UserError, match=r"'n' holds int(64)?, not strings"):
        load_hub(streaming=streaming, column="n")


def test_without_network_the_message_names_the_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("Couldn't reach 'someone/texts' on the Hub")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(UserError, match=r"someone/texts of the hub .*-S data=text -S data\.path=FILES"):
        load_hub()


def test_a_full_disk_under_a_data_set_of_the_hub_is_not_the_hubs_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device", "cache/a.arrow")

    monkeypatch.setattr(datasets, "load_dataset", full)
    with pytest.raises(OSError, match=r"cache/a\.arrow"):
        load_hub()
