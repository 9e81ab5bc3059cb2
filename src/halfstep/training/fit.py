"""A training run from start to finish: optimizers, resumption, progress, the loop."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from halfstep.data.tokens.seeds import derive_seed
from halfstep.objectives.base import PRODUCT, Objective
from halfstep.run import ranks
from halfstep.run.console import console, progress
from halfstep.run.errors import UserError, one_line
from halfstep.run.files import read_json
from halfstep.run.work import Work
from halfstep.settings.training import TrainingSettings, num_parts_of
from halfstep.training.checkpoint import CheckpointFolder
from halfstep.training.loop import Hooks, train
from halfstep.training.parallel import Devices, parallelize, reshard
from halfstep.training.state import (
    TENSORS_FILE,
    VALUES_FILE,
    CurvePoint,
    Trained,
    TrainState,
    load_average,
    load_moments,
    load_weights,
)
from halfstep.training.validation import mean_loss

VALIDATION_SEED = 0
"""Validation noise is the same at every step and in every run, so that curves compare."""


@dataclass(frozen=True)
class Data:
    """What a run reads: the training batch of a step, and those of the validation data, int64 [batch, length]."""

    batch: Callable[[int], Tensor]
    valid_batches: Callable[[], Iterable[Tensor]]


@dataclass(frozen=True)
class CarriedOver:
    """What a round takes over from the training state of the round before it, beside its teacher's weights.

    The networks beside the product go on with their raw weights.

    Attributes:
        folder: holds the training state.
        optimizer: keep the optimizers' moments, and the learning rate where it was.
        ema: keep the averages.
    """

    folder: Path
    optimizer: bool
    ema: bool


def fit(
    work: Work,
    model: nn.Module,
    objective: Objective,
    settings: TrainingSettings,
    devices: Devices,
    data: Data,
    *,
    seed: int,
    log: Callable[[int, dict[str, float | None]], None],
    valid_objective: Objective | None = None,
    carried_over: CarriedOver | None = None,
) -> TrainState:
    """Train a model, from the last checkpoint of its work if there is one.

    Args:
        work: keeps the checkpoints; its name is that of the run, such as `distill-2`.
        model: the product, trained in place, as are the objective's networks.
        log: called with the step and values of each point of the curve, the restored ones included.
        valid_objective: the loss on validation data; None is `objective`.
    Returns:
        the final state, which is also the last checkpoint: a run killed before its result is written has lost nothing.
    Raises:
        UserError: the batch cannot be divided among the processes, or the networks cannot.
        UserError, Interrupted, MachineFault: see `train`.
    """
    num_parts = num_parts_of(settings, work.name.partition("-")[0], ranks.num_ranks())
    if num_parts != settings.num_accumulation_steps and has_dropout(model):
        console.print(
            f"{work.name}: dropout is drawn for each of {num_parts} parts of a batch; with num_accumulation_steps"
            f" {num_parts} it is the same for any number of processes that divides {num_parts}"
        )
    if objective.networks and devices.launch.strategy == "fsdp" and ranks.num_ranks() > 1:
        raise UserError("launch.strategy fsdp trains one network, the objective has more: -S launch.strategy=ddp")

    # 1. The networks, on the devices, each with its optimizer and average.
    networks = {PRODUCT: model, **objective.networks}
    if carried_over is not None:
        for name, network in objective.networks.items():
            load_raw_weights(network, carried_over.folder, name)
    parallel = {name: parallelize(network, devices) for name, network in networks.items()}
    state = TrainState(
        {name: Trained.new(network, objective.settings_of(name, settings)) for name, network in networks.items()}
    )

    # 2. What the round before left, or the run's own last checkpoint.
    def log_point(point: CurvePoint) -> None:
        log(point.step, {name: value for name, value in vars(point).items() if name != "step"})

    if carried_over is not None:
        carry_over(state, carried_over)
    checkpoints = CheckpointFolder(work.path)
    if checkpoints.restore(state):
        check_skipped_steps(state, settings, checkpoints.path)
        console.print(f"{work.name}: goes on after step {state.step} of {settings.num_train_steps}")
        for point in state.curve:
            log_point(point)

    # 3. The loop.
    def validate() -> float:
        batches = (batch.to(devices.device) for batch in data.valid_batches())
        with devices.accelerator.autocast():
            loss = mean_loss(
                valid_objective or objective, parallel[PRODUCT], batches, num_parts=num_parts, seed=VALIDATION_SEED
            )
        reshard(parallel[PRODUCT])
        return loss

    with progress(work.name, settings.num_train_steps, unit="step", start=state.step) as show:
        hooks = Hooks(
            validate=validate,
            log=log_point,
            progress=lambda step, loss: show(step, f"loss {loss:.4g}"),
            save_checkpoint=checkpoints.save,
            save_alone=None if state.is_sharded else checkpoints.save_alone,
        )
        train(
            state,
            parallel,
            objective,
            data.batch,
            settings,
            hooks,
            num_parts=num_parts,
            seed=derive_seed(seed, work.name),
            accelerator=devices.accelerator,
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


def load_raw_weights(model: nn.Module, folder: Path, network: str = PRODUCT) -> None:
    """Give a model the raw weights, not their average, of a network in the training state in a folder."""
    with _broken_state_as_user_error(folder):
        load_weights(model, load_file(folder / TENSORS_FILE), network)


def carry_over(state: TrainState, carried_over: CarriedOver) -> None:
    """Give a new state what the round before left."""
    if not (carried_over.optimizer or carried_over.ema):
        return
    with _broken_state_as_user_error(carried_over.folder):
        tensors = load_file(carried_over.folder / TENSORS_FILE)
        values = read_json(carried_over.folder / VALUES_FILE)
        for name, network in state.networks.items():
            if carried_over.optimizer:
                load_moments(network, tensors, name)
                state.optimizer_step = values["optimizer_step"]
            if carried_over.ema:
                load_average(network, tensors, values, name)


@contextmanager
def _broken_state_as_user_error(folder: Path) -> Iterator[None]:
    """Within the block, a training state that is missing, broken or another model's is a `UserError`."""
    ways_out = (
        "make it again (dvc repro), or set distill.next_teacher=ema, distill.reset_optimizer=true and"
        " distill.reset_ema=true"
    )
    try:
        yield
    except FileNotFoundError as error:
        name = Path(error.filename).name if error.filename else TENSORS_FILE
        raise UserError(f"{folder} holds no {name}, from which the next round goes on: {ways_out}") from None
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"the training state in {folder} is broken ({one_line(error)}): {ways_out}") from None


def seed_weights(seed: int, name: str) -> None:
    """Seed torch's own generator, from which new weights are drawn."""
    torch.manual_seed(derive_seed(seed, name, "weights"))
