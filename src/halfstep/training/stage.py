"""What the stages that train have in common: what they begin with, and what they write."""

import math
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from halfstep.data.tokens.manifest import MANIFEST_FILE, read_manifest
from halfstep.data.tokens.packed import PackedTokens, first_batches, load_tokens, token_batches
from halfstep.objectives.base import Objective
from halfstep.run import ranks
from halfstep.run.console import console
from halfstep.run.errors import nan_as_user_error
from halfstep.run.files import write_csv, written_by_main
from halfstep.run.fits import check_fits
from halfstep.run.inputs import inputs_of
from halfstep.run.launch import enter
from halfstep.run.stage_times import record_stage
from halfstep.run.work import open_work
from halfstep.settings import Params, named_inputs
from halfstep.settings.graph import BASELINE, FIRST_TEACHER
from halfstep.settings.training import TrainingSettings
from halfstep.tracking.live import live_run
from halfstep.training.fit import CarriedOver, Data, fit
from halfstep.training.parallel import Devices, make_devices, unshard
from halfstep.training.state import CurvePoint, TrainState

SECTIONS = {
    "pretrain": ("seed", "runtime", "model", "noise", "pretrain"),
    "baseline": ("seed", "runtime", "model", "baseline"),
    "distill": ("seed", "runtime", "distill"),
}
"""Parameters on which the result of a stage depends, as dvc.yaml has them."""

LITTLE_TEXT = 1_000_000
"""Tokens: of less, a model may learn them by heart."""


@dataclass(frozen=True)
class Stage:
    """A stage that trains, begun. `section` is pretrain, baseline or distill; `vocab_size` counts the mask token."""

    section: str
    params: Params
    devices: Devices
    tokens_path: Path
    tokenizer_path: Path
    train_tokens: PackedTokens
    valid_tokens: PackedTokens
    vocab_size: int
    mask_token_id: int

    @classmethod
    def begin(cls, section: str, params: Params, tokens_path: Path, tokenizer_path: Path) -> "Stage":
        """Read the tokens, and go on as one of the processes that the parameters ask for."""
        enter(params.launch, params.runtime)
        devices = make_devices(params.runtime, params.launch)
        splits = load_tokens(tokens_path, "train"), load_tokens(tokens_path, "valid")
        manifest = read_manifest(tokens_path)
        check_fits(params, num_valid_sequences=len(splits[1]), vocab_size=manifest.vocab_size)
        ids = manifest.vocab_size, manifest.mask_token_id
        return cls(section, params, devices, tokens_path, tokenizer_path, *splits, *ids)

    def train(
        self,
        name: str,
        model: Any,
        objective: Objective,
        *,
        model_path: Path,
        curve_path: Path,
        data_seed: int,
        files: Sequence[Path] = (),
        valid_objective: Objective | None = None,
        state_path: Path | None = None,
        carried_over: CarriedOver | None = None,
        teacher_path: Path | None = None,
    ) -> None:
        """Train a model and write it with its curve.

        Args:
            name: of the DVC stage, such as `distill@2`.
            objective, valid_objective, carried_over: see `fit`.
            data_seed: decides the order of the training data.
            files: on which the result depends, beside the tokens.
            state_path: folder of the training state, written where the next round goes on from it.
            teacher_path: whose fault a prediction of NaN is.
        """
        params, settings = self.params, getattr(self.params, self.section)
        model_name = name.partition("@")[2] or {"pretrain": FIRST_TEACHER, "baseline": BASELINE}[self.section]
        inputs = inputs_of(params, self.section) if self.section in named_inputs(params) else None
        key_files = [self.tokens_path / MANIFEST_FILE, *files]
        say_epochs(name, settings, self.train_tokens.shape)
        data = Data(
            token_batches(self.train_tokens, settings.batch_size, seed=data_seed),
            lambda: first_batches(self.valid_tokens, settings.num_valid_sequences, settings.batch_size),
        )
        with open_work(name.replace("@", "-"), params.deciding(*SECTIONS[self.section]), key_files, inputs) as work:
            with (
                live_run(params.model_dump(mode="json"), model=model_name) as log,
                nan_as_user_error(teacher_path) if teacher_path else nullcontext(),
            ):
                state = fit(
                    work,
                    model,
                    objective,
                    settings,
                    self.devices,
                    data,
                    seed=params.seed,
                    log=log,
                    valid_objective=valid_objective,
                    carried_over=carried_over,
                )
            if state_path is not None:
                write_state(state, state_path)
            write_model(state, model_path, self.tokenizer_path)
            write_curve(state.curve, curve_path)
            record_stage(name, curve_path, self.devices.device)
            work.finish()


def say_epochs(name: str, settings: TrainingSettings, shape: tuple[int, int]) -> None:
    """Print how often a run reads training data of `shape`, rows and tokens in each, where there is little of it."""
    num_epochs = settings.num_train_steps * settings.batch_size / shape[0]
    if math.prod(shape) < LITTLE_TEXT and num_epochs > 1:
        console.print(f"{name}: reads the training data, {math.prod(shape):,} tokens, {num_epochs:.3g} times")


def write_state(state: TrainState, path: Path) -> None:
    """Write the training state from which the next round goes on; of several processes all must call this."""
    with written_by_main(path) as folder:
        folder.mkdir()
        state.save(folder)


def write_model(state: TrainState, path: Path, tokenizer_path: Path) -> None:
    """Write the folder of a finished run's product whole: averaged weights and tokenizer.

    The product is left with the averaged weights. Of several processes all must call this; the main one writes.
    """
    model: Any = state.product.model
    with written_by_main(path) as folder:
        state.product.ema.copy_to(model)
        unshard(model)
        if ranks.is_main():
            shutil.copytree(tokenizer_path, folder)
            model.save_pretrained(folder)


def write_curve(curve: Sequence[CurvePoint], path: Path) -> None:
    """Write a training curve as CSV; what was not measured at a step is empty. The main process does."""
    if ranks.is_main():
        write_csv(path, [field.name for field in fields(CurvePoint)], [list(vars(point).values()) for point in curve])
