"""Checkpoints in every layout that is published, and what happens to those that do not fit or would run code."""

import json
import os
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from halfstep.model.config import DenoiserConfig
from halfstep.model.denoiser import Denoiser
from halfstep.model.gpt2 import load_autoregressive, new_gpt2
from halfstep.model.layouts import LAYOUTS, config_from, config_values
from halfstep.model.loading import expected_shapes, read_config, save_denoiser
from halfstep.model.opening import open_model
from halfstep.run.errors import UserError
from halfstep.tools.cli import app
from halfstep.tools.export import export_denoiser

WEIGHTS = "model.safetensors"


def _same_weights(a: Denoiser, b: Denoiser) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def _training_checkpoint(denoiser: Denoiser, path: Path, *, prefix: str = "backbone.", **entries: object) -> Path:
    """What Lightning saves of a training run; the average is three times the raw weights."""
    state_dict = OrderedDict((prefix + name, tensor.clone()) for name, tensor in denoiser.state_dict().items())
    shadow_params = [3 * parameter.detach() for parameter in denoiser.parameters()]
    values = {
        "epoch": 0,
        "global_step": 7,
        "pytorch-lightning_version": "2.2.1",
        "state_dict": state_dict,
        "ema": {"decay": 0.9999, "num_updates": 7, "shadow_params": shadow_params},
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": 3e-4}]}],
        **entries,
    }
    torch.save(values, path)
    return path


