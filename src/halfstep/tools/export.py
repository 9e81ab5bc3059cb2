"""A masked model written again in another layout, with what a person who loads it needs."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from halfstep.model.denoiser import Denoiser
from halfstep.model.hub import is_own, write_as_authors
from halfstep.model.joint import HEAD_CONFIG_FILE, HEAD_WEIGHTS_FILE, read_head, save_head
from halfstep.model.layouts import LAYOUTS
from halfstep.model.loading import (
    CONFIG_FILE,
    HUB_WEIGHTS,
    INDEX_FILE,
    locate,
    locate_weights,
    read_values,
    save_denoiser,
)
from halfstep.model.lora import ADAPTER_CONFIG_FILE
from halfstep.model.opening import open_model
from halfstep.run.errors import UserError
from halfstep.run.files import atomic_path
from halfstep.tools.card import CARD_FILE, model_card

_LOG = logging.getLogger(__name__)

TOKENIZER_FILES = (
    "tokenizer*.json", "special_tokens_map.json", "vocab.json", "merges.txt", "added_tokens.json",
    "chat_template.jinja",
)  # fmt: skip
GENERATION_FILE = "generation_config.json"
HEAD_FILES = (HEAD_CONFIG_FILE, HEAD_WEIGHTS_FILE)
MODEL_FILES = (CONFIG_FILE, GENERATION_FILE, HUB_WEIGHTS, INDEX_FILE, *HEAD_FILES, *TOKENIZER_FILES)
"""Names of all that a folder may hold of a model."""


def export_denoiser(
    source: str | Path, target: Path, layout: str | None, *, revision: str | None = None, use_ema: bool = True
) -> str:
    """Write a masked model again in another layout, with the tokenizer that lies beside it and a model card.

    A joint head goes along, except into the layouts of other authors, whose tools know none.

    An adapter is written with its base, as one model.

    Args:
        source, revision, use_ema: as `Denoiser.from_pretrained`.
        target: folder to create; it must not exist.
        layout: of `halfstep.model.layouts` for our own denoiser, usually mdlm; for a masked language model of
            transformers one of `halfstep.model.families`, or plain, which is usual. None is the usual one.
    Returns:
        the layout.
    Raises:
        UserError: `source` is no masked model, or none that the layout has; or `target` exists.
    """
    if target.exists():
        raise UserError(f"{target} is there already: give a new folder, or remove it first")
    folder = locate(source, revision, *MODEL_FILES)
    if (folder / ADAPTER_CONFIG_FILE).is_file() or is_own(_values(folder / CONFIG_FILE)):
        layout = layout or "plain"
        with atomic_path(target) as made, _whole(folder, target.parent) as whole:
            made.mkdir()
            _write_hub(whole, made, layout, source)
            _write_card(made, source)
        return layout
    layout = layout or "mdlm"
    if layout not in LAYOUTS:
        raise UserError(f"{source} is no model of transformers, as {layout} is: give --layout {' or '.join(LAYOUTS)}")
    weights_path = locate_weights(source, revision)
    denoiser = Denoiser.from_pretrained(weights_path, use_ema=use_ema)
    with atomic_path(target) as made:
        made.mkdir()
        save_denoiser(denoiser.config, denoiser, made, layout)
        if (weights_path.parent / HEAD_CONFIG_FILE).is_file():
            save_head(read_head(weights_path.parent, denoiser.config.hidden_size), made)
        _copy(weights_path.parent, made, TOKENIZER_FILES)
        _write_card(made, source)
    return layout


def _values(path: Path) -> Any:
    return read_values(path) if path.is_file() else None


@contextmanager
def _whole(folder: Path, place: Path) -> Iterator[Path]:
    """A folder of the same model without an adapter, which for the block lies in `place`."""
    if not (folder / ADAPTER_CONFIG_FILE).is_file():
        yield folder
        return
    merged: Any = open_model(folder)
    with TemporaryDirectory(dir=place) as name:
        merged.save_pretrained(Path(name))
        _copy(folder, Path(name), TOKENIZER_FILES)
        yield Path(name)


def _write_hub(source: Path, folder: Path, layout: str, name: object) -> None:
    if layout == "plain":
        _copy(source, folder, MODEL_FILES)
        return
    write_as_authors(source, folder, layout, name=name)
    _copy(source, folder, (GENERATION_FILE, *TOKENIZER_FILES))
    if (source / HEAD_CONFIG_FILE).is_file():
        _LOG.warning("%s: its joint head is left out, since tools of the layout %s know none", name, layout)


def _copy(source: Path, folder: Path, patterns: tuple[str, ...]) -> None:
    for file in _found(source, patterns):
        shutil.copyfile(file, folder / file.name)


def model_files(folder: Path) -> list[Path]:
    """The files of a model in its folder, and no others."""
    return _found(folder, MODEL_FILES)


def _found(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted(file for pattern in patterns for file in folder.glob(pattern))


def _write_card(folder: Path, source: str | Path) -> None:
    (folder / CARD_FILE).write_text(str(model_card(folder, Path(source))), encoding="utf-8")
