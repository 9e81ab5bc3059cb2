"""Where documents come from. Every corpus becomes one Arrow file of texts, in a fixed order.

The file is written and read a batch at a time, so memory does not limit the size of a corpus. It lies with the work it
is for: a process that goes on with that work finds the very same documents, whatever became of their source.
"""

from __future__ import annotations

import ast
import codecs
import glob
import json
import logging
import math
import os
import re
import sysconfig
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from halfstep.data.stories import stories
from halfstep.run.console import SECONDS_BETWEEN_LINES, console
from halfstep.run.errors import UserError, one_line, shown
from halfstep.run.faults import storage_fault
from halfstep.run.files import project_root, resolve_user_path, storage_faults_named, unchanged
from halfstep.run.retries import with_retries

logger = logging.getLogger(__name__)

DOCUMENTS_FILE = "documents.arrow"

MACOS_COPIES = "__MACOSX"
"""The folder of a ZIP archive that holds what macOS keeps beside each file."""

LeftOut = dict[str, set[Path]]
"""Files and folders that were found and are not read, by the reason."""

NAMES_SHOWN = 3

CHARACTERS_PER_BATCH = 1_000_000
"""Of the texts that are written, read and tokenized at once."""

MAX_DOCUMENT_BYTES = 2**27
"""A document is held in memory whole, and takes a hundred times its size there while it is tokenized."""

BYTES_PER_SCAN = 2**20

ROWS_PER_READ = 256

NOT_IN_TEXT = re.compile(rb"[\x00-\x08\x0e-\x19\x1c-\x1f]")
"""Control characters that text in Latin-1 has no use for, and compressed data are full of."""

HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")
"""One of a pair of escapes in JSON that spell a character together."""

NOT_LIBRARY = frozenset(
    {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "turtledemo", "__pycache__"}
)
"""Folders of the standard library that hold something else."""


class Documents:
    """The texts of a corpus, in an Arrow file that is read a batch at a time: neither held nor mapped as a whole.

    A block that begins with them deletes the file when it is done, or refuses them (`UserError`); cut off by anything
    else, it leaves the file to the next process.

    Attributes:
        num_bytes: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.num_bytes = path.stat().st_size
        with pa.memory_map(str(path)) as file:
            batches = pa.ipc.open_file(file)
            sizes = [batches.get_batch(number).num_rows for number in range(batches.num_record_batches)]
        self._ends = np.cumsum([0, *sizes])[1:]

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __iter__(self) -> Iterator[str | None]:
        for _, texts in self.batches():
            yield from texts

    def batches(self, start: int = 0) -> Iterator[tuple[int, list[str | None]]]:
        """Yield (number of its first document, texts) of each batch, from document `start` on."""
        with pa.OSFile(str(self._path)) as file:
            batches = pa.ipc.open_file(file)
            for number in range(int(np.searchsorted(self._ends, start, side="right")), len(self._ends)):
                texts = batches.get_batch(number).column(0)
                first = int(self._ends[number]) - len(texts)
                skipped = max(start - first, 0)
                yield first + skipped, texts[skipped:].to_pylist()

    def __enter__(self) -> Documents:
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        if kind is None or issubclass(kind, UserError):
            self._path.unlink(missing_ok=True)


def stories_corpus(num_documents: int, *, seed: int, max_documents: int | None, folder: Path) -> Documents:
    """Stories from our own grammar; story i depends on the seed and i only."""
    return store_documents(stories(num_documents, seed), max_documents, folder)


def pydocs_corpus(*, max_documents: int | None, folder: Path) -> Documents:
    """The help topics of the running Python and its standard library's docstrings, a document per module."""
    return store_documents(_pydocs(), max_documents, folder)


