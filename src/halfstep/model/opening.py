"""One way to open a model of any kind."""

from pathlib import Path
from typing import TYPE_CHECKING

from halfstep.model.base import MaskedModel
from halfstep.model.denoiser import Denoiser
from halfstep.model.gpt2 import load_autoregressive
from halfstep.model.layouts import MODEL_TYPE
from halfstep.model.loading import CONFIG_FILE, locate, read_values

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def open_model(source: str | Path, revision: str | None = None) -> "MaskedModel | PreTrainedModel":
    """Open a denoiser or a causal language model: `isinstance(model, MaskedModel)` tells them apart.

    Args:
        source: folder or hub id of either, or a denoiser's file of weights.
        revision: branch, tag or commit of a hub id.
    Returns:
        the model in evaluation mode, on the CPU, float32.
    Raises:
        UserError: there is no such model; see `Denoiser.from_pretrained` and `load_autoregressive`.
    """
    config_path = locate(source, revision, CONFIG_FILE) / CONFIG_FILE
    # A denoiser may be one file of weights, without a configuration beside it or of a kind that names no type.
    values = read_values(config_path) if config_path.is_file() else None
    if isinstance(values, dict) and values.get("model_type", MODEL_TYPE) != MODEL_TYPE:
        return load_autoregressive(source, revision)
    return Denoiser.from_pretrained(source, revision)
