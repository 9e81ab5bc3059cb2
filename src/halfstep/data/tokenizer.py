"""Tokenizers: trained on the corpus or loaded, and with one mask token.

The library is `transformers` (fast tokenizers only), imported where it is needed because that takes seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfstep.run.errors import UserError, one_line
from halfstep.run.faults import storage_fault
from halfstep.run.files import is_there, resolve_user_path
from halfstep.run.retries import with_retries
from halfstep.settings.data import TokenizerSettings

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

BOS, EOS, UNKNOWN, MASK = "<|bos|>", "<|eos|>", "<|unk|>", "<|mask|>"

WORD_UNITS = r" ?\w+| ?[^\w\s]|\s"
"""Every character is in one unit: a word or a mark with the space before it, or other white space."""

NUM_BYTES = 256

TOKENIZER_TYPES = {"DreamTokenizer": "qwen2"}
"""Classes that hub repositories bring code for, and the type under which transformers has what they do."""


def make_tokenizer(settings: TokenizerSettings, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train the tokenizer that the parameters name on texts, or load it; either has a mask token, BOS and EOS."""
    trainers = {"train-words": train_word_tokenizer, "train-bpe": train_bpe_tokenizer}
    if settings.source not in trainers:
        return with_mask_token(load_tokenizer(settings.source, settings.revision), settings.mask_token)
    assert settings.vocab_size is not None, "settings refuse to train a tokenizer without it"
    return trainers[settings.source](texts, settings.vocab_size)


def train_word_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer whose tokens are whole words and punctuation marks, the most frequent ones.

    Decoding gives back the text exactly, except for words outside the vocabulary, which become `<|unk|>`.

    Args:
        texts: documents, read once.
        vocab_size: ids at most, with the special tokens and the mask token.
    Raises:
        UserError: `vocab_size` leaves no room for a word.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    special_tokens = [BOS, EOS, UNKNOWN]
    _check_vocab_size(vocab_size, len(special_tokens) + 2, "train-words")
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD_UNITS), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    trainer = trainers.WordLevelTrainer(vocab_size=vocab_size - 1, special_tokens=special_tokens, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return _wrap(tokenizer, unk_token=UNKNOWN)


def train_bpe_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, as GPT-2's: every text can be written, and decoding is exact.

    Args:
        texts: documents, read once.
        vocab_size: ids at most, with the special tokens and the mask token.
    Raises:
        UserError: `vocab_size` leaves no room for the 256 bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    special_tokens = [BOS, EOS]
    _check_vocab_size(vocab_size, len(special_tokens) + NUM_BYTES + 1, "train-bpe")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        special_tokens=special_tokens,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrap(tokenizer)


def load_tokenizer(source: str | Path, revision: str | None = None) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer; code that a hub repository brings is never run.

    Args:
        source: a `Path` is a folder, taken as it is. A `str` is a user's parameter: a folder, from the
            project's root where it is relative, or else a hub id.
        revision: branch, tag or commit of a hub id; null is the newest.
    Raises:
        UserError: there is no such tokenizer, the hub cannot be reached, or the tokenizer is not a fast one.
    """
    from transformers import AutoTokenizer
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    folder = source if isinstance(source, Path) else resolve_user_path(source)
    is_local = is_there(folder) or isinstance(source, Path) or source.startswith((".", "/", "~"))
    name = str(folder) if is_local else str(source)
    options: dict[str, Any] = {"revision": None if is_local else revision, "local_files_only": is_local}

    def load() -> Any:
        kind = get_tokenizer_config(name, **options).get("tokenizer_class")
        known = {"tokenizer_type": TOKENIZER_TYPES[kind]} if kind in TOKENIZER_TYPES else {}
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False, **known, **options)

    try:
        tokenizer = with_retries(f"tokenizer {name}", load)
    # The readers of the many kinds of tokenizers may raise anything on files that are not theirs.
    except Exception as error:
        if storage_fault(error):
            raise
        reason = one_line(error)
        way_out = (
            "the folder should hold tokenizer.json and tokenizer_config.json as save_pretrained writes them, and"
            " no code of its own: name another in data.tokenizer.source"
            if is_local
            else "without network, give a local folder: dvc exp run -S data.tokenizer.source=FOLDER"
        )
        raise UserError(f"tokenizer {name} cannot be loaded ({reason}); {way_out}") from None
    if not tokenizer.is_fast:
        raise UserError(
            f"tokenizer {name} has no fast version (tokenizer.json); give data.tokenizer.source one that has"
        )
    return tokenizer


def with_mask_token(tokenizer: PreTrainedTokenizerFast, mask_token: str | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer with a mask token, BOS and EOS: GPT-2's 50257 ids become 50258.

    Without BOS or EOS, what BERT has at the ends of a text serves, or else the one that there is.

    Args:
        tokenizer: with a mask token, or without: then a new one gets the id `len(tokenizer)`.
        mask_token: the one of its tokens that masks, where it does not say so.
    Raises:
        UserError: nothing marks the ends of a text; it has no such token; or one is to be added, and the ids are
            not 0, 1, 2, ..., each of one token.
    """
    name = tokenizer.name_or_path
    tokenizer.bos_token = tokenizer.bos_token or tokenizer.cls_token or tokenizer.eos_token
    tokenizer.eos_token = tokenizer.eos_token or tokenizer.sep_token or tokenizer.bos_token
    if tokenizer.bos_token is None:
        raise UserError(
            f"tokenizer {name} has no BOS and no EOS token, one of which documents need; set data.tokenizer.source to"
            " one that has it, such as gpt2"
        )
    if mask_token is not None:
        if mask_token not in tokenizer.get_vocab():
            raise UserError(f"tokenizer {name} has no token {mask_token!r}, which data.tokenizer.mask_token names")
        tokenizer.mask_token = mask_token
    if tokenizer.mask_token_id is not None:
        return _masking_with_no_text(tokenizer)
    if sorted(tokenizer.get_vocab().values()) != [*range(len(tokenizer))]:
        raise UserError(
            f"tokenizer {name} has {len(tokenizer)} tokens, whose ids must be 0, 1, 2, ... without gaps, each of"
            " one token, for a mask token to be added; number its tokens again, or set data.tokenizer.source to"
            " another, such as gpt2"
        )
    tokenizer.add_special_tokens({"mask_token": MASK})
    return tokenizer


def _masking_with_no_text(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer with its mask token under another name, if byte pairs of texts would make it.

    DiffuGPT-s masks with twelve dashes, DiffuLLaMA with "ific": of texts that have them other tokens are made.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    mask, values = tokenizer.mask_token, json.loads(tokenizer.backend_tokenizer.to_str())
    model = values["model"]
    if not any("".join(pair) == mask for pair in model.get("merges", ())):
        return tokenizer
    model["vocab"][MASK] = model["vocab"].pop(mask)
    model["merges"] = [pair for pair in model["merges"] if mask not in (*pair, "".join(pair))]
    values["added_tokens"] = [token for token in values["added_tokens"] if token["content"] != mask]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(values)),
        name_or_path=tokenizer.name_or_path,
        chat_template=tokenizer.chat_template,
        clean_up_tokenization_spaces=False,
        **{**tokenizer.special_tokens_map, "mask_token": MASK},
    )


