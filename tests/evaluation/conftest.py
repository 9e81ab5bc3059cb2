"""A word tokenizer and a tiny GPT-2, built on the spot."""

from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

WORDS = ["the", "cat", "dog", "saw", "a", "bird", "ran", "to", "red", "house"]


def build_tokenizer(words: list[str], *, has_mask: bool = True) -> PreTrainedTokenizerFast:
    """One token a word, the space before it included; BOS, EOS and UNK come first, the mask last."""
    tokens = ["<bos>", "<eos>", "<unk>", *(f"▁{word}" for word in words)]
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    if has_mask:
        tokenizer.add_special_tokens({"mask_token": "<mask>"})
    return tokenizer


def build_gpt2(vocab_size: int, *, length: int = 16) -> GPT2LMHeadModel:
    """Random weights, large enough that predictions are far from uniform."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=length,
        n_embd=16,
        n_layer=1,
        n_head=2,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config).eval()


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(WORDS)


@pytest.fixture(scope="module")
def gpt2() -> GPT2LMHeadModel:
    return build_gpt2(len(WORDS) + 4)


@pytest.fixture
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """`build_tokenizer`."""
    return build_tokenizer
