import json

import numpy as np
import pytest

from halfstep.data.finding import is_local
from halfstep.data.texts import pack_texts
from halfstep.data.tokenizer import train_word_tokenizer
from halfstep.run.errors import UserError

WORDS = "the cat saw a red dog and the dog ran to a house"


@pytest.fixture
def tokenizer():
    return train_word_tokenizer([WORDS] * 3, 64)


def pack(source, tokenizer, scratch, **changes):
    settings = {"hub_config": None, "split": "test", "text_column": "text", "context_length": 8, "num_sequences": None}
    return pack_texts("books", str(source), tokenizer=tokenizer, scratch=scratch, **{**settings, **changes})


def test_files_become_rows_of_the_models_tokens(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("the cat saw a red dog")
    (tmp_path / "b.TXT").write_text("and the dog ran to a house")
    (tmp_path / ".c.txt").write_text("a copy")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    tokens = pack(tmp_path, tokenizer, scratch)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    first = tokenizer.encode("the cat saw a red dog", add_special_tokens=False)
    second = tokenizer.encode("and the dog ran to a house", add_special_tokens=False)
    stream = [*first, eos, *second, eos]
    assert tokens.tolist() == [[bos, *stream[start : start + 6], eos] for start in (0, 6)]
    assert not isinstance(tokens, np.memmap)


def test_a_number_of_sequences_and_a_column(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text(json.dumps({"story": WORDS}) + "\n")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assert len(pack(tmp_path / "a.jsonl", tokenizer, scratch, text_column="story", num_sequences=1)) == 1


def test_what_cannot_be_read_names_its_parameter(tmp_path, tokenizer):
    with pytest.raises(UserError, match=r"evaluate\.likelihood_on books \(.*none\.txt\): .*matches no file"):
        pack(tmp_path / "none.txt", tokenizer, tmp_path)
    (tmp_path / "short.txt").write_text("the cat")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.raises(UserError, match=r"likelihood_on books .*has 3 tokens"):
        pack(tmp_path / "short.txt", tokenizer, scratch)


def test_a_hub_id_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not is_local("owner/name")
    assert not is_local("wikitext")
    for source in ("books/*.txt", "./books", "~/books", "/books", "a.txt", "a.parquet", "A.TXT"):
        assert is_local(source)
    (tmp_path / "wikitext").mkdir()
    assert is_local("wikitext")