def text_corpus(
    paths: Sequence[str],
    *,
    text_column: str,
    split_on_blank_lines: int,
    max_documents: int | None,
    folder: Path,
) -> Documents:
    """The user's own files: `.txt`, and one column of `.jsonl` or `.parquet`.

    Args:
        paths: files, folders (searched with their subfolders) or globs, see `find_files`; relative ones from the
            project's root. Files come in this order, sorted by path within each entry, and never twice.
        text_column: the column of `.jsonl` and `.parquet`; empty and null values are skipped.
        split_on_blank_lines: 0 makes a `.txt` file one document, n ends documents at n or more blank lines.
        max_documents: stop after as many; null reads all.
        folder: for the documents' file.
    Raises:
        UserError: nothing matches, a file holds no text or cannot be read, or the column is missing.
    """
    files, left_out = _look_up(paths)
    suffixes = [file.suffix.lower() for file in files]
    counts = ", ".join(f"{suffixes.count(suffix)} {suffix}" for suffix in READERS if suffix in suffixes)
    line = f"{one_line(', '.join(paths))}: reading {counts}{_described(left_out)}"
    console.print(line, markup=False, soft_wrap=True)
    return store_documents(_read_files(files, text_column, split_on_blank_lines), max_documents, folder)


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
    folder: Path,
) -> Documents:
    """One column of a data set of the Hugging Face hub.

    Args:
        streaming: fetch as many documents as are used, a few at a time, instead of the whole data set into `cache`.
        max_documents: the first so many; null takes all.
        folder: for the documents' file.
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
        if streaming:
            return store_documents(_stream(rows, text_column, f"data set {hub_id}"), max_documents, folder)
        _check_column(rows.column_names, text_column, f"data set {hub_id}")
        _check_strings(rows.features[text_column].dtype, text_column, f"data set {hub_id}")
        tables = rows.select_columns([text_column]).with_format("arrow").iter(ROWS_PER_READ)
        return store_documents(
            (text for table in tables for text in table[text_column].to_pylist()), max_documents, folder
        )
    except (OSError, ValueError, DatasetsError) as error:
        if storage_fault(error):
            raise
        raise UserError(
            f"data set {hub_id} of the hub cannot be loaded ({one_line(error)}); without network, take local"
            " files: dvc exp run -S data=text -S data.path=FILES"
        ) from None


def find_files(paths: Sequence[str]) -> list[Path]:
    """The files that the user's paths, folders and globs mean, in a fixed order, each once, under whatever names.

    Of a folder these are the `.txt`, `.jsonl` and `.parquet` files (in any case) in it and its subfolders, but for
    hidden ones; links to folders are not followed. A glob means the files that match it, chosen likewise. A file that
    is named is always meant.

    Raises:
        UserError: an entry matches nothing, or a file that cannot be read as text.
    """
    return _look_up(paths)[0]


def _look_up(paths: Sequence[str]) -> tuple[list[Path], LeftOut]:
    """(`find_files`, what was found and is not read)."""
    files: dict[tuple[int, int], Path] = {}
    left_out: LeftOut = {}
    for entry in paths:
        try:
            path = Path(os.path.abspath(resolve_user_path(entry)))
            if path.is_file():
                if path.suffix.lower() not in READERS:
                    raise UserError(f"data.path {entry!r}: {path} is none of {', '.join(READERS)}; name another file")
                found = [path]
            else:
                found = sorted(_walk(path, left_out) if path.is_dir() else _matching(path, entry, left_out))
            stats = [file.stat() for file in found]
        # A name too long, a loop of links, a pattern that is none, a folder that may not be read.
        except (OSError, RuntimeError, ValueError, re.error) as error:
            raise UserError(
                f"data.path {shown(entry)} cannot be looked up ({one_line(error)}); give .txt, .jsonl or .parquet"
                " files, a folder of them or a glob"
            ) from None
        if not found:
            raise UserError(
                f"data.path {entry!r} matches no file (looked for {one_line(path, 1000)}; a device or a broken link is"
                f" none{_described(left_out)}); give .txt, .jsonl or .parquet files, a folder of them or a glob, from"
                " the project's root"
            )
        for file, stat in zip(found, stats, strict=True):
            if files.setdefault((stat.st_dev, stat.st_ino), file) != file:
                left_out.setdefault("known by another name", set()).add(file)
    read = set(files.values())
    return list(files.values()), {why: rest for why, found in left_out.items() if (rest := found - read)}


def _walk(folder: Path, left_out: LeftOut) -> Iterator[Path]:
    """The files to read in a folder and its subfolders."""

    def stop(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=stop):
        for name in sorted(folders):
            path = Path(parent, name)
            if _is_hidden(name) or path.is_symlink():
                folders.remove(name)
                left_out.setdefault("hidden" if _is_hidden(name) else "linked folders", set()).add(path)
        for name in names:
            path = Path(parent, name)
            if _is_read(path, _is_hidden(name), left_out):
                yield path


def _matching(whole: Path, pattern: str, left_out: LeftOut) -> Iterator[Path]:
    """The files to read that match a glob, which itself finds what begins with a dot only where it says so."""
    for name in glob.iglob(os.path.expanduser(pattern), root_dir=project_root(), recursive=True):
        path = Path(os.path.abspath(project_root() / name))
        # The folders that ** matches are on the way to their files.
        is_on_the_way = "**" in pattern and path.is_dir()
        if not is_on_the_way and _is_read(path, MACOS_COPIES in {*path.parts} - {*whole.parts}, left_out):
            yield path


def _is_read(path: Path, is_hidden: bool, left_out: LeftOut) -> bool:
    """Whether a file that was found is read; else it is added to those that are not."""
    if is_hidden:
        reason = "hidden"
    elif path.is_dir():
        reason = "folders"
    elif not path.is_file():
        reason = "broken links or devices"
    elif path.suffix.lower() not in READERS:
        reason = path.suffix or "without a suffix"
    else:
        return True
    left_out.setdefault(reason, set()).add(path)
    return False


def _is_hidden(name: str) -> bool:
    """Whether programs keep a file or folder of this name for themselves, such as the copies that editors make."""
    return name.startswith(".") or name == MACOS_COPIES


def _described(left_out: LeftOut) -> str:
    parts = []
    for reason, paths in left_out.items():
        names = [one_line(os.path.relpath(path, project_root())) for path in sorted(paths)[:NAMES_SHOWN]]
        more = ", ..." if len(paths) > len(names) else ""
        parts.append(f"{len(paths)} {reason} ({', '.join(names)}{more})")
    return f"; left out: {', '.join(parts)}" if parts else ""


def is_local(source: str) -> bool:
    """Whether a source of text means files: it is one, is written as a path or a glob, or has a file's ending."""
    path = resolve_user_path(source)
    is_written_so = source.startswith((".", "/", "~")) or any(character in source for character in "*?[")
    return os.path.exists(path) or is_written_so or path.suffix.lower() in READERS


