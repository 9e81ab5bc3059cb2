"""The documents of a corpus, as they are kept while it is packed: one Arrow file of texts, in a fixed order.

The file is written and read a batch at a time, so memory does not limit the size of a corpus. It lies with the work it
is for: a process that goes on with that work finds the very same documents, whatever became of their source.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from halfstep.data.corpora import CORPORA
from halfstep.data.texts.encoding import batches
from halfstep.run.console import SECONDS_BETWEEN_LINES, console
from halfstep.run.errors import UserError
from halfstep.run.files import storage_faults_named
from halfstep.settings.data import CorpusSettings
from halfstep.settings.plugins import plugin_module

DOCUMENTS_FILE = "documents.arrow"


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


def open_corpus(data: CorpusSettings, seed: int, folder: Path) -> Documents:
    """The documents that the parameters name; read into `folder`, or found there."""
    return store_documents(plugin_module(CORPORA, data.source).texts(data, seed), data.max_documents, folder)


def store_documents(texts: Iterable[str | None], max_documents: int | None, folder: Path) -> Documents:
    """Write texts to `folder`, the first so many (None: all), unless an earlier process wrote all of them there."""
    path = folder / DOCUMENTS_FILE
    if not path.exists():
        unfinished = path.with_suffix(".unfinished")
        schema = pa.schema({"text": pa.large_string()})
        try:
            with storage_faults_named(path), unfinished.open("wb") as file:
                with pa.ipc.new_file(file, schema) as writer:
                    for batch in batches(_with_progress(islice(texts, max_documents))):
                        writer.write_batch(pa.record_batch([pa.array(batch, pa.large_string())], schema=schema))
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    return Documents(path)


def _with_progress(texts: Iterable[str | None]) -> Iterator[str | None]:
    """The same texts, and a line now and then of how many they are."""
    printed_at = time.monotonic()
    for number, text in enumerate(texts):
        if time.monotonic() - printed_at >= SECONDS_BETWEEN_LINES:
            printed_at = time.monotonic()
            console.print(f"reading the corpus: {number} documents", markup=False)
        yield text
