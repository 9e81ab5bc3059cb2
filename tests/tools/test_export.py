"""Models of others written back as their authors have them: there and back is the identity."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.model.hub_folders import MASK, NUM_TOKENS, VOCAB, llada, of_authors, published, split
from typer.testing import CliRunner

from halfstep.data.tokenizer import train_word_tokenizer
from halfstep.model.denoiser import Denoiser
from halfstep.model.hub import HubModel, open_hub, read_hub
from halfstep.model.joint import JointHeadConfig, JointModel
from halfstep.model.opening import open_model
from halfstep.run.errors import UserError
from halfstep.tools.cli import app
from halfstep.tools.export import export_denoiser


def opened(folder: Path, is_shifted: bool | None = None) -> HubModel:
    given = {"mask_token_id": MASK, "num_tokens": NUM_TOKENS, "length": 24, "noise_epsilon": 1e-3}
    return open_hub(folder, None, **given, is_shifted=is_shifted)


def written(folder: Path, is_shifted: bool | None = None) -> Path:
    """What a stage leaves of the model in a folder of the hub, beside it."""
    own = folder.with_name("own")
    own.mkdir()
    opened(folder, is_shifted).save_pretrained(own)
    return own


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def config_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("model_type", ["llada", "Dream", "a2d-llama", "a2d-qwen2", "a2d-qwen3"])
def test_there_and_back_is_the_identity(model_type: str, is_tied: bool, tmp_path: Path) -> None:
    hub, out = tmp_path / "hub", tmp_path / "out"
    if model_type == "llada":
        llada(hub, weight_tying=is_tied)
    else:
        of_authors(hub, model_type, tie_word_embeddings=is_tied)
        split(hub)
    own = written(hub)
    split(own)
    result = CliRunner().invoke(app, ["export", str(own), str(out), "--layout", model_type.split("-")[0].lower()])
    assert result.exit_code == 0, result.output
    before, after = tensors_in(hub), tensors_in(out)
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert all(name in load_file(out / file) for name, file in index.items())
    assert index.keys() == after.keys()

    # Classes are found in the authors' repository, since no code lies beside; what halfstep makes causes no cache.
    first = {**config_in(hub), "use_cache": False, "mask_token_id": MASK, "torch_dtype": "float32"}
    last = config_in(out)
    for name, there in first.pop("auto_map", {}).items():
        assert last["auto_map"][name].partition("--")[2] == there
    # On the hub both of LLaDA's sizes count the rows.
    first["vocab_size"] = VOCAB
    assert {name: last.get(name) for name in first} == first
    assert not {"halfstep", "is_causal", "rope_parameters", "dtype"} & last.keys()
    assert torch.equal(logits(opened(out)), logits(read_hub(own)))


def logits(model: HubModel) -> torch.Tensor:
    xt = torch.arange(2 * 24).view(2, 24) % NUM_TOKENS
    with torch.no_grad():
        return model.hidden_at(xt, xt >= 0) @ model.projection()[0].T


def test_a_network_of_another_kind_is_refused_with_the_layouts_that_it_can_have(tmp_path: Path) -> None:
    published(tmp_path / "hub", "llama")
    own = written(tmp_path / "hub", is_shifted=False)
    for layout in ("dream", "mdlm"):
        with pytest.raises(
            UserError, match=rf"llama .* their own tokens, .* {layout} .*--layout a2d or llada or plain"
        ):
            export_denoiser(own, tmp_path / "out", layout)
    for file in own.iterdir():
        file.unlink()
    opened(tmp_path / "hub", is_shifted=True).save_pretrained(own)
    with pytest.raises(UserError, match=r"llama .* the next token, which the layout llada .*: give --layout plain$"):
        export_denoiser(own, tmp_path / "out", "llada")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "entries",
    [
        {"attention_bias": True},
        {"head_dim": 16},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    ],
)
def test_what_lladas_code_cannot_do_is_refused(entries: dict[str, Any], tmp_path: Path) -> None:
    published(tmp_path / "hub", "llama", **entries)
    own = written(tmp_path / "hub", is_shifted=False)
    with pytest.raises(UserError, match=r"no place in the layout llada: (attention_bias|head_dim|rope_scaling) is "):
        export_denoiser(own, tmp_path / "out", "llada")
    export_denoiser(own, tmp_path / "a2d", "a2d")
    assert torch.equal(logits(opened(tmp_path / "a2d")), logits(read_hub(own)))


def test_a_joint_head_goes_along_only_where_it_is_known(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    llada(tmp_path / "hub")
    own = tmp_path / "own"
    train_word_tokenizer(["a b c"], 12).save_pretrained(own)
    JointModel.untrained(opened(tmp_path / "hub"), JointHeadConfig(16, 1, 2, "sampler")).save_pretrained(own)
    (own / "training_state.safetensors").write_bytes(b"")
    files = {file.name for file in own.iterdir()} - {"training_state.safetensors"} | {"README.md"}
    assert export_denoiser(own, tmp_path / "plain", None) == "plain"
    assert {file.name for file in (tmp_path / "plain").iterdir()} == files
    assert isinstance(open_model(tmp_path / "plain"), JointModel)
    with caplog.at_level(logging.WARNING):
        export_denoiser(own, tmp_path / "llada", "llada")
    assert "its joint head is left out" in caplog.text
    without = files - {"joint_head.json", "joint_head.safetensors"}
    assert {file.name for file in (tmp_path / "llada").iterdir()} == without


def test_our_own_denoiser_has_our_own_layouts(published: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model of transformers, as dream is: give --layout plain or mdlm or sdtt"):
        export_denoiser(published, tmp_path / "out", "dream")
    assert export_denoiser(published, tmp_path / "out", None) == "mdlm"
    assert isinstance(open_model(tmp_path / "out"), Denoiser)
