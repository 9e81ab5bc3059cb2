"""Kinds of masked language models on the hub: which class of transformers each is, and what its files leave out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from halfstep.run.errors import UserError


def _as_it_is(values: dict[str, Any]) -> dict[str, Any]:
    return values


@dataclass(frozen=True)
class Family:
    """How models of one `model_type` are read.

    Attributes:
        model_type: the one under which transformers has the network.
        is_shifted: a position's state predicts the token after it; None where the type does not settle it.
        is_decoder: transformers has it as a causal language model.
        key_mapping: names of tensors as regular expressions, and what transformers calls them.
        config: from the entries of config.json to those of transformers' configuration.
    """

    model_type: str
    is_shifted: bool | None
    is_decoder: bool = True
    key_mapping: Mapping[str, str] = field(default_factory=dict)
    config: Callable[[dict[str, Any]], dict[str, Any]] = _as_it_is


_LLADA_BLOCK = r"^model\.transformer\.blocks\.(\d+)\."
_LLADA_NAMES = {
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
_LLADA_KEYS = {
    r"^model\.transformer\.wte\.": "model.embed_tokens.",
    r"^model\.transformer\.ln_f\.": "model.norm.",
    r"^model\.transformer\.ff_out\.": "lm_head.",
    **{rf"{_LLADA_BLOCK}{theirs}\.": rf"model.layers.\1.{ours}." for theirs, ours in _LLADA_NAMES.items()},
}
_LLADA_ONLY = {
    "block_type": "llama",
    "layer_norm_type": "rms",
    "rope": True,
    "alibi": False,
    "scale_logits": False,
    "input_emb_norm": False,
    "attention_layer_norm": False,
    "activation_type": "silu",
    "block_group_size": 1,
    "include_bias": False,
    "include_qkv_bias": False,
}
"""What LLaDA's code can do beside this, transformers' Llama cannot."""


def _llada(values: dict[str, Any]) -> dict[str, Any]:
    for name, value in _LLADA_ONLY.items():
        if values.get(name, value) != value:
            raise ValueError(f"{name} is {values[name]!r}, and only {value!r} can be read")
    return {
        "vocab_size": values["embedding_size"],
        "hidden_size": values["d_model"],
        "num_attention_heads": values["n_heads"],
        "num_key_value_heads": values.get("n_kv_heads") or values["n_heads"],
        "num_hidden_layers": values["n_layers"],
        "intermediate_size": values["mlp_hidden_size"],
        "rms_norm_eps": values["rms_norm_eps"],
        "rope_theta": values["rope_theta"],
        "max_position_embeddings": values["max_sequence_length"],
        "tie_word_embeddings": values["weight_tying"],
        "mask_token_id": values.get("mask_token_id"),
    }


FAMILIES = {
    "a2d-llama": Family("llama", is_shifted=False),
    "a2d-qwen2": Family("qwen2", is_shifted=False),
    "a2d-qwen3": Family("qwen3", is_shifted=False),
    "Dream": Family("qwen2", is_shifted=True),
    "llada": Family("llama", is_shifted=False, key_mapping=_LLADA_KEYS, config=_llada),
    # Made from autoregressive models: some keep their shift, and some do not.
    **{name: Family(name, is_shifted=None) for name in ("gpt2", "llama", "mistral", "qwen2", "qwen3")},
}

REFUSED = {
    "sedd": "it predicts ratios at a given noise, not tokens",
    "duo": "its noise is uniform, and halfstep's is masks",
    "bd3lm": "its attention goes by blocks",
    "sdar": "its attention goes by blocks",
    "Fast_dLLM_Qwen": "its attention goes by blocks",
    "llada2_moe": "transformers has no class for it, and its attention goes by blocks",
    "lladamoe": "its experts are not read yet",
}


def family_of(values: Mapping[str, Any], source: object) -> Family:
    """The family of a model's config.json; transformers' own masked language models are families of their own.

    Raises:
        UserError: it is none that can be read.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    model_type = str(values.get("model_type"))
    if model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return Family(model_type, is_shifted=False, is_decoder=False)
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    reason = REFUSED.get(model_type, f"known are {', '.join(FAMILIES)} and the masked language models of transformers")
    raise UserError(f"{source} is of the type {model_type}, which cannot be a teacher: {reason}")
