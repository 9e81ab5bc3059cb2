"""Corpora: what counts as a document, and the messages for files that are not as they should be."""

import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, IterableDataset
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from halfstep.data import corpora
from halfstep.data.corpora import pydocs
from halfstep.data.corpora.stories import make_passages, stories
from halfstep.data.packing.documents import open_corpus, store_documents
from halfstep.data.texts import encoding, reading
from halfstep.data.texts.cloze import passages_of
from halfstep.data.texts.hub import read_hub
from halfstep.data.texts.reading import read_texts, text_encoding
from halfstep.run.errors import UserError
from halfstep.run.finding import find_files
from halfstep.settings import Params
from halfstep.settings.data import CorpusSettings
from halfstep.settings.plugins import Plugin
from halfstep.tools.planning.compose import composed_params

Read = Callable[..., list[str]]
ROOT = Path(__file__).parents[2]


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


def settings(source: str, **own: Any) -> CorpusSettings:
    """Settings of a corpus, as they are found by its name."""
    tokenizer = {"source": "train-bpe", "vocab_size": 300, "revision": None}
    common = {"context_length": 8, "tokens_per_shard": 99, "valid_fraction": 0.5, "num_workers": 1, "cloze": None}
    values = {"source": source, "max_documents": None, "tokenizer": tokenizer, **common, **own}
    plugin = Params.model_fields["data"].metadata[0]
    assert isinstance(plugin, Plugin)
    return TypeAdapter(Annotated[CorpusSettings, plugin]).validate_python(values)


def test_stories_are_the_grammars_and_bring_their_cloze_passages(tmp_path: Path) -> None:
    data = settings("stories", num_documents=7, num_cloze=2)
    with open_corpus(data, 4, tmp_path) as documents:
        assert list(documents) == list(stories(7, 4))
    assert list(passages_of(data, 4)) == list(make_passages(2, 4))
    data = settings("stories", num_documents=7, num_cloze=2, max_documents=3)
    assert list(open_corpus(data, 4, tmp_path)) == list(stories(3, 4))


def test_pydocs_are_topics_then_modules(tmp_path: Path) -> None:
    from pydoc_data.topics import topics

    data = settings("pydocs", max_documents=len(topics) + 3)
    documents = list(open_corpus(data, 0, tmp_path))
    assert documents[: len(topics)] == [topics[name] for name in sorted(topics)]
    assert len(documents) == len(topics) + 3
    assert list(passages_of(data, 0)) == []


OTHER = """
from halfstep.settings.base import PositiveInt
from halfstep.settings.data import CorpusSettings

class Settings(CorpusSettings):
    num_words: PositiveInt

def texts(settings, seed):
    for number in range(8):
        yield f"{seed} word{number} " * settings.num_words
"""