def _read_files(files: Iterable[Path], text_column: str, split_on_blank_lines: int) -> Iterator[str]:
    for file in files:
        num_documents = 0
        with unchanged(file):
            for text in READERS[file.suffix.lower()](file, text_column, split_on_blank_lines):
                if text and not text.isspace():
                    num_documents += 1
                    yield text
        if not num_documents:
            raise UserError(f"data.path: {file} holds no text; take it out of data.path, or fill it")


def _read_txt(file: Path, text_column: str, split_on_blank_lines: int) -> Iterator[str]:
    encoding = text_encoding(file)
    try:
        with file.open(encoding=encoding) as lines:
            for document in _documents_of(lines, split_on_blank_lines, file):
                yield document.strip("\n")
    except OSError as error:
        raise _unreadable(file, error) from None


def _documents_of(lines: TextIO, split_on_blank_lines: int, file: Path) -> Iterator[str]:
    """Lines joined to documents, which end where so many blank lines or more follow each other; 0 never ends one."""
    ends_after = split_on_blank_lines or math.inf
    document: list[str] = []
    num_characters = num_blank = 0
    while line := lines.readline(MAX_DOCUMENT_BYTES):
        # The first line of a file ends nothing, and nor does a last one that is not ended itself.
        if document and line.endswith("\n") and line.isspace():
            num_blank += 1
        else:
            if num_blank >= ends_after:
                yield "".join(document[: len(document) - num_blank])
                document, num_characters = [], 0
            num_blank = 0
        document.append(line)
        num_characters += len(line)
        if num_characters >= MAX_DOCUMENT_BYTES:
            raise _too_long(f"a document of {file}")
    yield "".join(document[: len(document) - num_blank] if num_blank >= ends_after else document)


def _too_long(what: str) -> UserError:
    return UserError(
        f"{what} has more than {MAX_DOCUMENT_BYTES // 2**20} MiB, and is tokenized as one: split the text into"
        " documents, a .txt file at blank lines: -S data.split_on_blank_lines=1"
    )


