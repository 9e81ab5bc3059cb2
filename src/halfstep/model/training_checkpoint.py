"""Weights out of a training checkpoint (`.ckpt`, `.bin`, `.pt`), without running anything in it.

Such files are pickles: what they name gets imported and called. torch's `weights_only` reader knows tensors and plain
containers and refuses the rest; but a training checkpoint also carries its configuration and tokenizer as objects of
libraries. Those are read as inert stand-ins, which keep the data and have no code. Any other name is refused.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halfstep.run.errors import UserError, one_line

DATA_LIBRARIES = (
    "omegaconf.", "transformers.", "tokenizers.", "lightning.", "lightning_fabric.", "pytorch_lightning.",
    "torchmetrics.", "typing.", "pathlib.", "numpy.",
)  # fmt: skip
"""Objects of these are data in training checkpoints; they become stand-ins."""

DATA_TYPES = {
    "builtins.bool", "builtins.bytes", "builtins.dict", "builtins.float", "builtins.frozenset", "builtins.int",
    "builtins.list", "builtins.object", "builtins.set", "builtins.str", "builtins.tuple", "builtins.type",
    "collections.defaultdict", "copyreg._reconstructor",
}  # fmt: skip


class _StandIn:
    """Takes the place of an object: keeps its state, does nothing."""

    state: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> "_StandIn":
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read_training_checkpoint(path: Path, *, use_ema: bool) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Read the network's weights from a checkpoint that torch or Lightning saved.

    Args:
        path: the file.
        use_ema: take the averaged weights, if the checkpoint carries them, in place of the raw ones.
    Returns:
        (tensors under the names of the checkpoint; the training configuration as plain values, if it carries one).
    Raises:
        UserError: the file is not such a checkpoint, is damaged, or names code that is not data.
    """
    values = _read_without_running(path)
    tensors = values.get("state_dict", values) if isinstance(values, dict) else None
    tensors = tensors and {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    if not tensors:
        raise UserError(
            f"{path} holds no weights: neither a state dict nor a training checkpoint with one; give another file"
        )
    ema = values.get("ema")
    if ema is not None and use_ema:
        tensors |= _averaged(tensors, ema, path)
    hyper_parameters = _plain(values.get("hyper_parameters"))
    config = hyper_parameters.get("config", hyper_parameters) if isinstance(hyper_parameters, dict) else None
    return tensors, config if isinstance(config, dict) else None


def _read_without_running(path: Path) -> Any:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        for name in names:
            if not name.startswith(DATA_LIBRARIES) and name not in DATA_TYPES:
                raise UserError(
                    f"{path} would run {name} when it is read: refused; give its weights as model.safetensors, as"
                    " whoever trusts it can save them"
                )
        stand_ins: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
            (type(name.rpartition(".")[2], (_StandIn,), {}), name) for name in names
        ]
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    # A torn pickle is a program cut anywhere: its reader may raise whatever Python can.
    except Exception as error:
        raise UserError(
            f"{path} cannot be read as a training checkpoint: {one_line(error)}; give another, or its weights as"
            " model.safetensors"
        ) from None


def _averaged(tensors: dict[str, Tensor], ema: Any, path: Path) -> dict[str, Tensor]:
    """The averaged weights by name.

    The authors' EMA keeps a list in the order of the parameters, which is that of the state dict without its
    buffers; only the rotary frequencies are a buffer.
    """
    names = [name for name in tensors if not name.endswith("rotary_emb.inv_freq")]
    averages = ema.get("shadow_params") if isinstance(ema, dict) else None
    if not isinstance(averages, list) or len(averages) != len(names):
        found = len(averages) if isinstance(averages, list) else "no list of"
        raise UserError(
            f"{path} has {found} averaged weights for {len(names)} parameters; for the raw ones: use_ema=False"
        )
    named = dict(zip(names, averages, strict=True))
    for name, average in named.items():
        if not isinstance(average, Tensor) or average.shape != tensors[name].shape:
            raise UserError(f"{path}: the averaged weight of {name} has another shape; for the raw ones: use_ema=False")
    return named


def _plain(value: Any) -> Any:
    """Stand-ins of omegaconf's containers and nodes as dicts, lists and values; other stand-ins become None."""
    if isinstance(value, _StandIn):
        state = value.state if isinstance(value.state, dict) else {}
        return _plain(state.get("_content", state.get("_val")))
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value
