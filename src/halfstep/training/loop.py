"""The one training loop: pretraining, the baseline and every distillation round run through it."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from halfstep.data.tokens.seeds import derive_seed
from halfstep.objectives.base import PRODUCT, Loss, Objective
from halfstep.run import ranks
from halfstep.run.console import console
from halfstep.run.errors import Interrupted, MachineFault, UserError
from halfstep.run.faults import storage_fault
from halfstep.run.signals import on_signals
from halfstep.settings.training import TrainingSettings
from halfstep.training.optimizer import learning_rate_at
from halfstep.training.parallel import full_tensor, without_sync
from halfstep.training.state import CurvePoint, Trained, TrainState


def _ignore(*arguments: object) -> None:
    """The hook of a run that needs none."""


@dataclass(frozen=True)
class Hooks:
    """What the loop calls.

    Attributes:
        validate: loss of the product's averaged weights on validation data.
        log: called with each point of the curve.
        progress: called after each step with its number and the product's loss.
        save_checkpoint: called when settings.checkpoint_every_seconds have passed since the last time, every
            settings.checkpoint_every_steps, after the last step, and when a signal or a loss that is not finite stops
            the run. All processes call it together.
        save_alone: called instead when another process was lost; None if no process can write the state without it.
    """

    validate: Callable[[], float]
    log: Callable[[CurvePoint], None] = _ignore
    progress: Callable[[int, float], None] = _ignore
    save_checkpoint: Callable[[TrainState], None] = _ignore
    save_alone: Callable[[TrainState], None] | None = None


def train(
    state: TrainState,
    parallel: Mapping[str, nn.Module],
    objective: Objective,
    batch: Callable[[int], Tensor],
    settings: TrainingSettings,
    hooks: Hooks,
    *,
    num_parts: int,
    seed: int,
    accelerator: Accelerator,
) -> None:
    """Train until `settings.num_train_steps` steps are made, from whatever step the state has.

    A step's data and noise are functions of (seed, step), and the dropout of each part of its batch: a run that goes
    on from a checkpoint makes the same steps as one that never stopped, and several processes those of one, to
    rounding, for which they divide the parts.

    Args:
        parallel: the state's networks on the devices, see `halfstep.training.parallel.parallelize`.
        batch: the batch of a step, int64 [batch, length] on the CPU, the same in every process.
        num_parts: equal parts in which all processes together compute a batch.
    Raises:
        UserError: a loss or a gradient is NaN or infinite, and may not be skipped.
        Interrupted: SIGINT or SIGTERM came, in this process or another; the checkpoint is written.
        MachineFault: another process was lost.
    """
    for network in state.networks.values():
        network.model.train()
    last_optimizer_step = state.optimizer_step - state.step + settings.num_train_steps
    last_checkpoint = time.monotonic()
    updated: list[str] = []  # networks whose update in the step at hand is made
    with _stop_signals() as received, _lost_process(state, settings, hooks, updated):
        while state.step < settings.num_train_steps:
            # 1. The step's batch and randomness, of which each process computes its rows.
            generator = torch.Generator(device=accelerator.device).manual_seed(derive_seed(seed, "step", state.step))
            drawn = objective.inputs(batch(state.step), generator)
            inputs = [tensor[ranks.share()].to(accelerator.device) for tensor in drawn]

            # 2. One update of each network.
            point = CurvePoint(state.step + 1, None, 0.0, None, None, 0)
            for index, (name, loss_of) in enumerate(objective.losses.items()):
                network, own = state.networks[name], objective.settings_of(name, settings)
                rate = learning_rate_at(
                    state.optimizer_step,
                    peak=own.learning_rate,
                    schedule=own.lr_schedule,
                    num_warmup_steps=own.num_warmup_steps,
                    num_train_steps=last_optimizer_step,
                )
                # Dropout is a part's own, whoever computes it; another network's is another.
                dropout_seed = generator.initial_seed() + index * num_parts
                loss, grad_norm = _gradients(
                    network, parallel[name], loss_of, inputs, num_parts // ranks.num_ranks(), dropout_seed, accelerator
                )
                is_finite = math.isfinite(loss) and math.isfinite(grad_norm)
                if is_finite:
                    if grad_norm > own.max_grad_norm:
                        torch._foreach_mul_(network.gradients(), own.max_grad_norm / grad_norm)
                    for group in network.optimizer.param_groups:
                        group["lr"] = rate
                    network.optimizer.step()
                    network.ema.update(network.model)
                    updated.append(name)
                else:
                    _skip_or_stop(state, settings, hooks, name, loss, grad_norm, is_whole=not updated)
                # A loss may have asked another network, and left gradients there.
                for other in state.networks.values():
                    other.optimizer.zero_grad(set_to_none=True)
                if name == PRODUCT:
                    product_loss, point.learning_rate = loss, rate
                    if is_finite:
                        point.loss, point.grad_norm = loss, grad_norm
            state.step += 1
            state.optimizer_step += 1
            updated.clear()
            hooks.progress(state.step, product_loss)

            # 3. Validation and the curve.
            is_last = state.step == settings.num_train_steps
            validates = is_last or state.step % settings.validate_every_steps == 0
            if validates or state.step % settings.log_every_steps == 0:
                point.valid_loss = _validated(state, hooks.validate) if validates else None
                point.num_skipped_steps = state.num_skipped_steps
                state.curve.append(point)
                hooks.log(point)

            # 4. Checkpoints, by the clock of the main process, and signals.
            every = settings.checkpoint_every_steps
            is_due = is_last or time.monotonic() - last_checkpoint > settings.checkpoint_every_seconds
            is_due = is_due or (every is not None and state.step % every == 0)
            signal_number, is_due = ranks.largest(received[0] if received else 0, is_due and ranks.is_main())
            if signal_number or is_due:
                hooks.save_checkpoint(state)
                last_checkpoint = time.monotonic()
            if signal_number:
                raise Interrupted(
                    int(signal_number),
                    f"stopped after step {state.step} of {settings.num_train_steps}; the same command goes on from"
                    " there",
                )


def _gradients(
    network: Trained,
    parallel: nn.Module,
    loss_of: Loss,
    inputs: Sequence[Tensor],
    num_accumulation_steps: int,
    dropout_seed: int,
    accelerator: Accelerator,
) -> tuple[float, float]:
    """Leave the gradient of the batch's mean loss in the parameters; return that loss and the gradient's norm."""
    total, num_terms = torch.zeros((), dtype=torch.float64, device=accelerator.device), 0
    for part in range(num_accumulation_steps):
        # Times ascend with the row: every so many rows, all parts have about as many masks.
        rows = slice(part, None, num_accumulation_steps)
        # Counted over all processes, as the rows are.
        torch.manual_seed(dropout_seed + part * ranks.num_ranks() + ranks.rank())
        is_last = part == num_accumulation_steps - 1
        with nullcontext() if is_last else without_sync(parallel):
            with accelerator.autocast():
                loss_sum, part_terms = parallel(loss_of, *(tensor[rows] for tensor in inputs))
            accelerator.backward(loss_sum)
        total += loss_sum.detach()
        num_terms += part_terms
    total, num_terms = ranks.sums(total, num_terms)
    # The gradients are means over the processes.
    gradients = network.gradients()
    torch._foreach_mul_(gradients, ranks.num_ranks() / max(num_terms, 1))
    norm = full_tensor(torch.nn.utils.get_total_norm(gradients)).double()
    # The update's one wait for the device: whether to make it depends on these.
    loss = torch.as_tensor(total / max(num_terms, 1), dtype=norm.dtype, device=norm.device)
    loss, grad_norm = torch.stack([loss, norm]).tolist()
    return loss, grad_norm


def _skip_or_stop(
    state: TrainState,
    settings: TrainingSettings,
    hooks: Hooks,
    name: str,
    loss: float,
    grad_norm: float,
    *,
    is_whole: bool,
) -> None:
    """Count an update that is not made, or end the run with a checkpoint of the state before the step.

    Args:
        is_whole: no other network was updated in the step; else the checkpoint before it serves.
    """
    network = "" if name == PRODUCT else f", {name}"
    problem = f"step {state.step + 1}{network}: the loss is {loss} and the gradient's norm {grad_norm}"
    bound = settings.max_nonfinite_steps
    if settings.on_nonfinite == "skip" and state.num_skipped_steps < bound:
        state.num_skipped_steps += 1
        count = f"{state.num_skipped_steps} of at most {bound}"
        console.print(f"{problem}: skipped ({count})")
        return
    if is_whole:
        try:
            hooks.save_checkpoint(state)
        except Exception as error:  # a full disk must not hide why the run ends
            if storage_fault(error) is None:
                raise
    after, way_out = "", "on_nonfinite=skip"
    if settings.on_nonfinite == "skip":
        after, way_out = f", after max_nonfinite_steps {bound} were skipped", f"max_nonfinite_steps={2 * bound + 1}"
    raise UserError(
        f"{problem}{after}; the weights were not updated, and the same command repeats the step from the checkpoint:"
        f" try a lower learning_rate, or more num_warmup_steps, or skip such steps: {way_out}"
    )


def _validated(state: TrainState, validate: Callable[[], float]) -> float:
    with state.product.ema.applied(state.product.model):
        loss = validate()
    if not math.isfinite(loss):
        raise UserError(
            f"step {state.step}: the validation loss of the averaged weights is {loss}: try a lower learning_rate, or"
            " more num_warmup_steps"
        )
    return loss


@contextmanager
def _lost_process(
    state: TrainState, settings: TrainingSettings, hooks: Hooks, updated: Sequence[str]
) -> Iterator[None]:
    """Within the block the loss of another process saves what this one has, and ends it with a line.

    Args:
        updated: networks whose update in the step at hand is made; the state is that after a step if there are none.
    """
    try:
        yield
    except RuntimeError as error:
        if not ranks.is_lost_process(error):
            raise
        goes_on = "from the checkpoint before it"
        if hooks.save_alone is not None and not updated:
            hooks.save_alone(state)
            goes_on = "from there"
        raise MachineFault(
            f"stopped after step {state.step} of {settings.num_train_steps}, another process having been lost; the same"
            f" command goes on {goes_on}"
        ) from error


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Within the block SIGINT and SIGTERM are noted, to be honoured after the step; a second one acts at once."""
    received: list[int] = []

    def note(signal_number: int) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(signal_number)

    with on_signals(note):
        yield received
