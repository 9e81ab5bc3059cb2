"""Grids, what is the same under symmetry, puzzles, and what counts as solved."""

import random
from collections import Counter
from collections.abc import Iterator
from itertools import permutations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfstep.data.corpora import sudoku
from halfstep.data.corpora.sudoku import (
    BOXES,
    Settings,
    as_prompt,
    fingerprint,
    is_grid,
    is_held_out,
    is_solved,
    make_grid,
    prompts,
    read_puzzle,
    solve,
    texts,
)  # fmt: skip
from halfstep.run.errors import UserError

SEEDS = st.integers(0, 10_000)


def settings(size: int, num_documents: int = 50) -> Settings:
    tokenizer = {"source": "train-words", "vocab_size": 16, "revision": None, "mask_token": None}
    common = {"tokens_per_shard": 999, "valid_fraction": 0.5, "max_documents": None, "num_workers": 1, "cloze": None}
    own = {"source": "sudoku", "size": size, "num_documents": num_documents, "context_length": sudoku.num_tokens(size)}
    return Settings.model_validate({**own, **common, "tokenizer": tokenizer})


def cells_of(text: str) -> list[int]:
    return [*map(int, text.split())]


def all_grids_of_4x4() -> Iterator[tuple[int, ...]]:
    lines = [*permutations(range(1, 5))]
    for rows in product(lines, repeat=4):
        if all(len(set(column)) == 4 for column in zip(*rows, strict=True)):
            cells = tuple(digit for row in rows for digit in row)
            if all(len({cells[k], cells[k + 1], cells[k + 4], cells[k + 5]}) == 4 for k in (0, 2, 8, 10)):
                yield cells


def shuffled(cells: list[int], rng: random.Random) -> list[int]:
    """A grid that is the same under symmetry."""
    size = round(len(cells) ** 0.5)
    height, width = BOXES[size]

    def order(thickness: int) -> list[int]:
        bands = [[*range(start, start + thickness)] for start in range(0, size, thickness)]
        return [line for band in rng.sample(bands, len(bands)) for line in rng.sample(band, thickness)]

    rows, columns, digits = order(height), order(width), [0, *rng.sample(range(1, size + 1), size)]
    found = [[digits[cells[size * row + column]] for column in columns] for row in rows]
    if height == width and rng.random() < 0.5:
        found = [[*column] for column in zip(*found, strict=True)]
    return [digit for row in found for digit in row]


@pytest.mark.parametrize("size", BOXES)
def test_documents_are_grids_of_which_hardly_two_are_alike(size: int) -> None:
    found = [*texts(settings(size), seed=3)]
    assert all(is_grid(cells_of(text)) and len(cells_of(text)) == size**2 for text in found)
    assert found == [*texts(settings(size), seed=3)] != [*texts(settings(size), seed=4)]
    assert len(set(found)) > (30 if size == 4 else 49)


@given(SEEDS, st.sampled_from([*BOXES]))
def test_a_fingerprint_does_not_change_under_symmetry(seed: int, size: int) -> None:
    rng = random.Random(seed)
    cells = solve([0] * size**2, rng)
    assert cells is not None
    same = shuffled(cells, rng)
    assert is_grid(same)
    assert fingerprint(same) == fingerprint(cells)
    assert is_held_out(same) == is_held_out(cells)


def test_of_4x4_fingerprints_tell_the_two_classes_apart() -> None:
    """All 288 grids: the classes are found by walking from grid to grid by symmetries, and have 96 and 192 grids."""
    left, rng, classes = set(all_grids_of_4x4()), random.Random(0), []
    assert len(left) == 288
    while left:
        start = min(left)
        reached = {start} | {tuple(shuffled([*start], rng)) for _ in range(5000)}
        classes.append(reached)
        left -= reached
    prints = [{fingerprint(cells) for cells in some} for some in classes]
    assert [len(some) for some in prints] == [1, 1]
    assert prints[0] != prints[1]
    held_out = {len(some): is_held_out(next(iter(some))) for some in classes}
    assert held_out == {96: True, 192: False}


@pytest.mark.parametrize("size", BOXES)
def test_no_puzzle_is_of_a_grid_that_training_has_whatever_its_symmetry(size: int) -> None:
    data = settings(size)
    trained = [cells_of(text) for text in texts(data, 0)]
    asked = [cells_of("".join(filter(None, prompt))) for prompt in prompts(data, 0, 50, size**2)]
    assert not {*map(fingerprint, trained)} & {*map(fingerprint, asked)}
    # Of 9x9 there are so many classes that no two are likely to meet.
    assert [*map(is_held_out, trained)] == [False] * 50
    assert [*map(is_held_out, asked)] == [True] * 50


