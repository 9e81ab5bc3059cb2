"""Checks pages of Markdown: `python scripts/prose.py PATH...` prints what is wrong, a line each, and then fails.

Sentences are short, some words are left out, pasted output is short, and links to files lead somewhere. A block of code
without a language is commands and output; a code span, a formula or a number is no word.
Of Python, and folders of it, only the words of comments and strings are checked.
"""

import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

LONGEST_SENTENCE_WORDS = 40
LONGEST_BLOCK_LINES = 10
PROSE_TOKENS = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
BANNED = re.compile(r"\b(told|tells?|stands?(?!-)|stood|nobody|anew|mend(s|ed)?)\b", re.I)


def words_of(inline: Token) -> str:
    """The text of a paragraph or a cell, code and formulas left out."""
    children = inline.children or []
    text = "".join(child.content if child.type == "text" else " " for child in children)
    return re.sub(r"\$[^$]+\$", "", text)


def links_of(inline: Token) -> Iterator[str]:
    for child in inline.children or []:
        if link := child.attrs.get("href") or child.attrs.get("src"):
            yield str(link)


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as repositories and the site make them."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    titles = [tokens[i + 1] for i, token in enumerate(tokens) if token.type == "heading_open"]
    plain = ("".join(child.content for child in title.children or []) for title in titles)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in plain}


def problems(page: Path, longest: int = LONGEST_SENTENCE_WORDS) -> Iterator[tuple[int, str]]:
    """What is wrong with a page, with the line on which its paragraph, table row or block begins."""
    line = 0
    for token in MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8")):
        line = token.map[0] + 1 if token.map else line
        if token.type == "fence" and not token.info and (num_lines := token.content.count("\n")) > LONGEST_BLOCK_LINES:
            yield line, f"{num_lines} lines of output: {LONGEST_BLOCK_LINES} show what it looks like"
        if token.type != "inline":
            continue
        text = words_of(token)
        for sentence in re.split(r"[.!?][\"')\]]*\s+(?=halfstep\b|[^a-z])", text):
            if (count := len(re.findall(r"[^\W\d][\w'-]*", sentence))) > longest:
                yield line, f"a sentence of {count} words: {' '.join(sentence.split()[:6])} ..."
        yield from ((line, f"{found[0]!r}: say it another way") for found in BANNED.finditer(text))
        for link in links_of(token):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            is_missing = not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors_of(target))
            if is_missing and not re.match(r"\w+:", link):
                yield line, f"{link} is not there"


def problems_of_code(file: Path) -> Iterator[tuple[int, str]]:
    """The words that are left out, with their lines, in the comments and strings of a file of Python."""
    with tokenize.open(file) as lines:
        for token in tokenize.generate_tokens(lines.readline):
            if token.type in PROSE_TOKENS:
                for word in BANNED.finditer(token.string):
                    yield token.start[0] + token.string.count("\n", 0, word.start()), f"{word[0]!r}: say it another way"


def files_of(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


if __name__ == "__main__":
    files = [file for name in sys.argv[1:] for file in files_of(Path(name))]
    found = [
        f"{file}:{line}: {problem}"
        for file in files
        for line, problem in (problems_of_code if file.suffix == ".py" else problems)(file)
    ]
    sys.exit("\n".join(found) or None)
