"""Sudoku grids of 4x4, 6x6 or 9x9 cells: a task that is solved or not, with no judge and no left to right.

A document is a solved grid, row by row, each digit with the space before it, so that a digit is one token wherever it
is. Packed, it is a row of its own. A puzzle gives some cells of a grid that is held out, together with all that are the
same under symmetry: other digits, another order of the rows of a band, the columns of a stack, the bands or the stacks,
and, where boxes are square, columns for rows. There are 2 classes of 4x4 grids, one of which is held out, a third of
the grids; 49 of 6x6, of which an eighth of the grids are held out; and 5,472,730,538 of 9x9, a tenth.

In this file, cells are the digits of a grid or puzzle row by row, int [size * size], 0 for one that is not given.
"""

import math
import random
import zlib
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import combinations
from typing import Literal

from pydantic import model_validator

from halfstep.run.errors import UserError, one_line
from halfstep.settings.base import PositiveInt
from halfstep.settings.data import CorpusSettings

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}
"""Rows and columns of a box, by the size of the grid."""
HELD_OUT_SHARE = 10
"""One class of grids in this many is kept for puzzles, by a hash."""
BLANK = "."


class Settings(CorpusSettings):
    """`size` of the grids, of which so many are made."""

    size: Literal[4, 6, 9]
    num_documents: PositiveInt

    @model_validator(mode="after")
    def _a_row_holds_a_grid(self) -> "Settings":
        needed = num_tokens(self.size)
        if self.context_length != needed:
            raise ValueError(
                f"context_length is {self.context_length}, but a {self.size}x{self.size} grid with BOS and two EOS has"
                f" {needed} tokens: dvc exp run -S data.context_length={needed}"
            )
        return self


def num_tokens(size: int) -> int:
    """Of a packed row: the cells, BOS, and the EOS of the document and of the row."""
    return size**2 + 3


def texts(settings: Settings, seed: int) -> Iterator[str]:
    for index in range(settings.num_documents):
        cells = make_grid(settings.size, random.Random(f"grid {seed} {index}"), held_out=False)
        yield "".join(f" {digit}" for digit in cells)


Prompt = list[str | None]
"""A document token by token: text that is given, or None."""


def prompts(settings: Settings, seed: int, num_prompts: int, num_givens: int) -> list[Prompt]:
    """Puzzles that give so many cells, at random places; whatever their number, puzzle i is of the same grid."""
    if num_givens > settings.size**2:
        raise UserError(
            f"frontier.num_givens is {num_givens}, more than the {settings.size**2} cells of a grid: dvc exp run -S"
            f" frontier.num_givens=[{settings.size**2 // 3}]"
        )
    found = []
    for index in range(num_prompts):
        rng = random.Random(f"puzzle {seed} {index}")
        cells = make_grid(settings.size, rng, held_out=True)
        given = set(rng.sample(range(len(cells)), len(cells))[:num_givens])
        found.append(as_prompt([digit if cell in given else 0 for cell, digit in enumerate(cells)]))
    return found


def as_prompt(cells: Sequence[int]) -> Prompt:
    """A puzzle as tokens."""
    return [f" {digit}" if digit else None for digit in cells]


def is_solved(document: str, prompt: Prompt) -> bool:
    """Whether a document is a grid, every row, column and box right, that keeps what a prompt gives."""
    digits = document.split()
    if len(digits) != len(prompt) or not all(digit.isdecimal() for digit in digits):
        return False
    keeps = all(given is None or given.strip() == digit for given, digit in zip(prompt, digits, strict=True))
    return keeps and is_grid([*map(int, digits)])


def as_lines(document: str) -> str:
    """A document as a person writes a grid."""
    digits = document.split()
    size = math.isqrt(len(digits)) or 1
    return "\n".join(" ".join(digits[start : start + size]) for start in range(0, len(digits), size))


def is_grid(cells: Sequence[int]) -> bool:
    """Whether every row, column and box has each digit once."""
    size = math.isqrt(len(cells))
    digits = set(range(1, size + 1))
    return all({cells[cell] for cell in unit} == digits for unit in units(size))


def read_puzzle(text: str, where: str) -> list[int]:
    """The cells of a puzzle as a person writes it: digits, and dots where none is given; space does not count.

    Args:
        where: the option that holds it, for messages.
    Raises:
        UserError: it is not one, or has no solution.
    """
    signs = "".join(text.split())
    size = math.isqrt(len(signs))
    if size not in BOXES or size**2 != len(signs):
        raise UserError(f"{where} has {len(signs)} cells: a puzzle has 16, 36 or 81, row by row, {BLANK} where empty")
    if unknown := [sign for sign in signs if sign not in f"{BLANK}123456789"[: size + 1]]:
        raise UserError(f"{where} has {one_line(unknown[0])!r} in it: cells are 1 to {size}, or {BLANK} where empty")
    cells = [0 if sign == BLANK else int(sign) for sign in signs]
    for name, unit in zip(unit_names(size), units(size), strict=True):
        digits = [cells[cell] for cell in unit if cells[cell]]
        if twice := [digit for digit in digits if digits.count(digit) > 1]:
            raise UserError(f"{where} has {twice[0]} twice in {name}: no grid does")
    if solve(cells, random.Random(0)) is None:
        raise UserError(f"{where} has no solution: no grid has these digits in these cells")
    return cells


