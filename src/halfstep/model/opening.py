"""One way to open a model of any kind."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfstep.data.tokenizer import check_vocabulary, load_tokenizer
from halfstep.model.base import MaskedModel
from halfstep.model.denoiser import Denoiser
from halfstep.model.gpt2 import load_autoregressive
from halfstep.model.hub import HubModel, is_own, open_hub, read_adapted, read_hub
from halfstep.model.joint import HEAD_CONFIG_FILE, HEAD_WEIGHTS_FILE, JointModel, read_head
from halfstep.model.layouts import MODEL_TYPE
from halfstep.model.loading import CONFIG_FILE, locate, read_values
from halfstep.model.lora import ADAPTER_CONFIG_FILE, ADAPTER_FILES
from halfstep.run.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def open_model(
    source: str | Path, revision: str | None = None, *, keeps_adapter: bool = False
) -> "MaskedModel | PreTrainedModel":
    """Open a denoiser, with its joint head if it has one, or a causal language model.

    `isinstance(model, MaskedModel)` tells them apart.

    Args:
        source: folder or hub id of either, or a denoiser's file of weights.
        revision: branch, tag or commit of a hub id.
        keeps_adapter: leave the matrices of an adapter beside the base's, to train them on; else they are merged.
    Returns:
        the model in evaluation mode, on the CPU, float32.
    Raises:
        UserError: there is no such model; see `Denoiser.from_pretrained` and `load_autoregressive`.
    """
    folder = locate(source, revision, CONFIG_FILE, HEAD_CONFIG_FILE, HEAD_WEIGHTS_FILE, *ADAPTER_FILES)
    config_path = folder / CONFIG_FILE
    # A denoiser may be one file of weights, without a configuration beside it or of a kind that names no type.
    values = read_values(config_path) if config_path.is_file() else None
    denoiser: Denoiser | HubModel
    if (folder / ADAPTER_CONFIG_FILE).is_file():
        denoiser = read_adapted(folder)
        if not keeps_adapter:
            denoiser.merge()
    elif is_own(values):
        denoiser = read_hub(source, revision)
    elif isinstance(values, dict) and values.get("model_type", MODEL_TYPE) != MODEL_TYPE:
        return load_autoregressive(source, revision)
    else:
        denoiser = Denoiser.from_pretrained(source, revision)
    if not (folder / HEAD_CONFIG_FILE).is_file():
        return denoiser
    return JointModel(denoiser, read_head(folder, denoiser.projection()[0].shape[1])).eval()


def open_first(source: str | Path, revision: str | None, **given: Any) -> "Denoiser | HubModel":
    """Open what a teacher begins as: one of our denoisers, or a masked language model of transformers.

    Args:
        source, revision: as of `open_model`.
        given: of `open_hub`, for the latter.
    Raises:
        UserError: see `Denoiser.from_pretrained` and `open_hub`.
    """
    config_path = locate(source, revision, CONFIG_FILE) / CONFIG_FILE
    values = read_values(config_path) if config_path.is_file() else None
    # A denoiser may be one file of weights, and its configuration may name no kind.
    if isinstance(values, dict) and values.get("model_type", MODEL_TYPE) != MODEL_TYPE:
        return open_hub(source, revision, **given)
    return Denoiser.from_pretrained(source, revision)


def open_denoiser(
    source: str | Path, revision: str | None = None, *, keeps_adapter: bool = False
) -> "Denoiser | HubModel | JointModel":
    """Open a denoiser, with its joint head if it has one; arguments and errors as of `open_model`.

    Raises:
        UserError: it is a causal language model.
    """
    model = open_model(source, revision, keeps_adapter=keeps_adapter)
    if not isinstance(model, Denoiser | HubModel | JointModel):
        raise UserError(f"{source} is a causal language model, but a masked one is needed: give a denoiser")
    return model


def open_with_tokenizer(folder: Path) -> tuple["MaskedModel | PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Open a model of either kind and the tokenizer that lies with it.

    Raises:
        UserError: either is not there or broken, or they do not fit each other.
    """
    tokenizer, model = load_tokenizer(folder), open_model(folder)
    mask_token_id = model.config.mask_token_id if isinstance(model, MaskedModel) else None
    check_vocabulary(tokenizer, folder, vocab_size=model.config.vocab_size, mask_token_id=mask_token_id)
    return model, tokenizer
