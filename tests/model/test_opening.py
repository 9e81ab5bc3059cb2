"""One way to open a model: which it is, its config.json says."""

from pathlib import Path

import pytest
import torch

from halfstep.model.base import MaskedModel
from halfstep.model.denoiser import Denoiser
from halfstep.model.gpt2 import new_gpt2
from halfstep.model.layouts import LAYOUTS
from halfstep.model.loading import save_denoiser
from halfstep.model.opening import open_model
from halfstep.run.errors import UserError


def test_denoisers_of_every_layout_and_files_of_weights_are_opened(denoiser: Denoiser, tmp_path: Path) -> None:
    xt = torch.arange(8)[None]
    sources = [tmp_path / layout for layout in LAYOUTS]
    for source, layout in zip(sources, LAYOUTS, strict=True):
        source.mkdir()
        save_denoiser(denoiser.config, denoiser, source, layout)
    torch.save(denoiser.state_dict(), tmp_path / "plain" / "last.ckpt")
    for source in (*sources, str(sources[0]), sources[0] / "model.safetensors", sources[0] / "last.ckpt"):
        model = open_model(source)
        assert isinstance(model, MaskedModel)
        assert torch.equal(model.hidden_at(xt, xt > 3), denoiser.hidden_at(xt, xt > 3))


def test_a_causal_model_is_opened(tmp_path: Path) -> None:
    gpt2 = new_gpt2(vocab_size=11, length=8, hidden_size=16, num_blocks=1, num_heads=2, dropout=0.0)
    gpt2.save_pretrained(tmp_path)
    model = open_model(tmp_path)
    assert not isinstance(model, MaskedModel)
    assert model.config.model_type == "gpt2"
    assert torch.equal(model.lm_head.weight, gpt2.lm_head.weight)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (None, r"config\.json is not there"),
        ("{", r"config\.json cannot be read as JSON"),
        ("[]", "not the configuration of a masked diffusion model"),
        ('{"model_type": "mdlm"}', "not the configuration of a masked diffusion model"),
        ('{"model_type": "no-such-kind"}', "is not a causal language model's folder"),
        ('{"model_type": 3}', "is not a causal language model's folder"),
    ],
)
def test_a_folder_that_is_neither_is_one_line(
    written: str | None, message: str, denoiser: Denoiser, tmp_path: Path
) -> None:
    denoiser.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    if written is not None:
        (tmp_path / "config.json").write_text(written)
    with pytest.raises(UserError, match=message) as caught:
        open_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not there"):
        open_model(tmp_path / "none")
    with pytest.raises(UserError, match="neither a local folder nor to be had from the hub"):
        open_model("no/such-model")