@cache
def units(size: int) -> tuple[tuple[int, ...], ...]:
    """The cells of every row, then of every column, then of every box."""
    height, width = BOXES[size]
    line = range(size)
    rows = [tuple(size * row + column for column in line) for row in line]
    boxes = [
        tuple(size * (top + row) + left + column for row in range(height) for column in range(width))
        for top in range(0, size, height)
        for left in range(0, size, width)
    ]
    return (*rows, *zip(*rows, strict=True), *boxes)


def unit_names(size: int) -> list[str]:
    """What a person calls each of `units`, from 1."""
    return [f"{kind} {number}" for kind in ("row", "column", "box") for number in range(1, size + 1)]


@cache
def _units_of_cells(size: int) -> list[tuple[int, ...]]:
    """For each cell the numbers of its row, column and box."""
    return [tuple(number for number, unit in enumerate(units(size)) if cell in unit) for cell in range(size**2)]


def make_grid(size: int, rng: random.Random, *, held_out: bool) -> list[int]:
    """A grid that is held out, or one that is not; any of them can come."""
    while True:
        cells = solve([0] * size**2, rng)
        assert cells is not None
        if is_held_out(cells) == held_out:
            return cells


def solve(puzzle: Sequence[int], rng: random.Random) -> list[int] | None:
    """Fill the cells that are not given, by search; None where no grid has what is given.

    Args:
        rng: which solution is found where there are several; not each is equally likely.
    """
    cells = list(puzzle)
    size = math.isqrt(len(cells))
    units_of = _units_of_cells(size)
    # Digits as bits: those that each unit does not have yet.
    left = [sum(1 << digit for digit in range(1, size + 1))] * (3 * size)

    def take(cell: int, digit: int) -> None:
        cells[cell] = digit
        for unit in units_of[cell]:
            left[unit] ^= 1 << digit

    def options(cell: int) -> int:
        row, column, box = units_of[cell]
        return left[row] & left[column] & left[box]

    def search() -> bool:
        if not empty:
            return True
        # Where the fewest digits are possible; with none, the search turns back.
        best, fewest = 0, size + 1
        for place, cell in enumerate(empty):
            row, column, box = units_of[cell]
            if (number := (left[row] & left[column] & left[box]).bit_count()) < fewest:
                best, fewest = place, number
        cell = empty.pop(best)
        possible = [digit for digit in range(1, size + 1) if options(cell) >> digit & 1]
        for digit in rng.sample(possible, len(possible)):
            take(cell, digit)
            if search():
                return True
            take(cell, digit)
            cells[cell] = 0
        empty.insert(best, cell)
        return False

    for cell, digit in enumerate(puzzle):
        if digit:
            if not options(cell) >> digit & 1:
                return None
            take(cell, digit)
    empty = [cell for cell, digit in enumerate(cells) if not digit]
    return cells if search() else None


def is_held_out(cells: Sequence[int]) -> bool:
    """True for the classes of grids kept for puzzles: a hash of what does not change under symmetry."""
    return zlib.crc32(repr(fingerprint(cells)).encode()) % HELD_OUT_SHARE == 0


Fingerprint = tuple[tuple[tuple[bool, tuple[int, ...]], ...], ...]


def fingerprint(cells: Sequence[int]) -> Fingerprint:
    """What a grid has in common with every grid that is the same under symmetry.

    Two rows, one above the other, are a permutation of the digits. The lengths of its cycles do not depend on the order
    of the columns nor on what the digits are called; nor do all of them together on the order of the rows. The same
    goes for columns. Grids with different fingerprints are of different classes; of the 49 classes of 6x6, nine pairs
    have one in common.
    """
    size = math.isqrt(len(cells))
    height, width = BOXES[size]
    rows = [cells[start : start + size] for start in range(0, size**2, size)]
    halves = _of_pairs(rows, height), _of_pairs([*zip(*rows, strict=True)], width)
    return tuple(sorted(halves)) if height == width else halves


def _of_pairs(lines: Sequence[Sequence[int]], thickness: int) -> tuple[tuple[bool, tuple[int, ...]], ...]:
    """(whether they lie in one band, lengths of cycles) of every two lines, sorted."""
    pairs = combinations(range(len(lines)), 2)
    return tuple(sorted((i // thickness == j // thickness, _cycles(lines[i], lines[j])) for i, j in pairs))


def _cycles(ours: Sequence[int], theirs: Sequence[int]) -> tuple[int, ...]:
    to = dict(zip(ours, theirs, strict=True))
    lengths = []
    while to:
        digit, length = next(iter(to)), 0
        while digit in to:
            digit, length = to.pop(digit), length + 1
        lengths.append(length)
    return tuple(sorted(lengths))
