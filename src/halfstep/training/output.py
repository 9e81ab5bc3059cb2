"""What a training stage writes: the model's folder and its training curve."""

import csv
import shutil
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

from halfstep.run import ranks
from halfstep.run.files import written_by_main
from halfstep.training.sharding import make_whole
from halfstep.training.state import CurvePoint, TrainState


def write_model(
    state: TrainState,
    path: Path,
    tokenizer_path: Path,
    *,
    save: Callable[[Path], None],
    keep_train_state: bool,
) -> None:
    """Write a model's folder whole: averaged weights, tokenizer and, if wanted, the training state.

    The model in `state` is left with the averaged weights. Of several processes all must call this; the main one
    writes.

    Args:
        state: of a finished run.
        path: the folder.
        tokenizer_path: folder whose files are copied.
        save: writes configuration and weights of the model in `state` into a folder.
        keep_train_state: also write raw weights, optimizer and average, from which the next round goes on.
    """
    with written_by_main(path) as folder:
        if ranks.is_main():
            shutil.copytree(tokenizer_path, folder)
        if keep_train_state:
            state.save(folder)
        state.ema.copy_to(state.model)
        make_whole(state.model)
        if ranks.is_main():
            save(folder)


def write_curve(curve: Sequence[CurvePoint], path: Path) -> None:
    """Write a training curve as CSV; what was not measured at a step is empty."""
    with written_by_main(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(CurvePoint)])
        writer.writeheader()
        writer.writerows(
            {name: "" if value is None else value for name, value in vars(point).items()} for point in curve
        )
