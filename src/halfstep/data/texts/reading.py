"""Documents out of files of text: `.txt`, and one column of `.jsonl` or `.parquet`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet

from halfstep.run.console import console
from halfstep.run.errors import UserError, one_line, shown
from halfstep.run.files import unchanged
from halfstep.run.finding import described, look_up

MAX_DOCUMENT_BYTES = 2**27
"""A document is held in memory whole, and takes a hundred times its size there while it is tokenized."""

ROWS_PER_READ = 256

HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")
"""One of a pair of escapes in JSON that spell a character together."""


def read_texts(paths: Sequence[str], text_column: str, split_on_blank_lines: int) -> Iterator[str]:
    """Yield the texts of the user's own files, and print a line on which are read.

    Args:
        paths: files, folders (searched with their subfolders) or globs, see `find_files`; relative ones from the
            project's root. Files come in this order, sorted by path within each entry, and never twice.
        text_column: the column of `.jsonl` and `.parquet`; empty and null values are skipped.
        split_on_blank_lines: 0 makes a `.txt` file one document, n ends documents at n or more blank lines.
    Raises:
        UserError: nothing matches, a file holds no text or cannot be read, or the column is missing.
    """
    files, left_out = look_up(paths)
    suffixes = [file.suffix.lower() for file in files]
    counts = ", ".join(f"{suffixes.count(suffix)} {suffix}" for suffix in READERS if suffix in suffixes)
    line = f"{one_line(', '.join(paths))}: reading {counts}{described(left_out)}"
    console.print(line, markup=False, soft_wrap=True)
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
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for document in _documents_of(lines, split_on_blank_lines, file):
                if "\0" in document:
                    raise UserError(
                        f"data.path: {file} holds zero bytes, so it is binary or UTF-16; convert it to UTF-8"
                    )
                yield document.strip("\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"data.path: {file} is not UTF-8 ({error.reason}); convert it (iconv -f latin1 -t utf-8) or, if it is"
            " no text, take it out of data.path"
        ) from None
    except OSError as error:
        raise UserError(
            f"data.path: {file} cannot be read ({error.strerror}); make it readable, or take it out of data.path"
        ) from None


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


def _read_jsonl(file: Path, text_column: str, split_on_blank_lines: int) -> Iterator[str | None]:
    for number, row in read_json_lines(file):
        check_column(row, text_column, f"{file} line {number}")
        text = row[text_column]
        if text is not None and not isinstance(text, str):
            raise UserError(
                f"{file} line {number}: {text_column} is {shown(text)}, not a string; correct the line, or set"
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
                        f"{file} line {number} is not JSON: {one_line(error)}; correct the line, or take it out"
                    ) from None
                if not isinstance(row, dict):
                    raise UserError(f'{file} line {number} is not a JSON object: make it {{"text": "..."}}')
                yield number, row
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); make it readable, or name another") from None


def _read_parquet(file: Path, text_column: str, split_on_blank_lines: int) -> Iterator[str | None]:
    try:
        with pa.parquet.ParquetFile(file) as table:
            check_column(table.schema_arrow.names, text_column, str(file))
            check_strings(str(table.schema_arrow.field(text_column).type), text_column, str(file))
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


def check_column(columns: Iterable[str], text_column: str, source: str) -> None:
    if text_column not in (names := list(columns)):
        raise UserError(
            f"{source} has no column {text_column!r}, but {one_line(names)}: set data.text_column to one of them"
        )


def check_strings(type_name: str, text_column: str, source: str) -> None:
    if type_name not in ("string", "large_string", "string_view"):
        raise UserError(
            f"{source}: data.text_column {text_column!r} holds {one_line(type_name)}, not strings: set it to a column"
            " that does"
        )
