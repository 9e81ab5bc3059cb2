"""Cloze passages: the last word of each is to be predicted from the words before it, as in LAMBADA.

Source: Paperno et al. 2016, arXiv:1606.06031.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from halfstep.data.corpora import CORPORA
from halfstep.data.texts.encoding import encode_pair
from halfstep.data.texts.hub import read_hub
from halfstep.data.texts.reading import read_json_lines
from halfstep.run.errors import UserError, one_line, shown
from halfstep.run.files import atomic_path, resolve_user_path, unchanged
from halfstep.run.inputs import local_files
from halfstep.settings.data import CorpusSettings
from halfstep.settings.plugins import plugin_module

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

HUB_SPLIT = "test"


def split_passage(text: str) -> tuple[str, str]:
    """(what comes before the last word, the last word with the white space before it), of whatever kind that is.

    Raises:
        UserError: there are fewer than two words.
    """
    words = text.split()
    if len(words) < 2:
        raise UserError(f"{shown(text)} is not a cloze passage, which has two words at least, apart by white space")
    text = text.rstrip()
    context = text.removesuffix(words[-1]).rstrip()
    return context, text[len(context) :]


def check_passage(text: str, tokenizer: PreTrainedTokenizerFast, context_length: int) -> None:
    """Ask whether models of a context length can be asked for the last word.

    Raises:
        UserError: the word has no tokens of its own, or too many.
    """
    try:
        # A denoiser's input ends with EOS.
        encode_pair(tokenizer, *split_passage(text), context_length - 1)
    except UserError:
        raise
    # The library raises plain exceptions, as where a word is not known and there is no token for that.
    except Exception as error:
        raise UserError(f"the tokenizer cannot tokenize {shown(text)} ({one_line(error)})") from None


def passages_of(data: CorpusSettings, seed: int, check: Callable[[str], object] = split_passage) -> Iterable[str]:
    """The passages that the parameters name, each checked, or else those that the corpus brings, or none."""
    if data.cloze is not None:
        return load_cloze(data.cloze, check)
    corpus = plugin_module(CORPORA, data.source)
    return corpus.cloze_passages(data, seed) if hasattr(corpus, "cloze_passages") else ()


def load_cloze(source: str, check: Callable[[str], object] = split_passage) -> Iterator[str]:
    """Yield the passages of a local JSONL file or of a hub data set's test split, checked one by one.

    Args:
        source: a file, from the project's root where it is relative, or else a hub id.
        check: raises `UserError` for a passage that will not do.
    Raises:
        UserError: there is no such source, or a passage will not do; names its line.
    """
    path = resolve_user_path(source)
    if local_files("data.cloze", source):
        with unchanged(path):
            yield from _checked(_rows(path), source, check)
    else:
        texts = read_hub(source, config=None, revision=None, split=HUB_SPLIT, text_column="text", streaming=False)
        yield from _checked(enumerate(texts, start=1), source, check)


def read_passages(path: Path) -> Iterator[str]:
    """Yield the passages of a JSONL file, checked one by one; see `load_cloze`."""
    return _checked(_rows(path), str(path), split_passage)


def _rows(path: Path) -> Iterable[tuple[int, object]]:
    return ((number, row.get("text")) for number, row in read_json_lines(path))


def _checked(rows: Iterable[tuple[int, object]], source: str, check: Callable[[str], object]) -> Iterator[str]:
    for number, text in rows:
        if not isinstance(text, str):
            raise UserError(f'{source} line {number} has no "text" of a string; correct the line, or take it out')
        try:
            check(text.strip())
        except UserError as error:
            raise UserError(f"{source} line {number}: {error}; correct the line, or take it out") from None
        yield text


def write_cloze(path: Path, passages: Iterable[str]) -> int:
    """Write passages as lines of `{"text": ...}`, stripped of outer white space; returns their number.

    Where there are none, one empty line is written: DVC warns of a file without a byte whenever a stage reads it.
    """
    num_passages = 0
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for passage in passages:
            file.write(json.dumps({"text": passage.strip()}, ensure_ascii=False) + "\n")
            num_passages += 1
        if not num_passages:
            file.write("\n")
    return num_passages
