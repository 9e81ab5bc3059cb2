"""How fast text becomes tokens: `datasets.map` with a tokenizer, beside what `prepare` does.

`python -m benchmarks.data REQUEST` prints it for a JSON object of the arguments of `compare_tokenizing`. Processes
that tokenize import the main module of the one that starts them, so this one imports little.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pyarrow.compute as pc

from halfstep.data.corpora import Documents, text_corpus
from halfstep.data.packing import pack_documents
from halfstep.data.tokenizer import load_tokenizer, with_mask_token
from halfstep.run import console

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SECONDS_BETWEEN_SAMPLES = 0.2


@dataclass(frozen=True)
class Side:
    """One way of tokenizing a text.

    Attributes:
        seconds: from start to end.
        processor_seconds: of this process and its children; other work on the machine is not in them.
        num_tokens: that came out.
        peak_bytes: of this process and its children, above what this process had before.
    """

    name: str
    seconds: float
    processor_seconds: float
    num_tokens: int
    peak_bytes: int


def compare_tokenizing(
    paths: list[str],
    tokenizer_source: str,
    *,
    split_on_blank_lines: int,
    num_workers: int,
    context_length: int,
    num_repeats: int,
    folder: Path,
) -> tuple[int, list[Side]]:
    """Tokenize files by `datasets.map(batched=True, num_proc=num_workers)` and by `pack_documents`, in turn.

    The map gives token ids and masks in Arrow files, a second one would have to join and cut them; packing gives the
    shards. Reading the files is in neither time.

    Args:
        paths: of `.txt`, `.jsonl` or `.parquet` files, which hold a column "text".
        tokenizer_source: a folder or a hub id.
        folder: for intermediate files.
    Returns:
        (bytes of the text, what each side took in the round that cost it the fewest processor seconds).
    """
    tokenizer = with_mask_token(load_tokenizer(tokenizer_source))
    documents = text_corpus(
        paths, text_column="text", split_on_blank_lines=split_on_blank_lines, max_documents=None, folder=folder
    )
    num_bytes = sum(len((text or "").encode()) for text in documents)
    sides: dict[str, Callable[[Path], int]] = {
        "datasets.map": _map(documents, tokenizer, num_workers, folder),
        "prepare": _pack(documents, tokenizer, num_workers, context_length),
    }
    results: dict[str, list[Side]] = {name: [] for name in sides}
    for number in range(num_repeats):
        for name, work in sides.items():
            target = folder / f"{name}-{number}"
            target.mkdir()
            with _peak() as peak:
                started, processor_before = time.perf_counter(), _processor_seconds()
                num_tokens = work(target)
                seconds, processor_seconds = time.perf_counter() - started, _processor_seconds() - processor_before
            results[name].append(Side(name, seconds, processor_seconds, num_tokens, peak()))
    return num_bytes, [min(found, key=lambda side: side.processor_seconds) for found in results.values()]


def _map(
    documents: Documents, tokenizer: PreTrainedTokenizerFast, num_workers: int, folder: Path
) -> Callable[[Path], int]:
    from datasets import Dataset

    rows = Dataset.from_generator(lambda: ({"text": text} for text in documents), cache_dir=str(folder / "rows"))

    def tokenize(batch: dict[str, list[str]]) -> Any:
        # Threads inside the processes would compete for the same cores.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        return tokenizer(batch["text"])

    def work(target: Path) -> int:
        tokenized = rows.map(
            tokenize,
            batched=True,
            num_proc=num_workers,
            remove_columns=["text"],
            cache_file_name=str(target / "tokens.arrow"),
            new_fingerprint=target.name,
            load_from_cache_file=False,
        )
        tables = tokenized.with_format("arrow").iter(1000)
        return sum(pc.sum(pc.list_value_length(table["input_ids"])).as_py() for table in tables)

    return work


def _pack(
    documents: Documents, tokenizer: PreTrainedTokenizerFast, num_workers: int, context_length: int
) -> Callable[[Path], int]:
    def work(target: Path) -> int:
        return pack_documents(
            documents,
            np.ones(len(documents), np.bool_),
            tokenizer,
            target,
            "train",
            context_length=context_length,
            tokens_per_shard=2**26,
            num_workers=num_workers,
            on_documents=lambda done, note: None,
        ).num_tokens

    return work


def _processor_seconds() -> float:
    """Of this process, and of its children that have ended."""
    return sum(os.times()[:4])


@contextmanager
def _peak() -> Iterator[Callable[[], int]]:
    """Watch the memory of this process and its children; the function yielded gives the peak above the start."""
    process = psutil.Process()
    before = process.memory_info().rss
    peak = 0
    is_done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not is_done.wait(SECONDS_BETWEEN_SAMPLES):
            total = process.memory_info().rss
            for child in process.children(recursive=True):
                try:
                    total += child.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            peak = max(peak, total - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: peak
    finally:
        is_done.set()
        thread.join()


def main(request: str) -> None:
    """Print {"num_bytes", "sides"} of a comparison."""
    with tempfile.TemporaryDirectory(dir=".", prefix=".bench-data-") as folder:
        num_bytes, sides = compare_tokenizing(**json.loads(request), folder=Path(folder).resolve())
    print(json.dumps({"num_bytes": num_bytes, "sides": [asdict(side) for side in sides]}))


if __name__ == "__main__":
    console.run(main)
