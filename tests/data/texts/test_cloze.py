"""Cloze passages: read, checked line by line, written in one form."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from dvc.fs import LocalFileSystem

from halfstep.data.texts.cloze import check_passage, load_cloze, split_passage, write_cloze
from halfstep.data.tokenizer import train_word_tokenizer
from halfstep.evaluation.metrics.cloze import load_passages
from halfstep.run.errors import UserError


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path / "mine.jsonl"


def test_written_passages_are_read_back(source: Path, tmp_path: Path) -> None:
    assert write_cloze(source, iter(["a café there ", "\nso it\nis"])) == 2
    assert [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()] == [
        {"text": "a café there"},
        {"text": "so it\nis"},
    ]
    assert list(load_cloze("mine.jsonl")) == ["a café there", "so it\nis"]


def test_no_passages_make_a_file_of_none_that_dvc_does_not_warn_of(tmp_path: Path) -> None:
    file = tmp_path / "cloze.jsonl"
    assert write_cloze(file, ()) == 0
    assert not LocalFileSystem().is_empty(str(file))
    assert load_passages(file, None) == list(load_cloze(str(file))) == []


@pytest.mark.parametrize(
    ("text", "context", "target"),
    [
        ("alpha beta omega", "alpha beta", " omega"),
        ("alpha\tomega", "alpha", "\tomega"),
        ("alpha\nomega", "alpha", "\nomega"),
        ("alpha\r\n\tomega ", "alpha", "\r\n\tomega"),
        ("alpha\u00a0omega", "alpha", "\u00a0omega"),
        ("alpha\u2028omega", "alpha", "\u2028omega"),
        ("alpha\u3000 omega", "alpha", "\u3000 omega"),
        ("alpha  omega .", "alpha  omega", " ."),
        ("alpha omega!", "alpha", " omega!"),
        ("omega omega", "omega", " omega"),
    ],
)
def test_white_space_of_any_kind_is_before_the_last_word(text: str, context: str, target: str) -> None:
    assert split_passage(text) == (context, target)


@pytest.mark.parametrize("text", ["", " \t", "alpha", "alpha ", "\u00a0alpha\n", "alpha\u200bomega", "alpha-omega"])
def test_one_word_is_no_passage(text: str) -> None:
    with pytest.raises(UserError, match="is not a cloze passage, which has two words at least"):
        split_passage(text)


def test_a_target_is_asked_of_models_of_the_context_length() -> None:
    tokenizer = train_word_tokenizer(["alpha beta omega"], 64)
    check_passage("alpha " * 50 + "unknown", tokenizer, 8)
    check_passage("alpha !!!!!!", tokenizer, 8)
    with pytest.raises(UserError, match=r"' !!!!!!!' has 7 tokens, more than fit"):
        check_passage("alpha !!!!!!!", tokenizer, 8)
    # Text that spells the mask token is the text it is: five units.
    check_passage("alpha <|mask|>", tokenizer, 7)
    with pytest.raises(UserError, match="has 5 tokens"):
        check_passage("alpha <|mask|>", tokenizer, 6)


@pytest.mark.parametrize(
    ("normalizer", "message"),
    [("Strip", "has no tokens of its own"), (None, "the tokenizer cannot tokenize 'alpha gamma'")],
)
def test_a_target_without_tokens_is_refused(normalizer: str | None, message: str) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "alpha": 2}))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if normalizer:
        backend.normalizer = normalizers.Replace("gamma", "")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    with pytest.raises(UserError, match=message):
        check_passage("alpha gamma", tokenizer, 8)


def test_a_failure_leaves_the_file_as_it_was(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "cloze.jsonl"
    write_cloze(target, ["old passage"])
    source.write_text('{"text": "a good one"}\n{"text": "one"}\n')
    with pytest.raises(UserError):
        write_cloze(target, load_cloze("mine.jsonl"))
    assert list(load_cloze(str(target))) == ["old passage"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "word"}', r"line 2: 'word' is not a cloze passage, which has two words"),
        ('{"text": ""}', r"line 2: '' is not a cloze passage, which has two words"),
        ('{"body": "two words"}', r'line 2 has no "text"'),
        ('{"text": 5}', r'line 2 has no "text" of a string'),
        ('{"text": ["a", "b"]}', r'line 2 has no "text" of a string'),
        ('{"text": "half of \\udc00"}', r"line 2 is not JSON"),
        ("{", r"line 2 is not JSON"),
    ],
)
def test_bad_lines_are_named(source: Path, tmp_path: Path, line: str, message: str) -> None:
    source.write_text(f'{{"text": "two words"}}\n{line}\n')
    with pytest.raises(UserError, match=message):
        list(load_cloze("mine.jsonl"))


def test_missing_file_is_not_taken_for_a_hub_id(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.cloze 'mine\.jsonl': .* is not there"):
        list(load_cloze("mine.jsonl"))


def test_hub_passages_are_those_of_the_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(hub_id: str, config: None, *, split: str, **options: Any) -> Dataset:
        assert (hub_id, split) == ("someone/cloze", "test")
        return Dataset.from_dict({"text": ["two words", "three more words"]})

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert list(load_cloze("someone/cloze")) == ["two words", "three more words"]


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "cloze.jsonl"
    file.write_text('{"text": "two words"}\n' * 2)
    passages = load_cloze(str(file))
    assert next(passages) == "two words"
    with file.open("a") as stream:
        stream.write('{"text": "two words"}\n')
    with pytest.raises(UserError, match=r"cloze\.jsonl changed while it was read \(44 bytes before, 66 after\)"):
        list(passages)
