"""Where documents come from. Every corpus is a `datasets.Dataset` with one column, "text", in a fixed order.

Text that is read or made here goes to an Arrow file in a scratch folder and is mapped from there: memory does
not limit the size of a corpus, and no cache can be older than what it was made from.
"""

from __future__ import annotations

import ast
import glob
import json
import logging
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet

from halfstep.data.stories import stories
from halfstep.errors import UserError, one_line, shown
from halfstep.faults import storage_fault
from halfstep.files import resolve_user_path, storage_faults_named, unchanged
from halfstep.retries import with_retries

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

DOCUMENTS_PER_WRITE = 256

NOT_IN_TEXT = re.compile(rb"[\x00-\x08\x0e-\x19\x1c-\x1f]")
"""Control characters that text in Latin-1 has no use for, and compressed data are full of."""

HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")
"""One of a pair of escapes in JSON that spell a character together."""

NOT_LIBRARY = frozenset(
    {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "turtledemo", "__pycache__"}
)
"""Folders of the standard library that hold something else."""


def stories_corpus(num_documents: int, *, seed: int, max_documents: int | None, scratch: Path) -> Dataset:
    """Stories from our own grammar; story i depends on the seed and i only."""
    return _store(stories(num_documents, seed), max_documents, scratch)


def pydocs_corpus(*, max_documents: int | None, scratch: Path) -> Dataset:
    """The help topics of the running Python and its standard library's docstrings, a document per module."""
    return _store(_pydocs(), max_documents, scratch)


def text_corpus(
    paths: Sequence[str],
    *,
    text_column: str,
    split_on_blank_lines: int,
    max_documents: int | None,
    scratch: Path,
) -> Dataset:
    """The user's own files: `.txt`, and one column of `.jsonl` or `.parquet`.

    Args:
        paths: files, folders (searched with their subfolders) or globs; relative ones from the project's
            root. Files come in this order, sorted by path within each entry, and never twice.
        text_column: the column of `.jsonl` and `.parquet`; empty and null values are skipped.
        split_on_blank_lines: 0 makes a `.txt` file one document, n ends documents at n or more blank lines.
        max_documents: stop after as many; null reads all.
        scratch: folder for the documents.
    Raises:
        UserError: nothing matches, a file holds no text or cannot be read, or the column is missing.
    """
    return _store(_read_files(find_files(paths), text_column, split_on_blank_lines), max_documents, scratch)


