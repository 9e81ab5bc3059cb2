"""The user's own `.txt`, `.jsonl` or `.parquet` files: a file, a folder, or a glob, or a list of these."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from halfstep.data.texts.reading import read_texts
from halfstep.settings.base import NonNegativeInt
from halfstep.settings.data import CorpusSettings


class Settings(CorpusSettings):
    path: Annotated[str, Field(min_length=1)] | Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    text_column: Annotated[str, Field(min_length=1)]
    split_on_blank_lines: NonNegativeInt
    """A `.txt` file is one document if 0, else documents end at this many blank lines in a row."""


def texts(settings: Settings, seed: int) -> Iterator[str]:
    paths = [settings.path] if isinstance(settings.path, str) else settings.path
    return read_texts(paths, settings.text_column, settings.split_on_blank_lines)
