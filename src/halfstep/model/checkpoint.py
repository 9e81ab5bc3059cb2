"""Denoisers on disk and on the hub: config.json and model.safetensors, strictly matched.

Three layouts of config.json are read: our own, that of `kuleshov-group/mdlm-owt`, and that of `jdeschena/sdtt`, which
holds a whole training configuration. Nothing that a user can hand in is unpickled.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from halfstep.errors import UserError
from halfstep.model.denoiser import Denoiser, DenoiserConfig

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PREFIXES = ("backbone.", "_orig_mod.")
REFERENCE_NOISE_EPSILON = 1e-3
"""The schedule of the published models, whose config.json does not always state it."""


def save_denoiser(denoiser: Denoiser, folder: Path) -> None:
    """Write config.json and model.safetensors into an existing folder; float32, byte for byte repeatable."""
    config = denoiser.config
    values = {
        "model_type": "mdlm",
        "vocab_size": config.vocab_size,
        "mask_index": config.mask_token_id,
        "length": config.length,
        "hidden_size": config.hidden_size,
        "n_blocks": config.num_blocks,
        "n_heads": config.num_heads,
        "cond_dim": config.cond_dim,
        "dropout": config.dropout,
        "time_conditioning": False,
        "noise": {"type": "loglinear", "eps": config.noise_epsilon},
    }
    (folder / CONFIG_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in denoiser.state_dict().items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def load_denoiser(source: str | Path, revision: str | None = None) -> Denoiser:
    """Load a denoiser from a folder or the hub; see `Denoiser.from_pretrained`."""
    folder = locate_model(source, revision)
    config = read_config(folder / CONFIG_FILE)
    denoiser = Denoiser(config)
    load_weights(denoiser, _read_tensors(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE)
    return denoiser.eval()


def locate_model(source: str | Path, revision: str | None = None) -> Path:
    """The local folder of a model: `source` itself, or a download of the hub id it names.

    Raises:
        UserError: neither a model's folder nor a hub id that can be reached.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / name).is_file():
                raise UserError(f"{folder} is not a model's folder: it has no {name}")
        return folder
    if not _looks_like_hub_id(source):
        raise UserError(f"{source} is not there: give a model's folder (config.json and model.safetensors) or a hub id")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        OSError,
    ) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"model {source!r} is neither a local folder nor to be had from the hub ({reason}); without network give"
            " a local folder, such as pretrain.init_from=FOLDER"
        ) from None


def _looks_like_hub_id(source: str | Path) -> bool:
    return isinstance(source, str) and source.count("/") == 1 and not source.startswith((".", "/", "~"))


def read_config(path: Path) -> DenoiserConfig:
    """Read any of the known layouts of config.json.

    Raises:
        UserError: the file is missing, broken, or lacks a size.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not there: {path.parent} is not a denoiser's folder") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    try:
        return _config_from(values)
    except KeyError as error:
        raise UserError(
            f"{path} has no {error.args[0]!r}: it is not the configuration of a masked diffusion model"
        ) from None


def _config_from(values: dict[str, Any]) -> DenoiserConfig:
    if isinstance(values.get("model"), dict):
        model = values["model"]
        vocab_size = values.get("vocab_size", model.get("vocab_size", 50258))
        sizes = {**model, "vocab_size": vocab_size}
        noise = values.get("noise", {})
    else:
        sizes = values
        noise = values.get("noise", {})

    def first(*names: str) -> Any:
        for name in names:
            if name in sizes:
                return sizes[name]
        raise KeyError(names[0])

    vocab_size = first("vocab_size")
    return DenoiserConfig(
        vocab_size=vocab_size,
        mask_token_id=sizes.get("mask_index", vocab_size - 1),
        length=first("length", "model_length"),
        hidden_size=first("hidden_size", "hidden_dim"),
        num_blocks=first("n_blocks"),
        num_heads=first("n_heads"),
        cond_dim=first("cond_dim"),
        dropout=float(sizes.get("dropout", 0.0)),
        noise_epsilon=float(noise.get("eps", REFERENCE_NOISE_EPSILON)),
    )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def load_weights(denoiser: Denoiser, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy tensors into a denoiser, each used once, none missing, none left over.

    Prefixes that wrappers leave on the names (`backbone.`, `_orig_mod.`, repeated or not) are taken off.

    Raises:
        UserError: names the first tensor that does not fit.
    """
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = _without_prefixes(name)
        if plain in named:
            raise UserError(f"{path} holds {plain} twice under different prefixes")
        named[plain] = tensor
    expected = denoiser.state_dict()
    for name, tensor in expected.items():
        if name not in named:
            raise UserError(f"{path} lacks the tensor {name} {tuple(tensor.shape)}")
        if named[name].shape != tensor.shape:
            raise UserError(
                f"{path}: {name} has shape {tuple(named[name].shape)}, but {CONFIG_FILE} asks for {tuple(tensor.shape)}"
            )
    for name in named:
        if name not in expected:
            raise UserError(f"{path} holds the tensor {name}, for which this model has no place")
    denoiser.load_state_dict(named, strict=True)


def _without_prefixes(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.removeprefix("backbone.").removeprefix("_orig_mod.")
    return name