def test_a_corpus_is_added_by_its_file_and_its_parameters(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`data/corpora/other.py` and `pipeline/conf/data/other.yaml`: DVC's stage, settings and messages know it then."""
    (tmp_path / "other.py").write_text(OTHER)
    monkeypatch.setattr(corpora, "__path__", [*corpora.__path__, str(tmp_path)])
    shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline")
    conf = tmp_path / "pipeline" / "conf" / "data"
    parameters = (conf / "pydocs.yaml").read_text().replace("pydocs", "other")
    (conf / "other.yaml").write_text(f"{parameters}num_words: 9\n")
    with pytest.raises(UserError, match=r"parameter data\.num_wrods .*, is data\.num_words meant\?"):
        composed_params(["preset=smoke", "data=other", "+data.num_wrods=3"], tmp_path)
    params = composed_params(["preset=smoke", "data=other", "data.context_length=64"], tmp_path)
    assert list(open_corpus(params.data, params.seed, tmp_path)) == [f"0 word{number} " * 9 for number in range(8)]
    monkeypatch.delitem(sys.modules, "halfstep.data.corpora.other")


def test_docstrings_are_parsed_in_order_and_nothing_runs(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text(
        '"""Module."""\nraise SystemExit\n'
        'class A:\n    """Class."""\n    def f(self):\n        """Method."""\n'
        'async def g():\n    """Coroutine.\n\n    More."""\nx = """no docstring"""\n'
    )
    assert pydocs.docstrings_of(source) == "Module.\n\nClass.\n\nMethod.\n\nCoroutine.\n\nMore."
    source.write_text("def broken(:")
    assert pydocs.docstrings_of(source) == ""


def test_txt_is_one_document_without_bom_and_carriage_returns(root: Path, read: Read) -> None:
    (root / "a.txt").write_bytes(b"\xef\xbb\xbf  First\r\n\r\n\r\nsecond\rthird caf\xc3\xa9\r\n\r\n")
    assert read("a.txt") == ["  First\n\n\nsecond\nthird café"]


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


@pytest.mark.parametrize(("place", "scan"), [(0, 64), (63, 64), (64, 64), (200, 64), (299, 64), (151, 1), (63, 63)])
def test_the_byte_that_is_no_utf8_is_found_wherever_reads_end(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: int, scan: int
) -> None:
    monkeypatch.setattr(reading, "BYTES_PER_SCAN", scan)
    content = bytearray("é".encode() * 150)
    assert content.decode() == "é" * 150
    (root / "a.txt").write_bytes(content)
    assert text_encoding(root / "a.txt") == "utf-8-sig"
    content[place] = 0xFF
    (root / "a.txt").write_bytes(content)
    with pytest.raises(UnicodeDecodeError) as expected:
        content.decode()
    assert text_encoding(root / "a.txt") == "latin-1"
    assert f"a.txt is not UTF-8 (byte {expected.value.start})" in caplog.text
    (root / "a.txt").write_bytes(content + b"\x01")
    with pytest.raises(UserError, match="binary or compressed"):
        text_encoding(root / "a.txt")


@pytest.mark.parametrize("num_characters", [1, 5, 30, 1000])
def test_documents_are_kept_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_characters: int) -> None:
    monkeypatch.setattr(encoding, "CHARACTERS_PER_BATCH", num_characters)
    texts = ["one", None, "", "four " * 9, "five", "six"]
    documents = store_documents(texts, None, tmp_path)
    assert list(documents) == texts
    assert len(documents) == 6
    sizes = [sum(len(text or "") + 1 for text in batch[:-1]) for _, batch in documents.batches()]
    assert max(sizes) < num_characters
    for start in range(7):
        assert [text for _, batch in documents.batches(start) for text in batch] == texts[start:]


def test_documents_that_are_stored_are_not_read_again(tmp_path: Path) -> None:
    def fail_after(number: int) -> Iterator[str]:
        yield from ["text"] * number
        raise ZeroDivisionError

    for number in (0, 3, 500_000):
        with pytest.raises(ZeroDivisionError):
            store_documents(fail_after(number), None, tmp_path)
    store_documents(["a", "b"], None, tmp_path)
    assert list(store_documents(fail_after(0), None, tmp_path)) == ["a", "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["documents.arrow"]


@pytest.mark.parametrize(("error", "is_kept"), [(None, False), (UserError, False), (KeyboardInterrupt, True)])
def test_documents_are_kept_for_what_was_cut_off(
    tmp_path: Path, error: type[BaseException] | None, is_kept: bool
) -> None:
    with suppress(UserError, KeyboardInterrupt), store_documents(["a"], None, tmp_path):
        if error:
            raise error
    assert (tmp_path / "documents.arrow").exists() == is_kept


@pytest.mark.parametrize(
    ("blank_lines", "documents"),
    [
        (0, ["one\none\n\ntwo\n\n \n\nthree"]),
        (1, ["one\none", "two", "three"]),
        (2, ["one\none\n\ntwo", "three"]),
        (3, ["one\none\n\ntwo", "three"]),
        (4, ["one\none\n\ntwo\n\n \n\nthree"]),
    ],
)
def test_blank_lines_end_documents(root: Path, read: Read, blank_lines: int, documents: list[str]) -> None:
    (root / "a.txt").write_text("\n\none\none\n\ntwo\n\n \n\nthree\n\n\n")
    assert read("a.txt", blank_lines=blank_lines) == documents


def test_latin1_is_read_with_a_warning_that_names_the_file(
    root: Path, read: Read, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "old.txt").write_bytes("déjà vu".encode("latin-1"))
    with caplog.at_level(logging.WARNING):
        assert read("old.txt") == ["déjà vu"]
    assert "old.txt is not UTF-8 (byte 1): read as Latin-1" in caplog.text


def test_utf16_is_refused_rather_than_read_as_noise(root: Path) -> None:
    (root / "wide.txt").write_bytes("wide".encode("utf-16"))
    with pytest.raises(UserError, match=r"wide\.txt holds zero bytes.*UTF-8"):
        text_encoding(root / "wide.txt")


def test_jsonl_and_parquet_columns(root: Path, read: Read) -> None:
    rows = [{"body": "first"}, {"body": None}, {"body": "  "}, {"body": "second", "other": 1}]
    (root / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    pq.write_table(pa.table({"body": ["third", None, "", "fourth"], "n": [1, 2, 3, 4]}), root / "b.parquet")
    assert read(".", column="body") == ["first", "second", "third", "fourth"]
    assert read(".", column="body", limit=3) == ["first", "second", "third"]


def test_paths_folders_and_globs_are_sorted_and_each_file_comes_once(root: Path) -> None:
    for name in ("b.txt", "a.txt", "sub/c.txt", "sub/d.jsonl", "sub/notes.md"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("x")

    def names(*paths: str) -> list[str]:
        return [str(file.relative_to(root)) for file in find_files(paths)]

    assert names(".") == ["a.txt", "b.txt", "sub/c.txt", "sub/d.jsonl"]
    assert names("*.txt") == ["a.txt", "b.txt"]
    assert names("**/*.txt") == ["a.txt", "b.txt", "sub/c.txt"]
    assert names("sub", "b.txt", "*.txt") == ["sub/c.txt", "sub/d.jsonl", "b.txt", "a.txt"]
    assert names(str(root / "a.txt")) == ["a.txt"]
    assert names("sub/*") == ["sub/c.txt", "sub/d.jsonl"]
    with pytest.raises(UserError, match=r"'sub/notes\.md': .*notes\.md is none of \.txt, \.jsonl, \.parquet"):
        names("sub/notes.md")
    with pytest.raises(UserError, match=r"'sub/\*\.md' matches no file .*left out: 1 \.md \(sub/notes\.md\)"):
        names("sub/*.md")
    with pytest.raises(UserError, match=r"data\.path 'none/\*\.txt' matches no file"):
        names("none/*.txt")


FOLDER = (
    "a.txt",
    "B.TXT",
    "c.Parquet",
    "sub/d.JsonL",
    "sub/deep/e.txt",
    ".hidden.txt",
    ".git/config.txt",
    "sub/.ipynb_checkpoints/d-checkpoint.txt",
    "__MACOSX/sub/a.txt",
    "._a.txt",
    "notes.md",
    "old.txt.gz",
    "backup.txt~",
    "LICENSE",
)


def make_folder(folder: Path) -> None:
    for name in FOLDER:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def test_of_a_folder_hidden_files_are_left_out_and_suffixes_count_in_any_case(root: Path) -> None:
    make_folder(root / "my")
    read = ["B.TXT", "a.txt", "c.Parquet", "sub/d.JsonL", "sub/deep/e.txt"]
    assert [str(file.relative_to(root / "my")) for file in find_files(["my"])] == read
    assert [str(file.relative_to(root / "my")) for file in find_files(["my/**/*"])] == read
    # A folder whose own path is hidden, or that is hidden itself, was named.
    make_folder(root / ".cache/my")
    assert len(find_files([".cache/my"])) == len(find_files([".cache/my/**"])) == len(read)
    assert [file.name for file in find_files(["my/__MACOSX", "my/__MACOSX/**/*.txt"])] == ["a.txt"]
    assert [file.name for file in find_files(["my/.git", "my/.git/*.txt"])] == ["config.txt"]
    assert [file.name for file in find_files(["my/.*.txt"])] == ["._a.txt", ".hidden.txt"]


def test_a_hidden_file_that_is_named_is_read(root: Path) -> None:
    make_folder(root / "my")
    files = find_files(["my/.hidden.txt", "my/sub/.ipynb_checkpoints/d-checkpoint.txt", "my/sub"])
    assert [file.name for file in files] == [".hidden.txt", "d-checkpoint.txt", "d.JsonL", "e.txt"]


def test_a_file_under_several_names_is_read_once(root: Path) -> None:
    (root / "my").mkdir()
    (root / "my/a.txt").write_text("x")
    (root / "my/b.txt").symlink_to("a.txt")
    (root / "my/c.txt").hardlink_to(root / "my/a.txt")
    (root / "linked").symlink_to("my")
    assert find_files(["my/a.txt", "my", "my/../my/a.txt", "my/*.txt", "linked"]) == [root / "my/a.txt"]
    # The name that was given says what a file holds, not the one that a link leads to.
    (root / "blob").write_text("x")
    (root / "d.txt").symlink_to("blob")
    assert find_files(["d.txt"]) == [root / "d.txt"]


def test_one_line_says_what_is_read_and_what_is_left_out(read: Read, root: Path, capfd: Any) -> None:
    make_folder(root / "my")
    (root / "my/c.Parquet").unlink()
    (root / "my/sub/d.JsonL").write_text('{"text": "x"}')
    (root / "my/broken.txt").symlink_to("nowhere")
    (root / "my/link.txt").symlink_to("a.txt")
    (root / "my/more").symlink_to("sub")
    assert read("my") == ["x"] * 4
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("my: reading 3 .txt, 1 .jsonl; left out: ")
    assert set(line.partition("left out: ")[2].replace("), ", ")|").split("|")) == {
        "5 hidden (my/._a.txt, my/.git, my/.hidden.txt, ...)",
        "1 linked folders (my/more)",
        "1 broken links or devices (my/broken.txt)",
        "1 .md (my/notes.md)",
        "1 .gz (my/old.txt.gz)",
        "1 .txt~ (my/backup.txt~)",
        "1 without a suffix (my/LICENSE)",
        "1 known by another name (my/link.txt)",
    }
    assert read("my/a.txt") == ["x"]
    assert capfd.readouterr().err == "my/a.txt: reading 1 .txt\n"


def test_a_project_whose_path_has_signs_of_a_glob_finds_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "[1]").mkdir()
    (tmp_path / "[1]/a.txt").write_text("x")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "[1]"))
    assert find_files(["*.txt"]) == [tmp_path / "[1]/a.txt"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"a\.txt holds no text"),
        ("a.txt", b" \n\t\n", r"a\.txt holds no text"),
        ("a.jsonl", b"\n", r"a\.jsonl holds no text"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a\.jsonl line 2 is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": "\xe9"}\n', r"a\.jsonl line 3 is not JSON"),
        ("a.jsonl", b'["x"]\n', r"a\.jsonl line 1 is not a JSON object"),
        ("a.jsonl", b'{"body": "x", "id": 1}\n', r"line 1 has no column 'text', but \['body', 'id'\]"),
        ("a.jsonl", b'{"text": 5}\n', r"line 1: text is 5, not a string"),
        ("a.parquet", b"nothing", r"a\.parquet cannot be read as Parquet"),
    ],
)
def test_bad_files_are_named(root: Path, read: Read, name: str, content: bytes, message: str) -> None:
    (root / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read(name)
    assert "\n" not in str(caught.value)


def test_parquet_columns_are_checked(root: Path, read: Read) -> None:
    pq.write_table(pa.table({"body": ["x"], "n": [1]}), root / "a.parquet")
    with pytest.raises(UserError, match=r"has no column 'text', but \['body', 'n'\]: set data\.text_column"):
        read("a.parquet")
    with pytest.raises(UserError, match=r"'n' holds int64, not strings"):
        read("a.parquet", column="n")


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


@pytest.mark.parametrize("change", ["longer", "same size", "gone"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_file_that_changes_while_it_is_read_is_noticed(
    read: Read, root: Path, monkeypatch: pytest.MonkeyPatch, change: str, name: str
) -> None:
    """Its first document is out when the file changes; the next file is not reached."""
    file = root / name
    line = json.dumps({"text": "one"}) + "\n" if name == "a.jsonl" else "one\n\n"
    file.write_text(line * 3)
    os.utime(file, ns=(0, 1_000_000_000))
    yielded = reading.READERS[file.suffix]

    def reader(*arguments: Any) -> Any:
        texts = yielded(*arguments)
        yield next(iter(texts))
        if change == "longer":
            file.write_text(line * 4)
        elif change == "same size":
            file.write_text((line * 3).replace("one", "two"))
        else:
            file.unlink()

    monkeypatch.setitem(reading.READERS, file.suffix, reader)
    with pytest.raises(UserError, match="removed while it was read" if change == "gone" else "changed while") as raised:
        read(name, blank_lines=1)
    assert str(file) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_full_disk_under_a_data_set_of_the_hub_is_not_the_hubs_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device", "cache/a.arrow")

    monkeypatch.setattr(datasets, "load_dataset", full)
    with pytest.raises(OSError, match=r"cache/a\.arrow"):
        load_hub()
