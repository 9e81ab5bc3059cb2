"""Conversations: what is asked is given, and the answers are learned.

A line of JSONL is `{"messages": [{"role": ..., "content": ...}, ...]}`, whose last message is the answer, or
`{"prompt": ..., "response": ...}`. A row of tokens is one conversation, as the tokenizer's chat template writes it: the
answer up to the first special token after it, and EOS to the end of the row, by which a model learns where it ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from halfstep.data.texts.chat_template import Message, answer_ids
from halfstep.data.texts.reading import read_json_lines
from halfstep.run.console import console
from halfstep.run.errors import UserError, one_line, shown
from halfstep.run.files import unchanged
from halfstep.run.finding import find_files
from halfstep.settings.data import CorpusSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Settings(CorpusSettings):
    """`path`: of JSONL files, as that of the corpus `text`."""

    path: Annotated[str, Field(min_length=1)] | Annotated[tuple[str, ...], Field(strict=False, min_length=1)]


def texts(settings: Settings, seed: int) -> Iterator[str]:
    """Conversations as JSON."""
    files = find_files([settings.path] if isinstance(settings.path, str) else settings.path)
    console.print(f"{one_line(settings.path)}: reading {len(files)} files", markup=False, soft_wrap=True)
    for file in files:
        for where, messages in read_conversations(file):
            if len(messages) < 2 or messages[-1]["role"] != "assistant":
                raise UserError(f"{where} ends without an answer, which is what is learned: halfstep respond writes it")
            yield json.dumps(messages)


def read_conversations(file: Path) -> Iterator[tuple[str, list[Message]]]:
    """Yield the conversations of a JSONL file, each with the words for where it is; the answer may be missing.

    Raises:
        UserError: the file cannot be read, or a line is no conversation.
    """
    if file.suffix.lower() != ".jsonl":
        raise UserError(f"{file} is not .jsonl, of which conversations are read: take it out of data.path")
    with unchanged(file):
        for number, row in read_json_lines(file):
            where = f"{file} line {number}"
            yield where, _messages(row, where)


def _messages(row: dict[str, Any], where: str) -> list[Message]:
    messages = row.get("messages")
    if messages is None:
        roles = {"prompt": "user", "response": "assistant"}
        messages = [{"role": role, "content": row[key]} for key, role in roles.items() if row.get(key) is not None]
    is_read = isinstance(messages, list) and all(
        isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
        for message in messages
    )
    if not is_read or not prompt_of(messages):
        raise UserError(
            f'{where} is no conversation but {shown(row)}: make it {{"messages": [{{"role": "user", "content": ...}},'
            ' ...]} or {"prompt": ..., "response": ...}'
        )
    return messages


def prompt_of(messages: list[Message]) -> list[Message]:
    """A conversation without its last answer."""
    return [*messages[:-1], *(message for message in messages[-1:] if message["role"] != "assistant")]


def rows(documents: Iterable[str | None], tokenizer: PreTrainedTokenizerBase, context_length: int) -> NDArray[np.int32]:
    """Conversations as rows, int32 [num_rows, context_length], see `halfstep.data.tokens.given`.

    One whose prompt leaves no room is left out; a longer answer is cut, and has no end then.
    """
    found = []
    for document in documents:
        prompt, answer = answer_ids(json.loads(document or ""), tokenizer)
        if len(prompt) < context_length:
            row = np.full(context_length, tokenizer.eos_token_id, np.int32)
            row[: len(prompt)] = ~np.array(prompt, np.int32)
            answer = answer[: context_length - len(prompt)]
            row[len(prompt) : len(prompt) + len(answer)] = answer
            found.append(row)
    return np.array(found, np.int32).reshape(-1, context_length)
