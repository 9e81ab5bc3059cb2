"""Adapters: nothing at first, then what peft makes of the same files; what is frozen is there once."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tests.model.hub_folders import DECODERS, NUM_TOKENS, OWN, published
from tests.model.test_hub import asked, opened, some_tokens
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from halfstep.model.hub import HubModel
from halfstep.model.lora import ADAPTER_FILES, matrices_of
from halfstep.model.opening import open_denoiser
from halfstep.run.errors import UserError
from halfstep.tools.export import export_denoiser


def adapted(root: Path, model_type: str = "qwen2", **given: object) -> HubModel:
    """A model of `root`/0 with an adapter that changes nothing."""
    published(root / "hub", model_type)
    model = opened(root / "hub", **({"is_shifted": False} if model_type in DECODERS else {}))
    (root / "0").mkdir()
    model.save_pretrained(root / "0")
    torch.manual_seed(0)
    model.adapt(root / "0", **{"rank": 4, "alpha": 8, "targets": None, **given})
    return model


def learned(model: HubModel) -> HubModel:
    for number, matrix in enumerate(matrices_of(model.network).values()):
        torch.nn.init.normal_(matrix, std=0.5, generator=torch.Generator().manual_seed(number))
    return model


def saved(model: HubModel, folder: Path) -> Path:
    folder.mkdir()
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("model_type", OWN)
def test_an_adapter_is_nothing_at_first_and_then_what_peft_makes_of_it(model_type: str, tmp_path: Path) -> None:
    xt, at = some_tokens()
    model = adapted(tmp_path, model_type)
    base = open_denoiser(tmp_path / "0")
    assert isinstance(base, HubModel)
    assert torch.equal(asked(model, xt, at), asked(base, xt, at))

    found = asked(learned(model), xt, at)
    assert not torch.allclose(found, asked(base, xt, at), atol=1e-2)
    folder = saved(model, tmp_path / "1")
    assert {path.name for path in folder.iterdir()} == set(ADAPTER_FILES)
    kept, merged = (open_denoiser(folder, keeps_adapter=keeps) for keeps in (True, False))
    assert isinstance(kept, HubModel)
    assert isinstance(merged, HubModel)
    assert torch.equal(asked(kept, xt, at), found)
    assert torch.allclose(asked(merged, xt, at), found, atol=1e-5)
    assert {name for name, _ in merged.named_parameters()} == {name for name, _ in base.named_parameters()}
    assert all(parameter.requires_grad for parameter in merged.parameters())

    # By peft, on what transformers reads; and what is exported by transformers alone.
    auto_class = AutoModelForCausalLM if model_type in DECODERS else AutoModelForMaskedLM
    by_peft = PeftModel.from_pretrained(auto_class.from_pretrained(tmp_path / "0").eval(), folder)
    export_denoiser(folder, tmp_path / "exported", None)
    alone = auto_class.from_pretrained(tmp_path / "exported").eval()
    with torch.no_grad():
        for network in (by_peft, alone):
            logits = network(input_ids=xt).logits[at]
            assert torch.allclose(logits[:, :NUM_TOKENS], found[:, :NUM_TOKENS], atol=1e-5)


def test_copies_have_what_is_frozen_in_common_and_learn_nothing_else(tmp_path: Path) -> None:
    model = learned(adapted(tmp_path)).requires_grad_(False)
    student = copy.deepcopy(model).requires_grad_(True)
    pairs = list(zip(model.parameters(), student.parameters(), strict=True))
    assert all((ours is theirs) is not theirs.requires_grad for ours, theirs in pairs)
    assert {id(p) for p in student.parameters() if p.requires_grad} == set(
        map(id, matrices_of(student.network).values())
    )
    xt, at = some_tokens()
    before = asked(model, xt, at)
    assert torch.equal(asked(student, xt, at), before)
    student.hidden_at(xt, at).square().sum().backward()
    # All of them, or an optimizer would have no moments of some.
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in matrices_of(student.network).values())
    with torch.no_grad():
        for matrix in matrices_of(student.network).values():
            matrix.zero_()
    assert torch.equal(asked(model, xt, at), before)


def test_layers_are_chosen_by_the_ends_of_their_names(tmp_path: Path) -> None:
    names = {name.rpartition(".lora_")[0] for name in matrices_of(adapted(tmp_path, targets=("v_proj",)).network)}
    assert names == {f"base_model.model.model.layers.{number}.self_attn.v_proj" for number in range(2)}
    shutil.rmtree(tmp_path / "0")
    with pytest.raises(UserError, match=r"targets has query, but the linear layers of .*/0 are down_proj, .*; null is"):
        adapted(tmp_path, targets=("v_proj", "query"))


def test_a_base_that_is_missing_or_another_is_one_line(tmp_path: Path) -> None:
    folder = saved(learned(adapted(tmp_path)), tmp_path / "1")
    moved = tmp_path / "elsewhere"
    for name in ("0", "1"):
        shutil.copytree(tmp_path / name, moved / name)
    weights = load_file(tmp_path / "0" / "model.safetensors")
    save_file(
        {name: tensor + 1e-3 for name, tensor in weights.items()},
        tmp_path / "0" / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(UserError, match=r"1 is an adapter of another .*/0: put back"):
        open_denoiser(folder)
    shutil.rmtree(tmp_path / "0")
    with pytest.raises(UserError, match=r"1 is an adapter of .*/0, which is not there: .*dvc pull"):
        open_denoiser(folder)
    open_denoiser(moved / "1")


@pytest.mark.parametrize("name", ADAPTER_FILES)
def test_a_broken_file_is_one_line(tmp_path: Path, name: str) -> None:
    folder = saved(learned(adapted(tmp_path)), tmp_path / "1")
    if name.endswith(".json"):
        (folder / name).write_text("{}")
        line = r"adapter_config\.json is not as" if name == ADAPTER_FILES[0] else r"is an adapter of another"
    else:
        tensors = load_file(folder / name)
        save_file(dict(list(tensors.items())[1:]), folder / name)
        line = r"adapter_model\.safetensors lacks the tensors base_model\.model\."
    with pytest.raises(UserError, match=line) as raised:
        open_denoiser(folder)
    assert "\n" not in str(raised.value)


def test_without_peft_there_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(learned(adapted(tmp_path)), tmp_path / "1")
    monkeypatch.setattr("halfstep.run.fits.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"need peft, which is not installed: pip install 'halfstep\[lora\]'$"):
        open_denoiser(folder)
