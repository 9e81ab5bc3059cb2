"""Folders of masked language models as they lie on the hub, with random weights."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

VOCAB, MASK, NUM_TOKENS = 97, 5, 95
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FEW = {"num_key_value_heads": 2}
OWN: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "distilbert": {},
    "electra": {"embedding_size": 16},
    # Farther than its local attention sees.
    "modernbert": {"cls_token_id": 1, "sep_token_id": 2, "local_attention": 8},
    "eurobert": {"num_key_value_heads": 4, "mask_token_id": MASK},
    "gpt2": {},
    "llama": FEW,
    "mistral": FEW,
    "qwen2": {**FEW, "tie_word_embeddings": True},
    "qwen3": {**FEW, "head_dim": 8},
}
DECODERS = ("gpt2", "llama", "mistral", "qwen2", "qwen3")


def published(folder: Path, model_type: str, **entries: Any) -> PreTrainedModel:
    """A network with random weights, written into a folder as it lies on the hub."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SIZES, **OWN[model_type], **entries})
    auto_class = AutoModelForCausalLM if model_type in DECODERS else AutoModelForMaskedLM
    network = auto_class.from_config(config).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    network.tie_weights()
    network.save_pretrained(folder)
    return network


LLADA = {
    "model.embed_tokens": "model.transformer.wte",
    "model.norm": "model.transformer.ln_f",
    "lm_head": "model.transformer.ff_out",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}
"""What a Llama's tensors are called in LLaDA's files; its layers are model.transformer.blocks."""
LLADA_CONFIG = {
    "model_type": "llada",
    "architectures": ["LLaDAModelLM"],
    "auto_map": {
        "AutoConfig": "configuration_llada.LLaDAConfig",
        "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
        "AutoModel": "modeling_llada.LLaDAModelLM",
    },
    "attention_dropout": 0.0,
    "embedding_dropout": 0.0,
    "residual_dropout": 0.0,
    "block_type": "llama",
    "layer_norm_type": "rms",
    "activation_type": "silu",
    "rope": True,
    "alibi": False,
    "include_bias": False,
    "d_model": 32,
    "n_heads": 4,
    "n_kv_heads": 2,
    "n_layers": 2,
    "mlp_hidden_size": 64,
    "embedding_size": VOCAB,
    "vocab_size": NUM_TOKENS,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_sequence_length": 64,
    "weight_tying": False,
    "mask_token_id": MASK,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


def llada(folder: Path, vocab_size: int = VOCAB, **entries: Any) -> PreTrainedModel:
    """A Llama under LLaDA's names, in two files with an index, as the hub has it."""
    sizes = {"rms_norm_eps": 1e-5, "rope_theta": 500000.0, "vocab_size": vocab_size}
    network = published(folder, "llama", **sizes, tie_word_embeddings=entries.get("weight_tying", False))
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        for ours, theirs in LLADA.items():
            name = name.replace(ours, theirs)
        tensors[name.replace("model.layers.", "model.transformer.blocks.")] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    split(folder)
    (folder / "config.json").write_text(json.dumps({**LLADA_CONFIG, "embedding_size": vocab_size, **entries}))
    return network


def diffugpt(folder: Path, num_named: int = VOCAB, **entries: Any) -> PreTrainedModel:
    """A GPT-2 in the wrapper that DiffuGPT was trained in, whose config.json has `num_named` tokens."""
    network = published(folder, "gpt2", **entries)
    tensors = load_file(folder / "model.safetensors")
    embedding = tensors.pop("transformer.wte.weight")
    tensors = {name.replace("transformer.", "denoise_model."): tensor for name, tensor in tensors.items()}
    save_file({"embed_tokens.weight": embedding, **tensors}, folder / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "vocab_size": num_named}))
    return network


def split(folder: Path) -> None:
    """Write a folder's weights in two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts, index = [dict(list(tensors.items())[i::2]) for i in range(2)], {}
    for i, part in enumerate(parts, start=1):
        save_file(part, folder / f"model-0000{i}-of-00002.safetensors", metadata={"format": "pt"})
        index |= dict.fromkeys(part, f"model-0000{i}-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def of_authors(folder: Path, model_type: str, **entries: Any) -> PreTrainedModel:
    """A network under transformers' names of tensors and its authors' config.json, of the time of transformers 4."""
    native = {"Dream": "qwen2"}.get(model_type, model_type.removeprefix("a2d-"))
    network = published(folder, native, **entries)
    values = json.loads((folder / "config.json").read_text())
    theta = values.pop("rope_parameters")["rope_theta"]
    values |= {"rope_theta": theta, "rope_scaling": None, "torch_dtype": values.pop("dtype"), "model_type": model_type}
    if model_type == "Dream":
        values |= {"architectures": ["DreamModel"], "mask_token_id": entries.get("mask_token_id", MASK)}
        values["auto_map"] = {"AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel"}
    else:
        values["architectures"] = [f"A2D{native.capitalize()}LMHeadModel"]
    (folder / "config.json").write_text(json.dumps(values))
    return network
