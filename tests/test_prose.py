"""What `make lint` says of a page."""

import runpy
from pathlib import Path

import pytest

prose = runpy.run_path(str(Path(__file__).parents[1] / "scripts/prose.py"))
problems = prose["problems"]
LONG = "Word" + " word" * 39


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"Fine.\n\n{LONG} again. Next.", [(3, "a sentence of 41 words")]),
        (f"{LONG}. {LONG} `code`, $x y$ and 3.5.", [(1, "a sentence of 41 words")]),
        (f"| a | b |\n| - | - |\n| {LONG} | {LONG} |\n| x | {LONG} more |", [(4, "a sentence of 41 words")]),
        ("Nobody is told, `tells` is code.", [(1, "'Nobody'"), (1, "'told'")]),
        ("```\n" + "output\n" * 11 + "```\n\n```python\n" + "x = 1\n" * 11 + "```", [(1, "11 lines of output")]),
        ("[a](other.md) ![b](missing.png) [c](https://example.org/d)", [(1, "missing.png is not there")]),
        (
            "# A `b`, c\n\n[a](#a-b-c) [b](#a-b) [c](other.md#two) [d](other.md#one)",
            [(3, "#a-b "), (3, "other.md#one")],
        ),
    ],
)
def test_each_rule_finds_what_breaks_it_and_nothing_else(
    text: str, found: list[tuple[int, str]], tmp_path: Path
) -> None:
    (tmp_path / "other.md").write_text("# Two\n\nFine.\n")
    (tmp_path / "page.md").write_text(text)
    actual = list(problems(tmp_path / "page.md"))
    assert [line for line, _ in actual] == [line for line, _ in found]
    assert all(problem.startswith(start) for (_, problem), (_, start) in zip(actual, found, strict=True))


def test_of_code_the_words_of_comments_and_strings_are_checked(tmp_path: Path) -> None:
    code = tmp_path / "code.py"
    code.write_text('"""One.\n\nIt stands here.\n"""\ntold = f"{1} tells"  # Nobody: a stand-in.\n')
    assert [(line, word.split(":")[0]) for line, word in prose["problems_of_code"](code)] == [
        (3, "'stands'"),
        (5, "'tells'"),
        (5, "'Nobody'"),
    ]
