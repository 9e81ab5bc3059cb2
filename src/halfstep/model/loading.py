"""Denoisers on disk and on the hub, strictly matched: every tensor used once, none missing, none left.

A model is a folder with config.json and one file of weights, a file of weights alone, or a hub id. Nothing that a user
can hand in is executed: weights are safetensors, or a training checkpoint that is read as data.
"""

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from halfstep.model.config import DenoiserConfig
from halfstep.model.layouts import WEIGHT_PREFIX, Layout, config_from, config_values
from halfstep.model.training_checkpoint import read_training_checkpoint
from halfstep.run.errors import UserError, first_of, one_line, shown
from halfstep.run.faults import storage_fault
from halfstep.run.files import is_there
from halfstep.run.retries import with_retries
from halfstep.settings.base import MAX_CONTEXT_LENGTH

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
HUB_WEIGHTS = "model*.safetensors"
"""Names of the files of weights in a folder of transformers."""
INDEX_FILE = "model.safetensors.index.json"
"""Which of several such files a tensor is in."""
WRAPPERS = ("module", "_orig_mod", "backbone", "model", "ema", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of tensors' names that are of what was around the network, or a part of it, when it was saved."""
SAFETENSORS_SUFFIX = ".safetensors"
PICKLED_SUFFIXES = (".ckpt", ".bin", ".pt", ".pth")
MAX_SIZES = {
    **dict.fromkeys(("vocab_size", "hidden_size", "num_blocks", "num_heads", "cond_dim"), 2**31 - 1),
    "length": MAX_CONTEXT_LENGTH,
}
"""What a configuration may state. The weights bear it out, except the length, for which commands draw text."""
ANOTHER = "give another model, or make this one again"


def save_denoiser(config: DenoiserConfig, network: nn.Module, folder: Path, layout: Layout = "plain") -> None:
    """Write config.json and model.safetensors into an existing folder; float32, byte for byte repeatable."""
    values = config_values(config, layout)
    (folder / CONFIG_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    prefix = WEIGHT_PREFIX[layout]
    tensors = {
        prefix + name: tensor.detach().float().cpu().contiguous() for name, tensor in network.state_dict().items()
    }
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def read_denoiser(
    source: str | Path,
    build: Callable[[DenoiserConfig], nn.Module],
    revision: str | None = None,
    *,
    use_ema: bool = True,
) -> nn.Module:
    """Read a denoiser from a folder, a file or the hub; see `Denoiser.from_pretrained`.

    Args:
        build: makes the network of a configuration.
    """
    weights_path = locate_weights(source, revision)
    config_path = weights_path.with_name(CONFIG_FILE)
    is_safetensors = weights_path.suffix == SAFETENSORS_SUFFIX
    tensors, values = ({}, None) if is_safetensors else read_training_checkpoint(weights_path, use_ema=use_ema)
    if values is None or config_path.is_file():
        config = read_config(config_path)
    else:
        config = _checked_config(values, weights_path)
    tensors = plain_names(read_safetensors(weights_path) if is_safetensors else tensors)
    check_tensors(tensors, expected_shapes(config, build, len(tensors), config_path), weights_path)
    network = build(config)
    network.load_state_dict(tensors, strict=True)
    return network.eval()


def locate_weights(source: str | Path, revision: str | None = None) -> Path:
    """The file of weights of a model: in a folder, the file itself, or a download of the hub id.

    Raises:
        UserError: neither a model's folder or file nor a hub id that can be reached.
    """
    found = locate(source, revision, CONFIG_FILE, WEIGHTS_FILE)
    if found.is_dir():
        return _weights_in(found)
    if found.suffix != SAFETENSORS_SUFFIX and found.suffix not in PICKLED_SUFFIXES:
        raise UserError(
            f"{found} is not a file of weights: give one of {SAFETENSORS_SUFFIX}, {', '.join(PICKLED_SUFFIXES)}"
        )
    return found


def locate(source: str | Path, revision: str | None, *files: str) -> Path:
    """A model's folder or file; of a hub id, the folder to which some of its files were downloaded.

    Raises:
        UserError: it is neither there nor a hub id that can be reached.
    """
    path = Path(os.path.expanduser(source))
    if is_there(path) and (path.is_dir() or path.is_file()):
        return path
    # A hub id is OWNER/NAME.
    if not isinstance(source, str) or source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise UserError(
            f"{one_line(source)} is not there, or is no file: give a model's folder (config.json and"
            " model.safetensors) or a hub id"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        download = partial(snapshot_download, source, revision=revision, allow_patterns=list(files))
        return Path(with_retries(f"model {source}", download))
    # What the hub's client raises of networks, servers and caches is an OSError.
    except (HFValidationError, OSError) as error:
        if storage_fault(error):
            raise
        at_revision = f" at revision {revision!r}" if revision else ""
        raise UserError(
            f"model {source!r}{at_revision} is neither a local folder nor to be had from the hub ({one_line(error)});"
            " without network give a local folder, such as pretrain.init_from=FOLDER"
        ) from None


def _weights_in(folder: Path) -> Path:
    if (folder / WEIGHTS_FILE).is_file():
        return folder / WEIGHTS_FILE
    suffixes = (SAFETENSORS_SUFFIX, *PICKLED_SUFFIXES)
    found = sorted(path for path in folder.iterdir() if path.suffix in suffixes and path.is_file())
    if len(found) > 1:
        raise UserError(f"{folder} holds {', '.join(path.name for path in found)}: give the one that is meant")
    if not found:
        raise UserError(f"{folder} is not a model's folder: it has no {WEIGHTS_FILE}; {ANOTHER}")
    return found[0]


def read_config(path: Path) -> DenoiserConfig:
    """Read any of the layouts of config.json.

    Raises:
        UserError: the file is missing, broken, or lacks a size.
    """
    if not path.is_file():
        raise UserError(f"{path} is not there: {path.parent} is not a denoiser's folder; {ANOTHER}")
    return _checked_config(read_values(path), path)


def read_values(path: Path) -> Any:
    """What a config.json holds; a `UserError` if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {one_line(error)}; {ANOTHER}") from None


def _checked_config(values: Any, path: Path) -> DenoiserConfig:
    try:
        config = config_from(values)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        problem = f"it has no {error}" if isinstance(error, KeyError) else one_line(error)
        raise UserError(f"{path} is not the configuration of a masked diffusion model: {problem}; {ANOTHER}") from None
    for name, limit in MAX_SIZES.items():
        if not 0 < getattr(config, name) <= limit:
            raise UserError(f"{path}: {name} is {shown(getattr(config, name))}, which no model has; {ANOTHER}")
    if config.hidden_size % (2 * config.num_heads):
        raise UserError(
            f"{path}: {config.num_heads} heads do not share a width of {config.hidden_size} evenly; {ANOTHER}"
        )
    if not 0 <= config.mask_token_id < config.vocab_size:
        raise UserError(
            f"{path}: mask_index {shown(config.mask_token_id)} is not one of {config.vocab_size} tokens; {ANOTHER}"
        )
    if not 0 <= config.dropout < 1 or not 0 < config.noise_epsilon < 1:
        raise UserError(
            f"{path}: dropout {config.dropout} or noise.eps {config.noise_epsilon} is no probability; {ANOTHER}"
        )
    return config


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file; a `UserError` if it cannot be read."""
    try:
        return with_retries(str(path), lambda: load_file(path))
    # The reader of a number type that torch lacks raises what it likes.
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}; {ANOTHER}") from None


def expected_shapes(
    config: DenoiserConfig, build: Callable[[DenoiserConfig], nn.Module], num_tensors: int, path: Path
) -> dict[str, torch.Size]:
    """The shapes of a denoiser's tensors, found without memory for them: a configuration may state any size.

    Args:
        num_tensors: tensors at hand; a block has several.
        path: of the configuration, for the message.
    Raises:
        UserError: there are more blocks than tensors, or a tensor is larger than memory can be.
    """
    if config.num_blocks > num_tensors:
        raise UserError(
            f"{path} asks for {config.num_blocks} blocks, but the weights hold {num_tensors} tensors; {ANOTHER}"
        )
    try:
        with torch.device("meta"):
            return {name: tensor.shape for name, tensor in build(config).state_dict().items()}
    except (RuntimeError, OverflowError, TypeError) as error:
        raise UserError(f"{path} asks for a network that cannot be: {one_line(error)}; {ANOTHER}") from None


def plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the network's own names for them, where each name begins with the same of `WRAPPERS`, or none.

    Others stay as they are: they may be of two networks.
    """
    named = {".".join(part for part in name.split(".") if part not in WRAPPERS): tensors[name] for name in tensors}
    beginnings = {tuple(takewhile(WRAPPERS.__contains__, name.split("."))) for name in tensors}
    return named if len(beginnings) == 1 and len(named) == len(tensors) else dict(tensors)


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, torch.Size], path: Path) -> None:
    """Check that every tensor is used once, none missing, none left over; a `UserError` names those that do not fit."""
    missing = [name for name in expected if name not in tensors]
    left_over = [name for name in tensors if name not in expected]
    problems = [f"lacks the tensors {first_of(missing)}"] if missing else []
    problems += [f"holds {first_of(left_over)}, for which there is no place"] if left_over else []
    if problems:
        raise UserError(
            f"{path} {' and '.join(problems)}; all names may begin with the same of {', '.join(WRAPPERS[:5])},"
            f" as module.{next(iter(expected))}; {ANOTHER}"
        )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise UserError(
                f"{path}: {name} has shape {tuple(tensors[name].shape)}, but its configuration asks for"
                f" {tuple(shape)}; {ANOTHER}"
            )
        if not tensors[name].is_floating_point():
            raise UserError(f"{path}: {name} holds {tensors[name].dtype}, not real numbers; {ANOTHER}")
