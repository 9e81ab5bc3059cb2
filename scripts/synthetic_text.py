"""Text of any size, to measure `prepare` with: words drawn by Zipf's law, about 5 kB to a document.

    python scripts/synthetic_text.py 5GB my/text
    dvc exp run -S data=text -S data.path=my/text -S data.split_on_blank_lines=1

The frequent words are those of CPython's documentation, the rare ones are made up; no sentence means anything. The same
size and seed give the same bytes.
"""

import re
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics
from typing import Annotated

import numpy as np
import pyarrow as pa
import typer

from halfstep.run import console
from halfstep.run.errors import UserError

UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9}
BYTES_PER_FILE = 10**8
WORDS_PER_BLOCK = 1_000_000
NUM_WORDS = 200_000
NUM_DRAWS = 2**22
"""Entries of the table of words, in which each is as often as it is frequent."""

MARKS = {".": 0.05, ",": 0.05, "\n": 0.005, "\n\n": 0.0012}
"""Shares of what separates words; a blank line ends a document."""


def main(
    size: Annotated[str, typer.Argument(help="Such as 100MB or 5GB.")],
    folder: Annotated[Path, typer.Argument(help="Is created; gets part-000.txt and so on, 100 MB each.")],
    seed: int = 0,
) -> None:
    """Write synthetic text."""
    total = num_bytes_of(size)
    if folder.exists():
        raise UserError(f"{folder} exists: name a new folder, or delete it")
    folder.mkdir(parents=True)
    entries, table = word_table()
    with console.progress(f"writing {folder}", total, unit="byte") as update:
        for number, start in enumerate(range(0, total, BYTES_PER_FILE)):
            rng = np.random.default_rng([seed, number])
            left = min(BYTES_PER_FILE, total - start)
            with (folder / f"part-{number:03}.txt").open("wb") as file:
                while left:
                    drawn = entries.take(pa.array(table[rng.integers(NUM_DRAWS, size=WORDS_PER_BLOCK)]))
                    left -= file.write(memoryview(drawn.buffers()[2])[:left])
                    update(start + file.tell(), "")


def num_bytes_of(size: str) -> int:
    """The bytes of a size such as `5GB`, in powers of ten."""
    found = re.fullmatch(r"(\d+)(kB|MB|GB)", size)
    if not found or not int(found[1]):
        raise UserError(f"size {size!r} is none: give a whole number of {', '.join(UNITS)}, such as 100MB")
    return int(found[1]) * UNITS[found[2]]


def word_table() -> tuple[pa.Array, np.ndarray]:
    """(all words and marks as they are written, numbers of them, each as often as its probability says)."""
    known = [word for word, _ in Counter(re.findall("[A-Za-z]+", " ".join(topics.values()))).most_common()]
    rng = np.random.default_rng(0)
    syllables = [a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er", "in", "on", "st")]
    made_up = ("".join(rng.choice(syllables, size)) for size in rng.integers(2, 5, NUM_WORDS))
    words = list(dict.fromkeys([*known, *made_up]))
    frequency = (np.arange(len(words)) + 2.7) ** -1.3
    shares = np.concatenate([frequency / frequency.sum() * (1 - sum(MARKS.values())), list(MARKS.values())])
    bounds = np.round(np.cumsum(shares) / shares.sum() * NUM_DRAWS).astype(np.int64)
    table = np.repeat(np.arange(len(shares)), np.diff(bounds, prepend=0))
    return pa.array([*(f" {word}" for word in words), *MARKS], pa.large_string()), table


if __name__ == "__main__":
    console.run(main)
