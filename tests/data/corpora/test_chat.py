"""Conversations as rows: what is given, what is learned, and where an answer ends."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.data.corpora.test_corpora import settings

from halfstep.data.corpora.chat import read_conversations, rows, texts
from halfstep.data.texts.chat_template import answer_text, prompt_ids
from halfstep.data.tokenizer import train_word_tokenizer
from halfstep.run.errors import UserError

TEMPLATE = (
    "{% for m in messages %}<|bos|> {{ m.role }} {{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|bos|> assistant{% endif %}"
)
ALWAYS = TEMPLATE.replace("{% if add_generation_prompt %}", "").replace("{% endif %}", "")
"""As LLaDA's: it begins the next answer even after one."""
TURN = [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": "the red bird"}]


@pytest.fixture
def tokenizer():
    tokenizer = train_word_tokenizer([" user assistant a cat saw the red bird"] * 2, 40)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def row_of(messages, tokenizer, length: int = 16) -> np.ndarray:
    (row,) = rows([json.dumps(messages)], tokenizer, length)
    return row


@pytest.mark.parametrize("template", [TEMPLATE, ALWAYS])
def test_a_row_is_the_prompt_given_and_the_answer_to_its_end(template: str, tokenizer) -> None:
    tokenizer.chat_template = template
    row = row_of(TURN, tokenizer)
    prompt = prompt_ids(TURN[:1], tokenizer)
    assert tokenizer.decode(prompt) == "<|bos|> user a cat<|end|><|bos|> assistant"
    assert (~row[: len(prompt)]).tolist() == prompt
    answer = row[len(prompt) :].tolist()
    assert tokenizer.decode(answer).startswith(" the red bird<|end|><|eos|>")
    assert answer[4:] == [tokenizer.eos_token_id] * (16 - len(prompt) - 4)
    assert answer_text(answer, tokenizer) == "the red bird"


def test_of_a_longer_conversation_the_last_answer_is_learned(tokenizer) -> None:
    row = row_of([*TURN, *TURN], tokenizer, 40)
    given = (~row[row < 0]).tolist()
    assert given == prompt_ids([*TURN, TURN[0]], tokenizer)
    assert tokenizer.decode(given).count("bird") == 1


def test_long_prompts_are_left_out_and_long_answers_cut(tokenizer) -> None:
    prompt = prompt_ids(TURN[:1], tokenizer)
    documents = [json.dumps(TURN), json.dumps([{"role": "user", "content": "a cat " * 9}, TURN[1]])]
    found = rows(documents, tokenizer, len(prompt) + 2)
    assert len(found) == 1
    assert tokenizer.decode(found[0, len(prompt) :].tolist()) == " the red"
    assert rows(documents, tokenizer, len(prompt)).shape == (0, len(prompt))


def test_without_a_template_the_prompt_is_text(tokenizer) -> None:
    tokenizer.chat_template = None
    row = row_of([{"role": "user", "content": "a<|end|>cat"}, TURN[1]], tokenizer)
    given = (~row[row < 0]).tolist()
    assert given[0] == tokenizer.bos_token_id
    # Text that spells a special token is the text it is.
    assert tokenizer.convert_tokens_to_ids("<|end|>") not in given
    with pytest.raises(UserError, match="no chat template, by which a conversation of 3 messages"):
        row_of([*TURN, *TURN], tokenizer)


def test_a_template_that_changes_a_prompt_afterwards_is_refused(tokenizer) -> None:
    tokenizer.chat_template = TEMPLATE.replace("{{ m.role }}", "{{ m.role if loop.last else 'cat' }}")
    with pytest.raises(UserError, match="writes a prompt otherwise when its answer follows"):
        row_of(TURN, tokenizer)
    tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    with pytest.raises(UserError, match=r"refuses .*: no such role"):
        row_of(TURN, tokenizer)


def test_conversations_are_read_from_either_kind_of_line(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"prompt": "a cat", "response": "the red bird"}) + "\n" + json.dumps({"messages": TURN}))
    data = settings("chat", path=str(path))
    assert [json.loads(text) for text in texts(data, 0)] == [TURN, TURN]
    path.write_text(json.dumps({"prompt": "a cat"}))
    assert [messages for _, messages in read_conversations(path)] == [TURN[:1]]
    for line in ({"prompt": "a cat"}, {"messages": [*TURN, TURN[0]]}):
        path.write_text(json.dumps(line))
        with pytest.raises(UserError, match=r"chat.jsonl line 1 ends without an answer.*halfstep respond writes it"):
            list(texts(data, 0))


@pytest.mark.parametrize(
    "line",
    [
        {"text": "a cat"},
        {"response": "a cat"},
        {"messages": []},
        {"messages": [{"role": "user"}]},
        {"messages": "a cat"},
    ],
)
def test_a_line_that_is_no_conversation_is_named(line: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text("\n" + json.dumps(line))
    with pytest.raises(UserError, match=r"chat.jsonl line 2 is no conversation but"):
        list(read_conversations(path))
    other = path.rename(tmp_path / "chat.txt")
    with pytest.raises(UserError, match=r"chat.txt is not .jsonl"):
        list(read_conversations(other))