def test_puzzles_give_as_many_cells_as_they_should_of_the_same_grids() -> None:
    data = settings(6)
    few, many, whole = (prompts(data, 5, 20, number) for number in (10, 14, 36))
    for prompt, more, grid in zip(few, many, whole, strict=True):
        assert (sum(map(bool, prompt)), sum(map(bool, more))) == (10, 14)
        assert all(given in (None, digit) for some in (prompt, more) for given, digit in zip(some, grid, strict=True))
        assert all(more[place] for place, given in enumerate(prompt) if given)
    places = Counter(place for prompt in prompts(data, 5, 300, 12) for place, given in enumerate(prompt) if given)
    # 100 each, binomial: five standard deviations.
    assert all(abs(places[place] - 100) < 5 * (300 * 2 / 9) ** 0.5 for place in range(36))


def test_only_a_grid_that_keeps_what_is_given_is_a_solution() -> None:
    cells = make_grid(6, random.Random(0), held_out=True)
    prompt = as_prompt([digit if place % 3 == 0 else 0 for place, digit in enumerate(cells)])

    def solved(some: list[int]) -> bool:
        return is_solved("".join(f" {digit}" for digit in some), prompt)

    assert solved(cells)
    # Two digits of a row change places, then two of a column: a row or a column stays right, others do not.
    for one, other in ((1, 2), (6, 12)):
        broken = [*cells]
        broken[one], broken[other] = broken[other], broken[one]
        assert not solved(broken)
    # A grid, but another one: digits 1 and 2 are called 2 and 1.
    other_names = [{1: 2, 2: 1}.get(digit, digit) for digit in cells]
    assert is_grid(other_names)
    assert not solved(other_names)
    assert not solved(cells[:-1])
    assert not is_solved("the cat", prompt)
    # Rows and columns right, boxes not.
    latin = [(row + column) % 6 + 1 for row in range(6) for column in range(6)]
    assert not is_grid(latin)


def test_a_search_finds_a_grid_exactly_where_there_is_one() -> None:
    """Puzzles of 4x4 against all grids."""
    grids = [*all_grids_of_4x4()]
    rng = random.Random(1)
    outcomes = set()
    for _ in range(300):
        puzzle = [rng.choice([0, 0, 0, 0, 1, 2, 3, 4]) for _ in range(16)]
        exists = any(all(given in (0, digit) for given, digit in zip(puzzle, grid, strict=True)) for grid in grids)
        found = solve(puzzle, rng)
        assert (found is not None) == exists
        if found is not None:
            assert tuple(found) in grids
            assert all(given in (0, digit) for given, digit in zip(puzzle, found, strict=True))
        outcomes.add(exists)
    assert outcomes == {True, False}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 . 3", "P has 3 cells: a puzzle has 16, 36 or 81, row by row, . where empty"),
        ("1" + "." * 24, "P has 25 cells"),
        ("5" + "." * 15, "P has '5' in it: cells are 1 to 4, or . where empty"),
        ("x" + "." * 15, "P has 'x' in it"),
        ("1..1" + "." * 12, "P has 1 twice in row 1: no grid does"),
        ("1..." * 2 + "." * 8, "P has 1 twice in column 1"),
        ("1... .1.. .... ....", "P has 1 twice in box 1"),
        ("123. ...4 .... ....", "P has no solution: no grid has these digits in these cells"),
    ],
)  # fmt: skip
def test_a_puzzle_that_cannot_be_is_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        read_puzzle(text, "P")


def test_a_puzzle_is_read_with_or_without_space() -> None:
    assert read_puzzle("1 . . . " * 1 + "." * 12, "P") == read_puzzle("1" + "." * 15, "P") == [1, *[0] * 15]


@pytest.mark.parametrize("change", [{"context_length": 40}, {"size": 5}])
def test_settings_that_cannot_be_are_refused(change: dict[str, int]) -> None:
    values = settings(6).model_dump()
    with pytest.raises(ValueError, match=r"data.context_length=39|size"):
        Settings.model_validate({**values, **change})


def test_names_of_units_are_those_of_units() -> None:
    for size in BOXES:
        names = dict(zip(sudoku.unit_names(size), sudoku.units(size), strict=True))
        assert names["row 2"] == tuple(range(size, 2 * size))
        assert names["column 2"] == tuple(range(1, size**2, size))
        assert names[f"box {size}"][-1] == size**2 - 1
