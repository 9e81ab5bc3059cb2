import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from halfstep.errors import UserError
from halfstep.model import Denoiser, DenoiserConfig

CONFIG = DenoiserConfig(
    vocab_size=11,
    mask_token_id=10,
    length=8,
    hidden_size=16,
    num_blocks=2,
    num_heads=2,
    cond_dim=4,
    dropout=0.5,
    noise_epsilon=1e-3,
)


@pytest.fixture
def denoiser() -> Denoiser:
    """All parameters random: a new denoiser's zero gates would hide mistakes."""
    denoiser = Denoiser(CONFIG).eval()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=g))
    return denoiser


@pytest.mark.parametrize("noise", ["zero", "nonzero"])
def test_logits_are_those_of_the_authors_network(published: Path, noise: str) -> None:
    arrays = {name: torch.from_numpy(array) for name, array in np.load(published / "io.npz").items()}
    denoiser = Denoiser.from_pretrained(published)
    sigma = None if noise == "zero" else arrays["sigma_nonzero"]
    with torch.no_grad():
        logits = denoiser(arrays["xt"], sigma)
    torch.testing.assert_close(logits, arrays[f"logits_sigma_{noise}"], atol=1e-5, rtol=0)


def test_logits_at_some_positions_are_rows_of_all_logits(denoiser: Denoiser, generator: torch.Generator) -> None:
    xt = torch.randint(11, (3, 8), generator=generator)
    at = torch.rand(3, 8, generator=generator) < 0.4
    with torch.no_grad():
        torch.testing.assert_close(denoiser.logits_at(xt, at), denoiser(xt)[at])


def test_dropout_is_active_in_training_only(denoiser: Denoiser) -> None:
    xt = torch.zeros(1, 8, dtype=torch.int64)
    with torch.no_grad():
        assert torch.equal(denoiser(xt), denoiser(xt))
        denoiser.train()
        assert not torch.equal(denoiser(xt), denoiser(xt))


def test_a_new_denoiser_predicts_uniformly() -> None:
    with torch.no_grad():
        assert (Denoiser(CONFIG)(torch.zeros(1, 8, dtype=torch.int64)) == 0).all()


def test_saved_and_loaded_is_the_same_to_the_byte(denoiser: Denoiser, tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    denoiser.save_pretrained(first)
    loaded = Denoiser.from_pretrained(first)
    loaded.save_pretrained(second)
    assert loaded.config == CONFIG
    for name in ("config.json", "model.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.mark.parametrize("prefix", ["backbone.", "backbone.backbone.", "_orig_mod.backbone."])
def test_prefixes_of_published_checkpoints_are_taken_off(published: Path, tmp_path: Path, prefix: str) -> None:
    tensors = {prefix + name: tensor for name, tensor in load_file(published / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copy(published / "config.json", tmp_path)
    loaded, plain = Denoiser.from_pretrained(tmp_path), Denoiser.from_pretrained(published)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), plain.parameters(), strict=True))


def test_the_two_published_layouts_of_config_are_read(tmp_path: Path) -> None:
    from halfstep.model.checkpoint import read_config

    mdlm = {
        "model_type": "mdlm", "vocab_size": 11, "model_length": 8, "hidden_dim": 16, "cond_dim": 4, "n_blocks": 2,
        "n_heads": 2, "dropout": 0.5, "time_conditioning": False,
    }  # fmt: skip
    sdtt = {
        "model": {"hidden_size": 16, "n_blocks": 2, "n_heads": 2, "cond_dim": 4, "length": 8, "dropout": 0.5},
        "tokenizer": {"name": "gpt2"},
        "vocab_size": 11,
    }
    for values in (mdlm, sdtt):
        (tmp_path / "config.json").write_text(json.dumps(values))
        assert read_config(tmp_path / "config.json") == CONFIG


def _write(folder: Path, denoiser: Denoiser, change) -> None:
    denoiser.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("blocks.1.norm1.weight"), "lacks the tensor blocks.1.norm1.weight"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "holds the tensor extra"),
        (lambda tensors: tensors.update({"blocks.0.norm1.weight": torch.zeros(3)}), "norm1.weight has shape"),
        (lambda tensors: tensors.update({"backbone.blocks.0.norm1.weight": torch.zeros(16)}), "twice"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(denoiser: Denoiser, tmp_path: Path, change, message: str) -> None:
    _write(tmp_path, denoiser, change)
    with pytest.raises(UserError, match=message):
        Denoiser.from_pretrained(tmp_path)


def test_what_is_not_a_model_is_refused_in_one_line(tmp_path: Path, denoiser: Denoiser) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        Denoiser.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="is not there"):
        Denoiser.from_pretrained(tmp_path / "missing")
    with pytest.raises(UserError, match=r"pretrain\.init_from"):
        Denoiser.from_pretrained("nobody/nothing")
    denoiser.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04not safetensors")
    with pytest.raises(UserError, match="cannot be read"):
        Denoiser.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="not the configuration"):
        Denoiser.from_pretrained(tmp_path)
