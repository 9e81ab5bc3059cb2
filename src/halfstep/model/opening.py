"""One way to open a model of any kind."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from halfstep.data.tokenizer import check_vocabulary, load_tokenizer
from halfstep.model.base import MaskedModel
from halfstep.model.config import DenoiserConfig
from halfstep.model.denoiser import Denoiser
from halfstep.model.gpt2 import length_of, load_autoregressive
from halfstep.model.hub import (
    Description,
    HubConfig,
    HubModel,
    describe_hub,
    describe_own,
    is_own,
    positions_of,
    read_adapted,
    read_hub,
)
from halfstep.model.joint import HEAD_CONFIG_FILE, HEAD_WEIGHTS_FILE, JointModel, read_head
from halfstep.model.layouts import MODEL_TYPE
from halfstep.model.loading import CONFIG_FILE, locate, read_config, read_values
from halfstep.model.lora import ADAPTER_CONFIG_FILE, ADAPTER_FILES
from halfstep.run.errors import UserError
from halfstep.run.files import local_or_hub
from halfstep.settings.training import PretrainSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def open_model(
    source: str | Path, revision: str | None = None, *, keeps_adapter: bool = False
) -> "MaskedModel | PreTrainedModel":
    """Open a denoiser, with its joint head if it has one, or a causal language model.

    `isinstance(model, MaskedModel)` distinguishes them.

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


def open_first(settings: PretrainSettings, **given: Any) -> Denoiser | HubModel:
    """Open what a teacher begins as; arguments as of `describe_first`.

    Raises:
        UserError: see `describe_first`, `Denoiser.from_pretrained` and `Description.with_weights`.
    """
    described = describe_first(settings, **given)
    if isinstance(described, Description):
        return described.with_weights()
    assert settings.init_from is not None
    return Denoiser.from_pretrained(local_or_hub(settings.init_from), settings.init_revision)


def describe_first(
    settings: PretrainSettings, *, mask_token_id: int | None, num_tokens: int, length: int, noise_epsilon: float
) -> DenoiserConfig | Description:
    """What a teacher begins as: one of our denoisers, or a masked language model of transformers.

    Args:
        settings: with `init_from`.
        mask_token_id, num_tokens, length, noise_epsilon: see `describe_hub`.
    Raises:
        UserError: there is no such model, or it does not fit the tokens or the length; see `describe_hub`.
    """
    assert settings.init_from is not None
    source, revision = local_or_hub(settings.init_from), settings.init_revision
    described: DenoiserConfig | Description
    path = locate(source, revision, CONFIG_FILE) / CONFIG_FILE
    if _is_of_transformers(path):
        described = describe_hub(
            source,
            revision,
            mask_token_id=mask_token_id,
            num_tokens=num_tokens,
            length=length,
            noise_epsilon=noise_epsilon,
            is_shifted=settings.init_shift,
            is_trained=settings.num_train_steps > 0,
        )
    else:
        described = read_config(path) if path.is_file() else Denoiser.from_pretrained(source, revision).config
    config = described.config if isinstance(described, Description) else described
    if mask_token_id is not None and (config.num_tokens, config.mask_token_id) != (num_tokens, mask_token_id):
        raise UserError(
            f"pretrain.init_from {settings.init_from} has {config.num_tokens} tokens, of which {config.mask_token_id}"
            f" masks, but the tokenizer has {num_tokens}, of which {mask_token_id} masks: set data.tokenizer.source to"
            " the one it was trained with"
        )
    if isinstance(config, DenoiserConfig) and config.absolute_positions and config.length != length:
        raise UserError(
            f"pretrain.init_from {settings.init_from} has {config.length} absolute positions, but data.context_length"
            f" is {length}: dvc exp run -S data.context_length={config.length}"
        )
    return described


def _is_of_transformers(path: Path) -> bool:
    values = read_values(path) if path.is_file() else None
    # A denoiser may be one file of weights, and its configuration may name no kind.
    return isinstance(values, dict) and values.get("model_type", MODEL_TYPE) != MODEL_TYPE


def config_of(folder: Path) -> DenoiserConfig | HubConfig:
    """What is known of a masked model that was written here, by its config.json alone.

    Raises:
        UserError: it is missing or broken.
    """
    path = folder / CONFIG_FILE
    return describe_own(folder).config if path.is_file() and is_own(read_values(path)) else read_config(path)


def new_as(folder: Path) -> Denoiser | HubModel:
    """A model of the sizes of one that was written here, with random weights, in evaluation mode.

    Raises:
        UserError: see `config_of`.
    """
    config = config_of(folder)
    return Denoiser(config).eval() if isinstance(config, DenoiserConfig) else describe_own(folder).without_weights()


def open_denoiser(
    source: str | Path, revision: str | None = None, *, keeps_adapter: bool = False
) -> "Denoiser | HubModel | JointModel":
    """Open a denoiser, with its joint head if it has one; arguments and errors as of `open_model`.

    Raises:
        UserError: it is a causal language model.
    """
    return as_masked(open_model(source, revision, keeps_adapter=keeps_adapter), source)


def as_masked(model: object, source: str | Path) -> "Denoiser | HubModel | JointModel":
    """A model that was opened, if it is a masked one.

    Raises:
        UserError: it is a causal language model.
    """
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


def num_positions(model: "MaskedModel | PreTrainedModel") -> int | None:
    """Tokens of the longest text that a model can read, be it trained on shorter ones; None where there is no end."""
    if isinstance(model, JointModel):
        return num_positions(model.trunk)
    if isinstance(model, Denoiser):
        return model.config.length if model.config.absolute_positions else None
    return positions_of(model.network.config) if isinstance(model, HubModel) else length_of(cast(Any, model))