def _unreadable(file: Path, error: OSError) -> UserError:
    return UserError(
        f"data.path: {file} cannot be read ({error.strerror}); make it readable, or take it out of data.path"
    )


def text_encoding(file: Path) -> str:
    """How a text is to be decoded: UTF-8, with or without a byte order mark, or else Latin-1, with a warning.

    The file is read through, so that nothing is taken for text before all of it is known to be.

    Raises:
        UserError: the file cannot be read, or is no text in either encoding.
    """
    try:
        not_utf8_at, is_latin1 = with_retries(str(file), lambda: _scan(file))
    except OSError as error:
        raise _unreadable(file, error) from None
    if not_utf8_at is None:
        return "utf-8-sig"
    if not is_latin1:
        raise UserError(
            f"data.path: {file} is neither UTF-8 nor text at all, but binary or compressed; unpack it, or take it"
            " out of data.path"
        )
    logger.warning("%s is not UTF-8 (byte %d): read as Latin-1", file, not_utf8_at)
    return "latin-1"


def _scan(file: Path) -> tuple[int | None, bool]:
    """(the first byte at which a file is not UTF-8, or None; whether it may be text in Latin-1)."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    not_utf8_at, is_latin1, start = None, True, 0
    with file.open("rb") as data:
        while True:
            piece = data.read(BYTES_PER_SCAN)
            if b"\0" in piece:
                raise UserError(f"data.path: {file} holds zero bytes, so it is binary or UTF-16; convert it to UTF-8")
            is_latin1 = is_latin1 and not NOT_IN_TEXT.search(piece)
            if not_utf8_at is None:
                num_waiting = len(decoder.getstate()[0])
                try:
                    decoder.decode(piece, final=not piece)
                except UnicodeDecodeError as error:
                    not_utf8_at = start - num_waiting + error.start
            if not piece:
                return not_utf8_at, is_latin1
            start += len(piece)


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
            for number, line in enumerate(iter(lambda: lines.readline(MAX_DOCUMENT_BYTES), b""), start=1):
                if len(line) == MAX_DOCUMENT_BYTES:
                    raise _too_long(f"{file} line {number}")
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
            for batch in table.iter_batches(ROWS_PER_READ, columns=[text_column]):
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
    yield from filter(None, map(docstrings_of, library_files()))


def library_files() -> list[Path]:
    """The modules of the running Python's standard library, that of the help topics among them."""
    library = Path(sysconfig.get_path("stdlib"))
    return [file for file in sorted(library.rglob("*.py")) if NOT_LIBRARY.isdisjoint(file.relative_to(library).parts)]


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


def store_documents(texts: Iterable[str | None], max_documents: int | None, folder: Path) -> Documents:
    """Write texts to `folder`, the first so many (None: all), unless an earlier process wrote all of them there."""
    path = folder / DOCUMENTS_FILE
    if not path.exists():
        unfinished = path.with_suffix(".unfinished")
        schema = pa.schema({"text": pa.large_string()})
        try:
            with storage_faults_named(path), unfinished.open("wb") as file:
                with pa.ipc.new_file(file, schema) as writer:
                    for batch in _batches(_told(islice(texts, max_documents))):
                        writer.write_batch(pa.record_batch([pa.array(batch, pa.large_string())], schema=schema))
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    return Documents(path)


def _batches(texts: Iterable[str | None]) -> Iterator[list[str | None]]:
    """Texts in lists of about `CHARACTERS_PER_BATCH`; a longer text is in a list of its own, or ends one."""
    batch: list[str | None] = []
    num_characters = 0
    for text in texts:
        batch.append(text)
        num_characters += len(text or "") + 1
        if num_characters >= CHARACTERS_PER_BATCH:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


def _told(texts: Iterable[str | None]) -> Iterator[str | None]:
    """The same texts, and a line now and then of how many they are."""
    told_at = time.monotonic()
    for number, text in enumerate(texts):
        if time.monotonic() - told_at >= SECONDS_BETWEEN_LINES:
            told_at = time.monotonic()
            console.print(f"reading the corpus: {number} documents", markup=False)
        yield text
