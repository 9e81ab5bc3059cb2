"""Tokenizers: exact round trips, deterministic files, and one mask token."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfstep.data.corpora.stories import stories
from halfstep.data.tokenizer import (
    check_vocabulary,
    load_tokenizer,
    num_ids,
    train_bpe_tokenizer,
    train_word_tokenizer,
    vocab_size_of,
    with_mask_token,
)
from halfstep.run.errors import UserError

TEXTS = list(stories(300, seed=0))
TRAINERS = {"words": (train_word_tokenizer, 400), "bpe": (train_bpe_tokenizer, 300)}


@pytest.fixture(scope="module", params=sorted(TRAINERS))
def tokenizer(request: pytest.FixtureRequest) -> Any:
    train, vocab_size = TRAINERS[request.param]
    return train(iter(TEXTS), vocab_size)


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def test_special_ids_are_first_and_the_mask_is_last(tokenizer: Any) -> None:
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|bos|>", 0)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|eos|>", 1)
    assert (tokenizer.mask_token, tokenizer.mask_token_id) == ("<|mask|>", len(tokenizer) - 1)
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


def test_round_trip_is_exact(tokenizer: Any) -> None:
    for text in TEXTS[:50]:
        assert tokenizer.decode(ids_of(tokenizer, text)) == text


def test_vocab_size_counts_every_id_and_is_kept() -> None:
    assert len(train_bpe_tokenizer(TEXTS, 280)) == 280
    assert len(train_word_tokenizer(TEXTS, 50)) == 50


def test_words_are_whole_units_and_others_are_unknown() -> None:
    tokenizer = train_word_tokenizer(["One day, Ann sat.", "Ann ran - far."], 100)
    ids = ids_of(tokenizer, "One day, Ann slept.")
    assert tokenizer.convert_ids_to_tokens(ids) == ["One", " day", ",", " Ann", "<|unk|>", "."]
    assert tokenizer.decode(ids_of(tokenizer, "Ann ran - far.")) == "Ann ran - far."


def test_frequent_words_are_kept() -> None:
    tokenizer = train_word_tokenizer(["b b b b c c a"], 6)
    # Three special tokens, the mask, and two units.
    assert set(tokenizer.get_vocab()) == {"<|bos|>", "<|eos|>", "<|unk|>", "<|mask|>", " b", " c"}


@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=40))
def test_bpe_round_trip_of_any_text(text: str) -> None:
    assert BPE.decode(ids_of(BPE, text)) == text


BPE = train_bpe_tokenizer(TEXTS[:20], 260)


@pytest.mark.parametrize(("train", "smallest"), [(train_word_tokenizer, 5), (train_bpe_tokenizer, 259)])
def test_too_small_a_vocabulary_is_the_users_mistake(train: Any, smallest: int) -> None:
    assert len(train(TEXTS[:2], smallest)) == smallest
    with pytest.raises(UserError, match=f"vocab_size is {smallest - 1}, .* needs {smallest} at least"):
        train(TEXTS[:2], smallest - 1)


@pytest.mark.parametrize("kind", sorted(TRAINERS))
def test_saved_files_are_deterministic_and_load_again(kind: str, tmp_path: Path) -> None:
    train, vocab_size = TRAINERS[kind]
    for name in ("a", "b"):
        train(iter(TEXTS), vocab_size).save_pretrained(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert "tokenizer.json" in files
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    loaded = load_tokenizer(tmp_path / "a")
    assert loaded.mask_token_id == len(loaded) - 1
    assert loaded.decode(ids_of(loaded, TEXTS[0])) == TEXTS[0]


def wrapped(vocab: dict[str, int] | None = None, **special_tokens: Any) -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocab = vocab or {"a": 0, "b": 1, "<s>": 2, "</s>": 3, "<m>": 4, "c": 5}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocab)), **special_tokens)


def test_one_mask_token_is_appended_and_only_once() -> None:
    tokenizer = with_mask_token(wrapped(bos_token="<s>", eos_token="</s>"))
    assert tokenizer.mask_token_id == 6 == len(tokenizer) - 1
    assert len(with_mask_token(tokenizer)) == 7


def test_one_token_may_begin_and_end_as_gpt2s_does() -> None:
    tokenizer = with_mask_token(wrapped(bos_token="<s>", eos_token="<s>"))
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == 2


@pytest.mark.parametrize(
    ("given", "bos", "eos"),
    [
        ({"cls_token": "<s>", "sep_token": "</s>"}, 2, 3),  # BERT
        ({"eos_token": "</s>"}, 3, 3),  # Qwen
        ({"bos_token": "<s>"}, 2, 2),
    ],
)
def test_what_stands_at_the_ends_of_a_text_is_bos_and_eos(given: dict[str, str], bos: int, eos: int) -> None:
    tokenizer = with_mask_token(wrapped(**given))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (bos, eos)


def test_dreams_tokenizer_is_qwens_without_its_code(tmp_path: Path) -> None:
    """As it lies on the hub: byte pairs in two files, and a class that only its own code has."""
    from tokenizers.pre_tokenizers import ByteLevel

    pairs = ["Ġt", "he", "Ġthe"]
    vocab = {unit: i for i, unit in enumerate([*sorted(ByteLevel.alphabet()), *pairs])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nĠ t\nh e\nĠt he\n")
    added = {str(259 + i): {"content": token, "special": True} for i, token in enumerate(("<|endoftext|>", "<|mask|>"))}
    values = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "added_tokens_decoder": added,
        "eos_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(values))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "Dream"}))
    tokenizer = with_mask_token(load_tokenizer(tmp_path))
    assert ids_of(tokenizer, "the the") == [vocab["t"], vocab["he"], vocab["Ġthe"]]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.mask_token_id) == (259, 259, 260)


def test_a_tokenizer_without_ends_is_refused() -> None:
    with pytest.raises(UserError, match="has no BOS and no EOS token"):
        with_mask_token(wrapped())


def test_the_token_that_masks_is_where_the_tokenizer_has_it() -> None:
    ends = {"bos_token": "<s>", "eos_token": "</s>"}
    for tokenizer in (with_mask_token(wrapped(**ends, mask_token="<m>")), with_mask_token(wrapped(**ends), "<m>")):
        assert tokenizer.mask_token_id == 4
        assert len(tokenizer) == vocab_size_of(tokenizer) == 6
    # Its own, whatever ids it lacks.
    gap = wrapped({"<s>": 0, "</s>": 1, "<m>": 2, "a": 6}, **ends, mask_token="<m>")
    assert vocab_size_of(with_mask_token(gap)) == 7
    with pytest.raises(UserError, match=r"has no token '<n>', which data\.tokenizer\.mask_token names"):
        with_mask_token(wrapped(**ends), "<n>")


@pytest.mark.parametrize("is_named_there", [False, True])
def test_a_mask_token_that_texts_are_made_of_is_made_of_none(is_named_there: bool, tmp_path: Path) -> None:
    """As DiffuLLaMA's `ific`, and `ification`, which two pairs make."""
    from tokenizers import Tokenizer, decoders, models
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import PreTrainedTokenizerFast

    def ids_of_text(tokenizer: Any, text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    pairs = [("i", "f"), ("i", "c"), ("if", "ic"), ("ic", "a"), ("ific", "a"), ("if", "ica")]
    units = [*sorted(ByteLevel.alphabet()), *dict.fromkeys("".join(pair) for pair in pairs), "<s>"]
    backend = Tokenizer(models.BPE({unit: i for i, unit in enumerate(units)}, pairs))
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    others = {"bos_token": "<s>", "eos_token": "<s>", "name_or_path": "diffullama", "chat_template": "{{ messages }}"}
    named = {"mask_token": "ific"} if is_named_there else {}
    published = PreTrainedTokenizerFast(tokenizer_object=backend, **others, **named)
    assert ids_of_text(published, "ific") == [units.index("ific")]
    tokenizer = with_mask_token(published, None if is_named_there else "ific")
    assert (tokenizer.mask_token_id, len(tokenizer)) == (units.index("ific"), len(units))
    assert (tokenizer.eos_token, tokenizer.name_or_path) == ("<s>", "diffullama")
    assert tokenizer.chat_template == "{{ messages }}"
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, with_mask_token(load_tokenizer(tmp_path))):
        for text, expected in (("ific", ["if", "ic"]), ("ifica ic <|mask|>", ["ifica", "Ġ", "ic", "Ġ", *"<|mask|>"])):
            ids = ids_of_text(one, text)
            assert [units[i] for i in ids] == expected
            assert one.decode(ids) == text


