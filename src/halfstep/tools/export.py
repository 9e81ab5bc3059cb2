"""A denoiser written again in another layout."""

import shutil
from pathlib import Path

from halfstep.model.denoiser import Denoiser
from halfstep.model.hub import is_own
from halfstep.model.joint import HEAD_CONFIG_FILE, read_head, save_head
from halfstep.model.layouts import Layout
from halfstep.model.loading import CONFIG_FILE, locate, locate_weights, read_values, save_denoiser
from halfstep.run.errors import UserError
from halfstep.run.files import atomic_path

TOKENIZER_FILES = ("tokenizer*.json", "special_tokens_map.json", "vocab.json", "merges.txt", "added_tokens.json")


def export_denoiser(
    source: str | Path, target: Path, layout: Layout, *, revision: str | None = None, use_ema: bool = True
) -> None:
    """Write a denoiser again in another layout, with its joint head and the tokenizer's files that lie beside it.

    Args:
        source, revision, use_ema: as `Denoiser.from_pretrained`.
        target: folder to create; it must not exist.
        layout: see `halfstep.model.layouts`.
    Raises:
        UserError: `source` is no denoiser, or `target` exists.
    """
    if target.exists():
        raise UserError(f"{target} is there already: give a new folder, or remove it first")
    folder = locate(source, revision, CONFIG_FILE)
    if (folder / CONFIG_FILE).is_file() and is_own(read_values(folder / CONFIG_FILE)):
        raise UserError(f"{source} is as plain transformers reads it already: copy the folder")
    weights_path = locate_weights(source, revision)
    denoiser = Denoiser.from_pretrained(weights_path, use_ema=use_ema)
    with atomic_path(target) as folder:
        folder.mkdir()
        save_denoiser(denoiser.config, denoiser, folder, layout)
        if (weights_path.parent / HEAD_CONFIG_FILE).is_file():
            save_head(read_head(weights_path.parent, denoiser.config.hidden_size), folder)
        for pattern in TOKENIZER_FILES:
            for file in weights_path.parent.glob(pattern):
                shutil.copyfile(file, folder / file.name)
