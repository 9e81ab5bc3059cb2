"""Models that the tools are tried on."""

from pathlib import Path

import pytest
import torch

from halfstep.data.tokenizer import train_word_tokenizer
from halfstep.model.config import DenoiserConfig
from halfstep.model.denoiser import Denoiser
from halfstep.model.gpt2 import new_gpt2


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models of both kinds, `models/NAME` of a project that has nothing else."""
    tokenizer = train_word_tokenizer(["the cat saw a red bird and ran"], 40)
    root = tmp_path_factory.mktemp("project") / "models"
    sizes = {"vocab_size": len(tokenizer), "length": 12, "hidden_size": 16, "num_blocks": 1, "num_heads": 2}
    torch.manual_seed(0)
    denoiser = Denoiser(
        DenoiserConfig(**sizes, mask_token_id=tokenizer.mask_token_id, cond_dim=8, dropout=0.0, noise_epsilon=1e-3)
    )
    # Large enough that a text depends on the order in which it is written, small enough that it is not one word.
    with torch.no_grad():
        for weight in denoiser.parameters():
            weight.normal_(std=0.3)
    for name, model in {"denoiser": denoiser, "causal": new_gpt2(**sizes, dropout=0.0)}.items():
        (root / name).mkdir(parents=True)
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: root / name for name in ("denoiser", "causal")}