def vocab_size_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the highest id."""
    return 1 + max(tokenizer.get_vocab().values())


def num_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """Ids that a model needs to know to read what a tokenizer writes; it never writes its mask token."""
    return 1 + max(token_id for token, token_id in tokenizer.get_vocab().items() if token != tokenizer.mask_token)


def check_vocabulary(
    tokenizer: PreTrainedTokenizerFast, source: str | Path, *, vocab_size: int, mask_token_id: int | None
) -> None:
    """Refuse a tokenizer that is not a model's own: its ids would mean something else there, or nothing.

    Args:
        tokenizer: with a mask token.
        source: of the model, for the message.
        vocab_size: ids that the model knows; one fewer will do where it knows no mask token.
        mask_token_id: the model's; None where it knows none.
    Raises:
        UserError: the tokenizer has more ids than the model, or its mask token, which it needs, at another one.
    """
    has_another_mask = mask_token_id not in (None, tokenizer.mask_token_id)
    if tokenizer.mask_token_id is None or has_another_mask or num_ids(tokenizer) > vocab_size:
        raise UserError(
            f"{source} knows {vocab_size} tokens, its mask token {mask_token_id}, but its tokenizer has"
            f" {len(tokenizer)}, its mask token {tokenizer.mask_token_id}: put the tokenizer there that it was trained"
            " with, or train it again: dvc repro"
        )


def _check_vocab_size(vocab_size: int, smallest: int, source: str) -> None:
    if vocab_size < smallest:
        raise UserError(
            f"data.tokenizer.vocab_size is {vocab_size}, but {source} needs {smallest} at least:"
            f" dvc exp run -S data.tokenizer.vocab_size={smallest}"
        )


def _wrap(tokenizer: Tokenizer, **special_tokens: str) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return with_mask_token(
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token=BOS,
            eos_token=EOS,
            clean_up_tokenization_spaces=False,
            **special_tokens,
        )
    )
