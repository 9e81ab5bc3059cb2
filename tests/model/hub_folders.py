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
    "auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM"},
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
}


def llada(folder: Path, vocab_size: int = VOCAB, **entries: Any) -> PreTrainedModel:
    """A Llama under LLaDA's names, in two files with an index, as the hub has it."""
    network = published(folder, "llama", rms_norm_eps=1e-5, rope_theta=500000.0, vocab_size=vocab_size)
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        for ours, theirs in LLADA.items():
            name = name.replace(ours, theirs)
        tensors[name.replace("model.layers.", "model.transformer.blocks.")] = tensor
    (folder / "model.safetensors").unlink()
    parts, index = [dict(list(tensors.items())[i::2]) for i in range(2)], {}
    for i, part in enumerate(parts, start=1):
        save_file(part, folder / f"model-0000{i}-of-00002.safetensors", metadata={"format": "pt"})
        index |= dict.fromkeys(part, f"model-0000{i}-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps({**LLADA_CONFIG, "embedding_size": vocab_size, **entries}))
    return network