def hub_corpus(
    hub_id: str,
    *,
    config: str | None,
    revision: str | None,
    split: str,
    text_column: str,
    streaming: bool,
    max_documents: int | None,
    cache: Path,
    scratch: Path,
) -> Dataset:
    """One column of a data set of the Hugging Face hub.

    Args:
        streaming: fetch only as many documents as are used, instead of the whole data set into `cache`.
        max_documents: the first so many; null takes all.
    Raises:
        UserError: the data set cannot be loaded, or has no such column of strings.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        rows = with_retries(
            f"data set {hub_id}",
            lambda: load_dataset(
                hub_id, config, split=split, revision=revision, streaming=streaming, cache_dir=str(cache)
            ),
        )
        if not streaming:
            _check_column(rows.column_names, text_column, f"data set {hub_id}")
            documents = rows.select_columns([text_column]).rename_column(text_column, "text")
            if max_documents is not None:
                documents = documents.select(range(min(max_documents, len(documents))))
            _check_strings(documents.features["text"].dtype, text_column, f"data set {hub_id}")
            return documents
        return _store(_stream(rows, text_column, f"data set {hub_id}"), max_documents, scratch)
    except (OSError, ValueError, DatasetsError) as error:
        if storage_fault(error):
            raise
        raise UserError(
            f"data set {hub_id} of the hub cannot be loaded ({one_line(error)}); without network, take local"
            " files: dvc exp run -S data=text -S data.path=FILES"
        ) from None


def find_files(paths: Sequence[str]) -> list[Path]:
    """The files that the user's paths, folders and globs mean, in a fixed order, each once.

    Raises:
        UserError: an entry matches nothing, or a file that is none of `.txt`, `.jsonl`, `.parquet`.
    """
    files: dict[Path, None] = {}
    for entry in paths:
        try:
            path = resolve_user_path(entry).resolve()
            if path.is_dir():
                found = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in READERS)
            elif path.is_file():
                found = [path]
            else:
                found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        # A name too long, a loop of links, a pattern that is none.
        except (OSError, RuntimeError, ValueError, re.error) as error:
            raise UserError(
                f"data.path {shown(entry)} cannot be looked up ({one_line(error)}); give .txt, .jsonl or .parquet"
                " files, a folder of them or a glob"
            ) from None
        if not found:
            raise UserError(
                f"data.path {entry!r} matches no file (looked for {path}; a device or a broken link is none); give"
                " .txt, .jsonl or .parquet files, a folder of them or a glob, from the project's root"
            )
        for file in found:
            if file.suffix not in READERS:
                raise UserError(f"data.path {entry!r}: {file} is none of {', '.join(READERS)}; give a narrower glob")
        files.update(dict.fromkeys(found))
    return list(files)


def _read_files(files: Iterable[Path], text_column: str, split_on_blank_lines: int) -> Iterator[str]:
    for file in files:
        num_documents = 0
        with unchanged(file):
            for text in READERS[file.suffix](file, text_column, split_on_blank_lines):
                if text and not text.isspace():
                    num_documents += 1
                    yield text
        if not num_documents:
            raise UserError(f"data.path: {file} holds no text; take it out of data.path, or fill it")


def _read_txt(file: Path, text_column: str, split_on_blank_lines: int) -> Iterator[str]:
    text = decode_text(file).replace("\r\n", "\n").replace("\r", "\n")
    if split_on_blank_lines:
        documents = re.split(rf"\n(?:[^\S\n]*\n){{{split_on_blank_lines},}}", text)
    else:
        documents = [text]
    return (document.strip("\n") for document in documents)


def decode_text(file: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark, or else in Latin-1, with a warning.

    Raises:
        UserError: the file cannot be read, or is no text in either encoding.
    """
    try:
        data = with_retries(str(file), file.read_bytes)
    except OSError as error:
        raise UserError(
            f"data.path: {file} cannot be read ({error.strerror}); make it readable, or take it out of data.path"
        ) from None
    if b"\0" in data:
        raise UserError(f"data.path: {file} holds zero bytes, so it is binary or UTF-16; convert it to UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if NOT_IN_TEXT.search(data):
            raise UserError(
                f"data.path: {file} is neither UTF-8 nor text at all, but binary or compressed; unpack it, or take it"
                " out of data.path"
            ) from None
        logger.warning("%s is not UTF-8 (byte %d): read as Latin-1", file, error.start)
        return data.decode("latin-1")


def _read_jsonl(file: Path, text_column: str, split_on_blank_lines: int) -> Iterator[str | None]:
    for number, row in read_json_lines(file):
        _check_column(row, text_column, f"{file} line {number}")
        text = row[text_column]
        if text is not None and not isinstance(text, str):
            raise UserError(
                f"{file} line {number}: {text_column} is {shown(text)}, not a string; mend the line, or set"
                " data.text_column to another column"
            )
        yield text


def read_json_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a JSONL file with their line numbers, from 1; empty lines are passed over.

    Raises:
        UserError: the file cannot be read, or a line is not a JSON object in UTF-8.
    """
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line.decode("utf-8-sig"))
                    # JSON can spell half a character, which no file of text holds.
                    if HALF_CHARACTER.search(line):
                        json.dumps(row, ensure_ascii=False).encode()
                except (ValueError, RecursionError) as error:
                    raise UserError(
                        f"{file} line {number} is not JSON: {one_line(error)}; mend the line, or take it out"
                    ) from None
                if not isinstance(row, dict):
                    raise UserError(f'{file} line {number} is not a JSON object: make it {{"text": "..."}}')
                yield number, row
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); make it readable, or name another") from None


def _read_parquet(file: Path, text_column: str, split_on_blank_lines: int) -> Iterator[str | None]:
    try:
        with pa.parquet.ParquetFile(file) as table:
            _check_column(table.schema_arrow.names, text_column, str(file))
            _check_strings(str(table.schema_arrow.field(text_column).type), text_column, str(file))
            for batch in table.iter_batches(DOCUMENTS_PER_WRITE, columns=[text_column]):
                yield from batch.column(0).to_pylist()
    # A ValueError is text that is not UTF-8.
    except (OSError, pa.ArrowException, ValueError) as error:
        raise UserError(
            f"{file} cannot be read as Parquet: {one_line(error)}; write it again, or take it out of data.path"
        ) from None


READERS: dict[str, Callable[[Path, str, int], Iterator[str | None]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def _stream(rows: Iterable[dict[str, Any]], text_column: str, source: str) -> Iterator[str]:
    for row in rows:
        _check_column(row, text_column, source)
        text = row[text_column]
        if text is None:
            continue
        if not isinstance(text, str):
            raise UserError(f"{source}: data.text_column {text_column!r} holds {type(text).__name__}, not strings")
        yield text


def _check_column(columns: Iterable[str], text_column: str, source: str) -> None:
    if text_column not in (names := list(columns)):
        raise UserError(
            f"{source} has no column {text_column!r}, but {one_line(names)}: set data.text_column to one of them"
        )


def _check_strings(type_name: str, text_column: str, source: str) -> None:
    if type_name not in ("string", "large_string", "string_view"):
        raise UserError(
            f"{source}: data.text_column {text_column!r} holds {one_line(type_name)}, not strings: set it to a column"
            " that does"
        )


def _pydocs() -> Iterator[str]:
    from pydoc_data.topics import topics

    yield from (topics[name] for name in sorted(topics))
    library = Path(sysconfig.get_path("stdlib"))
    for file in sorted(library.rglob("*.py")):
        if NOT_LIBRARY.isdisjoint(file.relative_to(library).parts) and (text := docstrings_of(file)):
            yield text


def docstrings_of(file: Path) -> str:
    """The docstrings of a Python file in order, apart by blank lines; the file is parsed, not run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # templates, and samples of bad code
        return ""
    documented = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    documented.sort(key=lambda node: getattr(node, "lineno", 0))
    return "\n\n".join(text for node in documented if (text := ast.get_docstring(node)))


def _store(texts: Iterator[str], max_documents: int | None, scratch: Path) -> Dataset:
    """Write documents to an Arrow file and map it into memory."""
    from datasets import Dataset

    schema = pa.schema({"text": pa.large_string()})
    path = scratch / "documents.arrow"
    texts = islice(texts, max_documents)
    with (
        storage_faults_named(path),
        pa.OSFile(str(path), "wb") as file,
        pa.ipc.new_stream(file, schema) as writer,
    ):
        while batch := list(islice(texts, DOCUMENTS_PER_WRITE)):
            writer.write_batch(pa.record_batch([pa.array(batch, pa.large_string())], schema=schema))
    return Dataset.from_file(str(path))