def test_saved_and_loaded_is_the_same_to_the_byte(denoiser: Denoiser, tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    denoiser.save_pretrained(first)
    loaded = Denoiser.from_pretrained(first)
    loaded.save_pretrained(second)
    assert loaded.config == denoiser.config
    for name in ("config.json", WEIGHTS):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_shapes_are_found_without_arithmetic(
    denoiser: Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arithmetic on tensors without memory has torch import its compiler, a second at the start of every stage."""
    expected = {name: tensor.shape for name, tensor in denoiser.state_dict().items()}

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("the rotary frequencies were computed")

    monkeypatch.setattr(torch, "arange", refuse)
    assert expected_shapes(denoiser.config, Denoiser, 1000, tmp_path) == expected


@pytest.mark.parametrize(
    "prefix",
    [
        "backbone.", "backbone.backbone.", "_orig_mod.backbone.", "backbone._orig_mod.", "_orig_mod.", "module.",
        "_orig_mod.module.", "module._orig_mod.", "module.backbone.", "backbone.module.", "model.", "ema.module.",
        "_fsdp_wrapped_module.", "model.backbone.module._orig_mod.",
    ],
)  # fmt: skip
def test_prefixes_of_published_checkpoints_are_taken_off(denoiser: Denoiser, tmp_path: Path, prefix: str) -> None:
    denoiser.save_pretrained(tmp_path)
    tensors = {prefix + name: tensor for name, tensor in load_file(tmp_path / WEIGHTS).items()}
    save_file(tensors, tmp_path / WEIGHTS)
    assert _same_weights(Denoiser.from_pretrained(tmp_path), denoiser)


def test_blocks_that_were_wrapped_each_are_unwrapped(denoiser: Denoiser, tmp_path: Path) -> None:
    denoiser.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    wrapped = r"\1._checkpoint_wrapped_module._orig_mod"
    _rename(tensors, lambda name: "module." + re.sub(r"(blocks\.\d+)", wrapped, name))
    save_file(tensors, tmp_path / WEIGHTS)
    assert _same_weights(Denoiser.from_pretrained(tmp_path), denoiser)


def test_the_published_layouts_of_config_are_read(config: DenoiserConfig, tmp_path: Path) -> None:
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
        assert read_config(tmp_path / "config.json") == config
    sdtt.pop("vocab_size")
    assert (config_from(sdtt).vocab_size, config_from(sdtt).mask_token_id) == (50258, 50257)


@pytest.mark.parametrize(
    ("name", "value"),
    [("time_conditioning", True), ("causal", True), ("cross_attn", True), ("block_size", 4), ("adaln", False)],
)
@pytest.mark.parametrize("is_nested", [False, True])
def test_a_network_of_another_kind_is_refused(
    config: DenoiserConfig, name: str, value: object, is_nested: bool, tmp_path: Path
) -> None:
    values = config_values(config, "sdtt" if is_nested else "mdlm")
    sizes = values["model"] if is_nested else values
    sizes.update({name: not value if isinstance(value, bool) else config.length})
    assert config_from(values) == config
    sizes[name] = value
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=rf"not the configuration of a masked diffusion model: {name} is {value}"):
        read_config(tmp_path / "config.json")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_config_gives_back_the_sizes(config: DenoiserConfig, layout: str) -> None:
    assert config_from(json.loads(json.dumps(config_values(config, layout)))) == config


def test_absolute_positions_are_kept_by_our_layout_and_refused_by_the_published(
    config: DenoiserConfig, tmp_path: Path
) -> None:
    assert "absolute_positions" not in config_values(config, "plain")
    denoiser = Denoiser(replace(config, absolute_positions=True)).eval()
    source, target = tmp_path / "model", tmp_path / "exported"
    source.mkdir()
    denoiser.save_pretrained(source)
    opened = open_model(source)
    assert isinstance(opened, Denoiser)
    assert opened.config == denoiser.config
    assert _same_weights(opened, denoiser)
    for layout in ("mdlm", "sdtt"):
        with pytest.raises(UserError, match=f"layout {layout} has no absolute positions.*--layout plain"):
            export_denoiser(source, target, layout)
        assert not target.exists()
    export_denoiser(source, target, "plain")
    assert _same_weights(Denoiser.from_pretrained(target), denoiser)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_export_and_back_is_the_identity(published: Path, tmp_path: Path, layout: str) -> None:
    """From the published layout to another and back: the same sizes, and the same bytes under the same names."""
    there, back = tmp_path / "there", tmp_path / "back"
    result = CliRunner().invoke(app, ["export", str(published), str(there), "--layout", layout])
    assert result.exit_code == 0, result.output
    export_denoiser(there, back, "plain")
    assert Denoiser.from_pretrained(back).config == Denoiser.from_pretrained(published).config
    before, after = load_file(published / WEIGHTS), load_file(back / WEIGHTS)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert tensor.numpy().tobytes() == after[name].numpy().tobytes()
    prefix = "" if layout == "plain" else "backbone."
    assert load_file(there / WEIGHTS).keys() == {prefix + name for name in before}


def test_export_takes_the_tokenizer_along_and_overwrites_nothing(denoiser: Denoiser, tmp_path: Path) -> None:
    denoiser.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "train_state.safetensors").write_bytes(b"")
    export_denoiser(tmp_path, tmp_path / "out", "mdlm")
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["README.md", "config.json", WEIGHTS, "tokenizer.json"]
    with pytest.raises(UserError, match="is there already"):
        export_denoiser(tmp_path, tmp_path / "out", "mdlm")


@pytest.mark.parametrize("use_ema", [True, False])
def test_a_training_checkpoint_gives_its_average_or_its_raw_weights(
    denoiser: Denoiser, tmp_path: Path, use_ema: bool
) -> None:
    denoiser.save_pretrained(tmp_path)
    path = _training_checkpoint(denoiser, tmp_path / "last.ckpt", prefix="_orig_mod.backbone.")
    loaded = Denoiser.from_pretrained(path, use_ema=use_ema)
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, (3 if use_ema else 1) * denoiser.get_parameter(name))
    assert torch.equal(loaded.rotary_emb.inv_freq, denoiser.rotary_emb.inv_freq)
    # Alone in a folder with its configuration, it is the folder's model.
    (tmp_path / WEIGHTS).unlink()
    assert _same_weights(Denoiser.from_pretrained(tmp_path, use_ema=use_ema), loaded)


def test_a_training_checkpoint_brings_its_own_configuration(denoiser: Denoiser, tmp_path: Path) -> None:
    """Lightning pickles the configuration and the tokenizer as objects of their libraries."""
    from tokenizers import Tokenizer, models

    sizes = {"hidden_size": 16, "n_blocks": 2, "n_heads": 2, "cond_dim": 4, "length": 8, "dropout": 0.5}
    run = OmegaConf.create({"model": sizes, "vocab_size": 11, "noise": {"type": "loglinear"}, "gpus": [0]})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    path = _training_checkpoint(
        denoiser,
        tmp_path / "last.ckpt",
        hyper_parameters={"config": run, "tokenizer": tokenizer},
        callbacks={"checkpoint": {"dirpath": tmp_path}},
    )
    loaded = Denoiser.from_pretrained(path, use_ema=False)
    assert loaded.config == denoiser.config
    assert _same_weights(loaded, denoiser)


def test_a_checkpoint_without_an_average_gives_its_raw_weights(denoiser: Denoiser, tmp_path: Path) -> None:
    denoiser.save_pretrained(tmp_path)
    torch.save(denoiser.state_dict(), tmp_path / "weights.bin")
    assert _same_weights(Denoiser.from_pretrained(tmp_path / "weights.bin"), denoiser)


class _Hostile:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def test_a_checkpoint_that_would_run_code_is_refused_and_runs_nothing(denoiser: Denoiser, tmp_path: Path) -> None:
    denoiser.save_pretrained(tmp_path)
    trace = tmp_path / "ran"
    path = _training_checkpoint(denoiser, tmp_path / "last.ckpt", callbacks=_Hostile(f"touch '{trace}'"))
    with pytest.raises(UserError, match=r"would run posix\.system"):
        Denoiser.from_pretrained(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), "the checkpoint was meant to be hostile"


def test_averages_of_another_model_are_refused(denoiser: Denoiser, tmp_path: Path) -> None:
    denoiser.save_pretrained(tmp_path)
    average = [parameter.detach() for parameter in denoiser.parameters()]
    for shadow_params, message in (
        (average[:-1], "averaged weights for"),
        ([average[1], average[0], *average[2:]], "averaged weight of backbone.vocab_embed.embedding has another shape"),
        ("none", "no list of averaged weights"),
    ):
        path = _training_checkpoint(denoiser, tmp_path / "last.ckpt", ema={"shadow_params": shadow_params})
        with pytest.raises(UserError, match=message):
            Denoiser.from_pretrained(path)
        Denoiser.from_pretrained(path, use_ema=False)


@pytest.mark.parametrize("content", [b"", b"\x80\x04not a pickle", b"PK\x03\x04 cut off"])
def test_a_damaged_checkpoint_is_refused_in_one_line(denoiser: Denoiser, tmp_path: Path, content: bytes) -> None:
    denoiser.save_pretrained(tmp_path)
    (tmp_path / "last.ckpt").write_bytes(content)
    with pytest.raises(UserError, match=r"last\.ckpt cannot be read as a training checkpoint") as caught:
        Denoiser.from_pretrained(tmp_path / "last.ckpt")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_weights_or_sizes_says_so(denoiser: Denoiser, tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "empty.ckpt")
    with pytest.raises(UserError, match="holds no weights"):
        Denoiser.from_pretrained(tmp_path / "empty.ckpt")
    with pytest.raises(UserError, match=r"config\.json is not there"):
        Denoiser.from_pretrained(_training_checkpoint(denoiser, tmp_path / "bare.ckpt"))
    with pytest.raises(UserError, match=r"bare\.ckpt, empty\.ckpt: give the one"):
        Denoiser.from_pretrained(tmp_path)


def test_a_revision_of_a_hub_model_is_the_one_that_loads(
    denoiser: Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the hub's cache, as a download leaves it: one folder per commit, revisions point to commits."""
    repository = tmp_path / "models--jdeschena--sdtt"
    for commit, factor, revision in (("a" * 40, 1.0, "main"), ("b" * 40, 2.0, "baselines_kld_step_20000")):
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        with torch.no_grad():
            for parameter in denoiser.parameters():
                parameter.mul_(factor)
        _save_with_two_prefixes(denoiser, snapshot)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    first, second = (Denoiser.from_pretrained("jdeschena/sdtt", revision) for revision in (None, revision))
    assert torch.equal(2 * first.vocab_embed.embedding, second.vocab_embed.embedding)
    with pytest.raises(UserError, match="revision 'nowhere'"):
        Denoiser.from_pretrained("jdeschena/sdtt", "nowhere")


def _save_with_two_prefixes(denoiser: Denoiser, folder: Path) -> None:
    """Write the `sdtt` layout with the prefix twice, as students of the hub's MDLM have it."""
    save_denoiser(denoiser.config, denoiser, folder, "sdtt")
    tensors = {f"backbone.{name}": tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS)


def _write(folder: Path, denoiser: Denoiser, change) -> None:
    denoiser.save_pretrained(folder)
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def _rename(tensors: dict[str, torch.Tensor], new_name: Callable[[str], str]) -> None:
    for name in list(tensors):
        tensors[new_name(name)] = tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("blocks.1.norm1.weight"), "lacks the tensors blocks.1.norm1.weight;"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "holds extra, for which there is no place;"),
        (lambda tensors: tensors.update({"blocks.0.norm1.weight": torch.zeros(3)}), "norm1.weight has shape"),
        (
            lambda tensors: tensors.update({"blocks.0.norm1.weight": torch.zeros(16, dtype=torch.int64)}),
            r"norm1\.weight holds torch\.int64, not real numbers",
        ),
        (
            lambda tensors: tensors.update({"backbone.blocks.0.norm1.weight": torch.zeros(16)}),
            "holds backbone.blocks",
        ),
        (
            lambda tensors: _rename(tensors, lambda name: f"module.{name}" if "blocks" in name else name),
            r"lacks the tensors blocks\S+, blocks\S+, blocks\S+ and \d+ more and holds module\.blocks",
        ),
        (
            lambda tensors: _rename(tensors, lambda name: f"student.{name}"),
            r"lacks the tensors vocab_embed\.embedding, .* and holds student\..*, as module\.vocab_embed",
        ),
        (
            lambda tensors: tensors.update({f"ema.{name}": tensor.clone() for name, tensor in tensors.items()}),
            r"holds ema\.",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(denoiser: Denoiser, tmp_path: Path, change, message: str) -> None:
    _write(tmp_path, denoiser, change)
    with pytest.raises(UserError, match=message):
        Denoiser.from_pretrained(tmp_path)


@pytest.mark.parametrize("prefix", ["module.", "module._orig_mod.", "student."])
def test_an_autoregressive_model_is_unwrapped_too_or_its_names_are_told(tmp_path: Path, prefix: str) -> None:
    model = new_gpt2(vocab_size=8, length=8, hidden_size=8, num_blocks=1, num_heads=1, dropout=0.0)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    _rename(tensors, lambda name: prefix + name)
    save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    if prefix == "student.":
        with pytest.raises(
            UserError, match=r"lacks weights .*: lm_head\.weight.* and 14 more; left over are student\."
        ):
            load_autoregressive(tmp_path)
    else:
        loaded = load_autoregressive(tmp_path).state_dict()
        assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("n_heads", 3, "3 heads do not share a width of 16"),
        ("mask_index", 11, "mask_index 11 is not one of 11"),
        ("hidden_size", "wide", "invalid literal"),
        ("n_blocks", None, "int"),
    ],
)
def test_sizes_that_make_no_sense_are_named(denoiser: Denoiser, tmp_path: Path, key, value, message: str) -> None:
    denoiser.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, key: value}))
    with pytest.raises(UserError, match=message):
        Denoiser.from_pretrained(tmp_path)


def test_what_is_not_a_model_is_refused_in_one_line(tmp_path: Path, denoiser: Denoiser) -> None:
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        Denoiser.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="is not there"):
        Denoiser.from_pretrained(tmp_path / "missing")
    with pytest.raises(UserError, match=r"pretrain\.init_from"):
        Denoiser.from_pretrained("nobody/nothing")
    denoiser.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is not a file of weights"):
        Denoiser.from_pretrained(tmp_path / "config.json")
    (tmp_path / WEIGHTS).write_bytes(b"\x80\x04not safetensors")
    with pytest.raises(UserError, match="cannot be read"):
        Denoiser.from_pretrained(tmp_path)
