"""A training run from start to finish: device, optimizer, resumption, progress, the loop."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from halfstep.data.seeds import derive_seed
from halfstep.objectives.base import Objective
from halfstep.run import ranks
from halfstep.run.console import console, progress
from halfstep.run.errors import UserError, one_line
from halfstep.run.files import read_json
from halfstep.run.work import Work
from halfstep.settings.runtime import LaunchSettings, RuntimeSettings
from halfstep.settings.training import TrainingSettings, num_parts_of
from halfstep.training.checkpoint import CheckpointFolder
from halfstep.training.ema import EMA
from halfstep.training.loop import train
from halfstep.training.nonfinite import keep_nonfinite_step
from halfstep.training.optimizer import build_optimizer, learning_rate_at
from halfstep.training.parallel import lay_out, reshard
from halfstep.training.sharding import is_sharded
from halfstep.training.state import (
    TENSORS_FILE,
    VALUES_FILE,
    CurvePoint,
    TrainState,
    load_moments,
    load_parameters,
    take_group,
)
from halfstep.training.validation import mean_loss

VALIDATION_SEED = 0
"""Validation noise is the same at every step and in every run, so that curves compare."""


@dataclass(frozen=True)
class CarriedOver:
    """What a round takes over from the training state of the round before it.

    Attributes:
        folder: holds the training state.
        optimizer: keep the optimizer's moments, and the learning rate where it was.
        ema: keep the average.
    """

    folder: Path
    optimizer: bool
    ema: bool


def fit(
    work: Work,
    model: nn.Module,
    settings: TrainingSettings,
    *,
    runtime: RuntimeSettings,
    launch: LaunchSettings,
    objective: Objective,
    valid_objective: Objective,
    batch_at: Callable[[int], Iterator[Tensor]],
    valid_batches: Callable[[], Iterable[Tensor]],
    seed: int,
    accelerator: Accelerator,
    log: Callable[[int, dict[str, float | None]], None],
    carried_over: CarriedOver | None = None,
) -> TrainState:
    """Train a model, from the last checkpoint of its work if there is one.

    Args:
        work: keeps the checkpoints; its name is that of the run, such as `distill-2`.
        model: trained in place.
        settings: of the optimizer and the loop.
        runtime, launch: how the model is laid out on the devices.
        objective: the loss.
        valid_objective: the loss on validation data, of the averaged weights.
        batch_at: this process's rows (`ranks.share`) of the batches from a given step on, each int64 [rows, length].
        valid_batches: validation data.
        seed: of data noise and dropout.
        accelerator: device and precision.
        log: called with the step and values of each point of the curve, the restored ones included.
        carried_over: what to take from the round before.
    Returns:
        the final state, which is also the last checkpoint: a run killed before its result is written has lost nothing.
    Raises:
        UserError: the loss is not finite, or the batch cannot be divided among the processes.
        Interrupted: a signal stopped the run; its checkpoint is written.
        MachineFault: another process was lost.
    """
    num_parts = num_parts_of(settings, work.name.partition("-")[0], ranks.num_ranks())
    if num_parts != settings.num_accumulation_steps and has_dropout(model):
        console.print(
            f"{work.name}: dropout is drawn for each of {num_parts} parts of a batch; with num_accumulation_steps"
            f" {num_parts} it is the same for any number of processes that divides {num_parts}",
            markup=False,
            soft_wrap=True,
        )
    model_loss = lay_out(model, accelerator, runtime, launch)
    optimizer = build_optimizer(
        model,
        betas=(settings.adam_beta1, settings.adam_beta2),
        epsilon=settings.adam_epsilon,
        weight_decay=settings.weight_decay,
    )
    state = TrainState(model, optimizer, EMA(model, settings.ema_decay))
    if carried_over is not None:
        _carry_over(state, carried_over)

    def log_point(point: CurvePoint) -> None:
        log(point.step, {name: value for name, value in vars(point).items() if name != "step"})

    checkpoints = CheckpointFolder(work.path)
    if checkpoints.restore(state):
        check_skipped_steps(state, settings, checkpoints.path)
        console.print(f"{work.name}: goes on after step {state.step} of {settings.num_train_steps}")
        for point in state.curve:
            log_point(point)

    first_optimizer_step = state.optimizer_step - state.step
    falling_to_zero_at = first_optimizer_step + settings.num_train_steps

    def learning_rate(step: int) -> float:
        return learning_rate_at(
            step,
            peak=settings.learning_rate,
            schedule=settings.lr_schedule,
            num_warmup_steps=settings.num_warmup_steps,
            num_train_steps=falling_to_zero_at,
        )

    def validate() -> float:
        batches = (batch.to(accelerator.device) for batch in valid_batches())
        with accelerator.autocast():
            loss = mean_loss(valid_objective, model_loss, batches, num_parts=num_parts, seed=VALIDATION_SEED)
        reshard(model_loss)
        return loss

    with progress(work.name, settings.num_train_steps, unit="step", start=state.step) as show:
        train(
            state,
            model_loss,
            objective=objective,
            batch_at=batch_at,
            learning_rate=learning_rate,
            num_train_steps=settings.num_train_steps,
            num_accumulation_steps=num_parts // ranks.num_ranks(),
            max_grad_norm=settings.max_grad_norm,
            on_nonfinite=settings.on_nonfinite,
            max_nonfinite_steps=settings.max_nonfinite_steps,
            keep_nonfinite_step=partial(keep_nonfinite_step, work.name),
            seed=derive_seed(seed, work.name),
            accelerator=accelerator,
            validate=validate,
            validate_every_steps=settings.validate_every_steps,
            log_every_steps=settings.log_every_steps,
            log=log_point,
            progress=lambda step, loss: show(step, f"loss {loss:.4g}"),
            save_checkpoint=checkpoints.save,
            save_alone=None if is_sharded(model) else checkpoints.save_alone,
            checkpoint_every_seconds=settings.checkpoint_every_seconds,
            checkpoint_every_steps=settings.checkpoint_every_steps,
        )
    return state


def has_dropout(model: nn.Module) -> bool:
    """Whether anything of a network is left to chance in training."""
    config = getattr(model, "config", None)
    return any(getattr(config, name, 0) for name in ("dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"))


def check_skipped_steps(state: TrainState, settings: TrainingSettings, folder: Path) -> None:
    """Refuse to go on from steps that were skipped under a policy that would not have skipped them.

    Raises:
        UserError: more were skipped than `settings` allow.
    """
    allowed = settings.max_nonfinite_steps if settings.on_nonfinite == "skip" else 0
    if state.num_skipped_steps > allowed:
        raise UserError(
            f"{folder}: the run was cut off after {state.num_skipped_steps} skipped steps, but on_nonfinite is"
            f" {settings.on_nonfinite} and max_nonfinite_steps {settings.max_nonfinite_steps}: allow them, or remove"
            " the folder to start over"
        )


def _carry_over(state: TrainState, carried_over: CarriedOver) -> None:
    with _broken_state_told(carried_over.folder):
        tensors = load_file(carried_over.folder / TENSORS_FILE)
        values = read_json(carried_over.folder / VALUES_FILE)
        if carried_over.optimizer:
            load_moments(state.optimizer, state.model, tensors)
            state.optimizer_step = values["optimizer_step"]
        if carried_over.ema:
            state.ema.load(take_group(tensors, "ema"), values["ema_num_updates"])


def seed_weights(seed: int, name: str) -> None:
    """Seed torch's own generator, from which new weights are drawn."""
    torch.manual_seed(derive_seed(seed, name, "weights"))


def load_raw_weights(model: nn.Module, folder: Path) -> None:
    """Give a model the raw weights, not their average, of the training state in its folder.

    Raises:
        UserError: the folder holds no training state, a broken one, or another model's.
    """
    with _broken_state_told(folder):
        load_parameters(model, take_group(load_file(folder / TENSORS_FILE), "model"))


@contextmanager
def _broken_state_told(folder: Path) -> Iterator[None]:
    """Within the block, a training state that cannot be gone on with is the user's to mend."""
    ways_out = (
        "make the model again (dvc repro), or set distill.next_teacher=ema, distill.reset_optimizer=true and"
        " distill.reset_ema=true"
    )
    try:
        yield
    except FileNotFoundError as error:
        name = Path(error.filename).name if error.filename else TENSORS_FILE
        raise UserError(f"{folder} holds no {name}, from which the next round goes on: {ways_out}") from None
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"the training state in {folder} is broken ({one_line(error)}): {ways_out}") from None
