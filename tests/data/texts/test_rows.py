import json

import pytest

from halfstep.data.texts import encoding
from halfstep.data.texts.rows import pack_texts
from halfstep.data.tokenizer import train_word_tokenizer
from halfstep.run.errors import UserError
from halfstep.run.finding import is_local
from halfstep.settings.evaluation import TextSourceSettings

WORDS = "the cat saw a red dog and the dog ran to a house"


@pytest.fixture
def tokenizer():
    return train_word_tokenizer([WORDS] * 3, 64)


def pack(source, tokenizer, num_sequences=None, **changes):
    text = TextSourceSettings(name="books", source=str(source), **changes)
    return pack_texts(text, tokenizer, context_length=8, num_sequences=num_sequences)


def test_files_become_rows_of_the_models_tokens(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("the cat saw a red dog")
    (tmp_path / "b.TXT").write_text("and the dog ran to a house")
    (tmp_path / ".c.txt").write_text("a copy")
    tokens = pack(tmp_path, tokenizer)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    first = tokenizer.encode("the cat saw a red dog", add_special_tokens=False)
    second = tokenizer.encode("and the dog ran to a house", add_special_tokens=False)
    stream = [*first, eos, *second, eos]
    rows = [[bos, *stream[start : start + 6], eos] for start in (0, 6)]
    assert tokens.tolist() == rows
    assert pack(tmp_path, tokenizer, 1).tolist() == rows[:1]
    assert pack(tmp_path, tokenizer, 9).tolist() == rows


def test_a_number_of_sequences_needs_no_more_text_than_fills_them(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(encoding, "CHARACTERS_PER_BATCH", len(WORDS))
    line = json.dumps({"story": WORDS}) + "\n"
    (tmp_path / "a.jsonl").write_text(line * 3)
    every = pack(tmp_path / "a.jsonl", tokenizer, text_column="story")
    (tmp_path / "a.jsonl").write_text(line * 3 + "no JSON")
    first = pack(tmp_path / "a.jsonl", tokenizer, 2, text_column="story")
    assert first.tolist() == every[:2].tolist()


def test_what_cannot_be_read_names_its_parameter(tmp_path, tokenizer):
    with pytest.raises(UserError, match=r"evaluate\.likelihood_on books \(.*none\.txt\): .*matches no file"):
        pack(tmp_path / "none.txt", tokenizer)
    (tmp_path / "short.txt").write_text("the cat")
    with pytest.raises(UserError, match=r"likelihood_on books .*has 3 tokens"):
        pack(tmp_path / "short.txt", tokenizer)


def test_a_hub_id_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not is_local("owner/name")
    assert not is_local("wikitext")
    for source in ("books/*.txt", "./books", "~/books", "/books", "a.txt", "a.parquet", "A.TXT"):
        assert is_local(source)
    (tmp_path / "wikitext").mkdir()
    assert is_local("wikitext")