@pytest.mark.parametrize(
    ("vocab", "special_tokens"),
    [
        ({f"w{i}": i for i in range(2, 24) if i != 3}, {}),
        ({"a": 2, "b": 100_000}, {}),
        ({"a": 2, "b": 2, "c": 4}, {}),
        # The library numbers an added token by the number of tokens, and so gives it an id that is taken.
        ({"a": 2, "b": 4}, {"additional_special_tokens": ["<x>"]}),
    ],
)
def test_ids_with_a_gap_or_of_two_tokens_are_refused(vocab: dict[str, int], special_tokens: dict[str, Any]) -> None:
    tokenizer = wrapped({"<s>": 0, "</s>": 1, **vocab}, bos_token="<s>", eos_token="</s>", **special_tokens)
    with pytest.raises(UserError, match="tokens, whose ids must be 0, 1, 2"):
        with_mask_token(tokenizer)


def test_added_tokens_beyond_the_vocabulary_leave_the_mask_the_last_id() -> None:
    tokenizer = wrapped(bos_token="<s>", eos_token="</s>", additional_special_tokens=["<x>", "<y>"])
    assert with_mask_token(tokenizer).mask_token_id == 8 == num_ids(tokenizer)


def test_a_model_needs_to_know_every_id_but_the_masks() -> None:
    gap = wrapped({"<s>": 0, "</s>": 1, "<m>": 2, "a": 6}, bos_token="<s>", eos_token="</s>", mask_token="<m>")
    assert num_ids(gap) == 7
    check_vocabulary(gap, "it", vocab_size=7, mask_token_id=None)
    with pytest.raises(UserError, match="it knows 6 tokens"):
        check_vocabulary(gap, "it", vocab_size=6, mask_token_id=None)


def test_a_string_is_a_path_from_the_projects_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_word_tokenizer(TEXTS[:5], 100).save_pretrained(tmp_path / "mine")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert len(load_tokenizer("mine")) <= 100
    with pytest.raises(UserError, match=r"tokenizer /.*other cannot be loaded .*should hold"):
        load_tokenizer("./other")


def test_folder_without_tokenizer_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be loaded .*should hold tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_without_network_the_message_names_the_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    def unreachable(*args: Any, **kwargs: Any) -> None:
        assert kwargs["trust_remote_code"] is False
        raise OSError("We couldn't connect to 'https://huggingface.co'\nCheck your internet connection")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", unreachable)
    with pytest.raises(UserError, match=r"someone/tokenizer cannot be loaded .*data\.tokenizer\.source=FOLDER"):
        load_tokenizer("someone/tokenizer")
