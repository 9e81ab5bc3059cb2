"""Kinds of masked language models on the hub: which class of transformers each is, and how its files have it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from halfstep.run.errors import UserError


def _as_it_is(values: dict[str, Any]) -> dict[str, Any]:
    return values


@dataclass(frozen=True)
class Authors:
    """How the authors of a family write their folders.

    Attributes:
        layout: what `halfstep export` calls it.
        entries: of config.json: the class that their tools look for, and where its code is.
        config: from the entries of a version 4 of transformers to theirs; ValueError where they have no place for one.
    """

    layout: str
    entries: Mapping[str, Any]
    config: Callable[[dict[str, Any]], dict[str, Any]] = _as_it_is


@dataclass(frozen=True)
class Family:
    """How models of one `model_type` are read and written.

    Attributes:
        model_type: the one under which transformers has the network.
        is_shifted: a position's state predicts the token after it; None where the type does not settle it.
        is_decoder: transformers has it as a causal language model.
        tensors: beginnings of their tensors' names, and what they are in transformers; * is a number.
        embedding: their name for that of the tokens, where config.json may have fewer tokens than it; empty elsewhere.
        config: from the entries of config.json to those of transformers' configuration.
        authors: None where transformers' own files are the only ones.
    """

    model_type: str
    is_shifted: bool | None
    is_decoder: bool = True
    tensors: Mapping[str, str] = field(default_factory=dict)
    embedding: str = ""
    config: Callable[[dict[str, Any]], dict[str, Any]] = _as_it_is
    authors: Authors | None = None

    @property
    def key_mapping(self) -> dict[str, str]:
        """Their names as regular expressions, and what they become in transformers."""
        return _renaming(self.tensors)

    def their_name(self, name: str) -> str:
        """What a tensor of transformers is called in their files."""
        for pattern, theirs in _renaming({ours: theirs for theirs, ours in self.tensors.items()}).items():
            name = re.sub(pattern, theirs, name)
        return name

    def their_config(self, values: Mapping[str, Any], mask_token_id: int) -> dict[str, Any]:
        """Their config.json, from one that transformers 5 wrote.

        Raises:
            ValueError: the network has what theirs cannot.
        """
        assert self.authors is not None
        scaling = dict(values["rope_parameters"])
        older = {
            "rope_theta": scaling.pop("rope_theta"),
            "rope_scaling": None if scaling == {"rope_type": "default"} else scaling,
            "torch_dtype": values["dtype"],
            "mask_token_id": mask_token_id,
        }
        newer = ("rope_parameters", "dtype", "is_causal", "model_type", "architectures")
        left = {name: value for name, value in values.items() if name not in newer}
        return {**self.authors.entries, **self.authors.config({**left, **older})}


def _renaming(names: Mapping[str, str]) -> dict[str, str]:
    return {
        "^" + re.escape(name).replace(r"\*", r"(\d+)") + r"\.": other.replace("*", r"\1") + "."
        for name, other in names.items()
    }


_LLADA_BLOCK_TENSORS = {
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
_LLADA_TENSORS = {
    "model.transformer.wte": "model.embed_tokens",
    "model.transformer.ln_f": "model.norm",
    "model.transformer.ff_out": "lm_head",
    **{
        f"model.transformer.blocks.*.{theirs}": f"model.layers.*.{ours}"
        for theirs, ours in _LLADA_BLOCK_TENSORS.items()
    },
}
_DIFFUGPT_TENSORS = {"denoise_model": "transformer", "embed_tokens": "transformer.wte"}
"""Of the wrapper around a GPT-2 in which DiffuGPT was trained; its config.json names a GPT-2."""
_LLADA_ENTRIES = {
    "embedding_size": "vocab_size",
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_layers": "num_hidden_layers",
    "mlp_hidden_size": "intermediate_size",
    "rms_norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "max_sequence_length": "max_position_embeddings",
    "weight_tying": "tie_word_embeddings",
}
_LLADA_TOKENS = ("bos_token_id", "mask_token_id", "eos_token_id", "pad_token_id")
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
_LLAMA_ONLY = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu", "rope_scaling": None}
"""What transformers' Llama can do beside this, LLaDA's code cannot."""
_LLADA_DROPOUTS = ("attention_dropout", "embedding_dropout", "residual_dropout")


def _check_only(values: Mapping[str, Any], known: Mapping[str, Any], verb: str) -> None:
    for name, value in known.items():
        if values.get(name, value) != value:
            raise ValueError(f"{name} is {values[name]!r}, and only {value!r} can be {verb}")


def _llada(values: dict[str, Any]) -> dict[str, Any]:
    _check_only(values, _LLADA_ONLY, "read")
    return {
        **{ours: values[theirs] for theirs, ours in _LLADA_ENTRIES.items()},
        **{name: values.get(name) for name in _LLADA_TOKENS},
        "num_key_value_heads": values.get("n_kv_heads") or values["n_heads"],
    }


def _as_llada(values: dict[str, Any]) -> dict[str, Any]:
    heads = values["num_attention_heads"]
    _check_only(values, {**_LLAMA_ONLY, "head_dim": values["hidden_size"] // heads}, "written")
    return {
        **_LLADA_ONLY,
        # Of dropout their code has some where nothing is said.
        **dict.fromkeys(_LLADA_DROPOUTS, 0.0),
        **{theirs: values[ours] for theirs, ours in _LLADA_ENTRIES.items()},
        **{name: values.get(name) for name in (*_LLADA_TOKENS, "torch_dtype", "use_cache")},
        "n_kv_heads": values["num_key_value_heads"],
        "vocab_size": values["vocab_size"],
    }


def _entries(model_type: str, architecture: str, **classes: str) -> dict[str, Any]:
    """The entries that name a class; transformers finds its code in the repository before the two dashes."""
    return {"model_type": model_type, "architectures": [architecture], **({"auto_map": classes} if classes else {})}


_LLADA_CODE, _DREAM_CODE = "GSAI-ML/LLaDA-8B-Base--", "Dream-org/Dream-v0-Base-7B--"
_LLADA_AUTHORS = Authors(
    "llada",
    _entries(
        "llada",
        "LLaDAModelLM",
        AutoConfig=f"{_LLADA_CODE}configuration_llada.LLaDAConfig",
        AutoModel=f"{_LLADA_CODE}modeling_llada.LLaDAModelLM",
        AutoModelForCausalLM=f"{_LLADA_CODE}modeling_llada.LLaDAModelLM",
    ),
    _as_llada,
)
_DREAM_AUTHORS = Authors(
    "dream",
    _entries(
        "Dream",
        "DreamModel",
        AutoConfig=f"{_DREAM_CODE}configuration_dream.DreamConfig",
        AutoModel=f"{_DREAM_CODE}modeling_dream.DreamModel",
    ),
)


def _a2d(name: str) -> Family:
    entries = _entries(f"a2d-{name.lower()}", f"A2D{name}LMHeadModel")
    return Family(name.lower(), is_shifted=False, authors=Authors("a2d", entries))


FAMILIES = {
    **{f"a2d-{name.lower()}": _a2d(name) for name in ("Llama", "Qwen2", "Qwen3")},
    "Dream": Family("qwen2", is_shifted=True, authors=_DREAM_AUTHORS),
    "llada": Family("llama", is_shifted=False, tensors=_LLADA_TENSORS, config=_llada, authors=_LLADA_AUTHORS),
    # Made from autoregressive models: some keep their shift, and some do not.
    **{name: Family(name, is_shifted=None) for name in ("llama", "mistral", "qwen2", "qwen3")},
    "gpt2": Family("gpt2", is_shifted=None, tensors=_DIFFUGPT_TENSORS, embedding="embed_tokens.weight"),
}

LAYOUTS = tuple(dict.fromkeys(family.authors.layout for family in FAMILIES.values() if family.authors))

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


def family_in_layout(layout: str, model_type: str, *, is_shifted: bool, source: object) -> Family:
    """The family whose layout it is, for a model of transformers' type.

    Raises:
        UserError: its authors have no such models.
    """
    able = {
        family.authors.layout: family
        for family in FAMILIES.values()
        if family.authors and (family.model_type, family.is_shifted) == (model_type, is_shifted)
    }
    if layout not in able:
        raise UserError(
            f"{source} is a {model_type} whose states predict {'the next token' if is_shifted else 'their own tokens'},"
            f" which the layout {layout} has no place for: give --layout {' or '.join([*able, 'plain'])}"
        )
    return able[layout]
