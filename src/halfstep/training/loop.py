"""The one training loop: pretraining, the baseline and every distillation round run through it."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from halfstep.data.seeds import derive_seed
from halfstep.objectives.base import Objective
from halfstep.run import ranks
from halfstep.run.console import console
from halfstep.run.errors import Interrupted, MachineFault, UserError
from halfstep.run.faults import storage_fault
from halfstep.run.signals import on_signals
from halfstep.training.nonfinite import NonFiniteStep, nonfinite_gradients
from halfstep.training.parallel import without_sync
from halfstep.training.sharding import whole
from halfstep.training.state import CurvePoint, TrainState


def train(
    state: TrainState,
    model_loss: nn.Module,
    *,
    objective: Objective,
    batch_at: Callable[[int], Iterator[Tensor]],
    learning_rate: Callable[[int], float],
    num_train_steps: int,
    num_accumulation_steps: int,
    max_grad_norm: float,
    on_nonfinite: Literal["stop", "skip"],
    max_nonfinite_steps: int,
    keep_nonfinite_step: Callable[[TrainState, Tensor, NonFiniteStep], str],
    seed: int,
    accelerator: Accelerator,
    validate: Callable[[], float],
    validate_every_steps: int,
    log_every_steps: int,
    log: Callable[[CurvePoint], None],
    progress: Callable[[int, float], None],
    save_checkpoint: Callable[[TrainState], None],
    save_alone: Callable[[TrainState], None] | None,
    checkpoint_every_seconds: float,
    checkpoint_every_steps: int | None,
) -> None:
    """Train until `num_train_steps` steps are made, from wherever the state stands.

    A step's data and noise are functions of (seed, step), and the dropout of each part of its batch: a run that goes
    on from a checkpoint makes the same steps as one that never stopped, and several processes those of one, to
    rounding, for which they divide the parts.

    Args:
        state: changed in place.
        model_loss: the state's model as it lies on the devices, see `halfstep.training.parallel.lay_out`.
        objective: the loss, as a sum and a count.
        batch_at: this process's rows (`ranks.share`) of the batches from a given step on, each int64 [rows, length] on
            the CPU.
        learning_rate: of optimizer steps already made.
        num_train_steps: steps of this run, those already made included.
        num_accumulation_steps: equal parts in which this process computes its rows.
        max_grad_norm: gradients are scaled down to this 2-norm.
        on_nonfinite: what a NaN or infinite loss or gradient does, before the update: stop the run, or skip the step,
            which then counts as made (the data and the learning rate move on) and changes neither weights nor
            moments nor average.
        max_nonfinite_steps: steps skipped in the whole run at most; one more stops it.
        keep_nonfinite_step: called with the state before such a step, its batch and what went wrong, to keep them for
            inspection; returns where they are, as part of a sentence.
        seed: of noise and dropout.
        accelerator: device and precision.
        validate: loss of the averaged weights on validation data.
        validate_every_steps: how often; also after the last step.
        log_every_steps: how often a point is added to the curve; also whenever validated.
        log: called with each point.
        progress: called after each step with its number and loss.
        save_checkpoint: called when `checkpoint_every_seconds` have passed since the last time, every
            `checkpoint_every_steps` (None: never for that), after the last step, and when a signal or a loss that is
            not finite stops the run. All processes call it together.
        save_alone: called instead when another process was lost; None if no process can write the state without it.
    Raises:
        UserError: the loss or a gradient is NaN or infinite, and may not be skipped.
        Interrupted: SIGINT or SIGTERM came, in this process or another; the checkpoint is written.
        MachineFault: another process was lost.
    """
    state.model.train()
    batches = batch_at(state.step)
    last_checkpoint = time.monotonic()
    with _stop_signals() as received, _lost_process_told(state, num_train_steps, save_alone):
        while state.step < num_train_steps:
            x0 = next(batches).to(accelerator.device)
            generator = _seed_step(seed, state.step, accelerator.device)
            rate = learning_rate(state.optimizer_step)
            for group in state.optimizer.param_groups:
                group["lr"] = rate
            loss, grad_norm = _accumulate(
                state, model_loss, objective, x0, generator, num_accumulation_steps, accelerator
            )
            is_finite = math.isfinite(loss) and math.isfinite(grad_norm)
            if is_finite:
                if grad_norm > max_grad_norm:
                    _scale_gradients(state, max_grad_norm / grad_norm)
                state.optimizer.step()
                state.ema.update(state.model)
            else:
                names = nonfinite_gradients(state.model)
                fault = NonFiniteStep(state.step + 1, generator.initial_seed(), loss, grad_norm, rate, names)
                place = keep_nonfinite_step(state, x0, fault)
                if on_nonfinite == "stop" or state.num_skipped_steps >= max_nonfinite_steps:
                    # Nothing broken is in it, and another policy goes on from there.
                    with _no_storage_faults():
                        save_checkpoint(state)
                    raise UserError(_why_stopped(fault, place, on_nonfinite, max_nonfinite_steps))
                state.num_skipped_steps += 1
                count = f"{state.num_skipped_steps} of at most {max_nonfinite_steps}"
                console.print(f"{_told(fault)}: skipped ({count}), {place}", markup=False, soft_wrap=True)
            state.optimizer.zero_grad(set_to_none=True)
            state.step += 1
            state.optimizer_step += 1
            progress(state.step, loss)

            is_last = state.step == num_train_steps
            validates = is_last or state.step % validate_every_steps == 0
            if validates or state.step % log_every_steps == 0:
                valid_loss = _validated(state, validate) if validates else None
                point = CurvePoint(
                    step=state.step,
                    loss=loss if is_finite else None,
                    learning_rate=rate,
                    grad_norm=grad_norm if is_finite else None,
                    valid_loss=valid_loss,
                    num_skipped_steps=state.num_skipped_steps,
                )
                state.curve.append(point)
                log(point)
            is_due = is_last or time.monotonic() - last_checkpoint > checkpoint_every_seconds
            if checkpoint_every_steps is not None and state.step % checkpoint_every_steps == 0:
                is_due = True
            # The clock of the main process counts.
            signal_number, is_due = ranks.largest(received[0] if received else 0, is_due and ranks.is_main())
            if signal_number or is_due:
                save_checkpoint(state)
                last_checkpoint = time.monotonic()
            if signal_number:
                raise Interrupted(
                    int(signal_number),
                    f"stopped after step {state.step} of {num_train_steps}; the same command goes on from there",
                )


def _told(fault: NonFiniteStep) -> str:
    return f"step {fault.step}: the loss is {fault.loss} and the gradient's norm {fault.grad_norm}"


def _why_stopped(fault: NonFiniteStep, place: str, on_nonfinite: str, max_nonfinite_steps: int) -> str:
    """The one line of a run that a NaN or an infinity ends."""
    ways_out = "try a lower learning_rate, or more num_warmup_steps, or go on without such steps: "
    if on_nonfinite == "stop":
        return f"{_told(fault)}; the weights were not updated, {place}: {ways_out}on_nonfinite=skip"
    return (
        f"{_told(fault)}, after max_nonfinite_steps {max_nonfinite_steps} were skipped; the weights were not updated,"
        f" {place}: {ways_out}max_nonfinite_steps={2 * max_nonfinite_steps + 1}"
    )


@contextmanager
def _no_storage_faults() -> Iterator[None]:
    """Within the block a disk that refuses is passed over: there is something more urgent to say."""
    try:
        yield
    except Exception as error:
        if storage_fault(error) is None:
            raise


@contextmanager
def _lost_process_told(
    state: TrainState, num_train_steps: int, save_alone: Callable[[TrainState], None] | None
) -> Iterator[None]:
    """Within the block the loss of another process keeps what this one has, and ends it with a line."""
    try:
        yield
    except RuntimeError as error:
        if not ranks.is_lost_process(error):
            raise
        # Nothing is exchanged between the update and the count of its step: what is there is the state after a step.
        if save_alone is not None:
            save_alone(state)
        goes_on = "from there" if save_alone is not None else "from the checkpoint before it"
        raise MachineFault(
            f"stopped after step {state.step} of {num_train_steps}, another process having been lost; the same command"
            f" goes on {goes_on}"
        ) from error


def _accumulate(
    state: TrainState,
    model_loss: nn.Module,
    objective: Objective,
    x0: Tensor,
    generator: torch.Generator,
    num_accumulation_steps: int,
    accelerator: Accelerator,
) -> tuple[float, float]:
    """Leave the gradient of the batch's mean loss in the parameters; return that loss and the gradient's norm."""
    total, num_terms = torch.zeros((), dtype=torch.float64, device=x0.device), 0
    num_rows, length = x0.shape
    drawn = objective.draw((num_rows * ranks.num_ranks(), length), generator)
    drawn = tuple(tensor[ranks.share()] for tensor in drawn)
    for part in range(num_accumulation_steps):
        # Times ascend with the row: every so many rows, all parts have about as many masks.
        rows = slice(part, None, num_accumulation_steps)
        # Counted over all processes, as the rows are: dropout is a part's own, whoever computes it.
        torch.manual_seed(generator.initial_seed() + part * ranks.num_ranks() + ranks.rank())
        is_last = part == num_accumulation_steps - 1
        with nullcontext() if is_last else without_sync(model_loss):
            with accelerator.autocast():
                loss_sum, part_terms = model_loss(objective.loss, x0[rows], *(tensor[rows] for tensor in drawn))
            accelerator.backward(loss_sum)
        total += loss_sum.detach()
        num_terms += part_terms
    total, num_terms = ranks.sums(total, num_terms)
    # What is there is the mean over the processes.
    _scale_gradients(state, ranks.num_ranks() / max(num_terms, 1))
    gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm(gradients)).double()
    # The step's one wait for the device: whether to make the update depends on these.
    loss = torch.as_tensor(total / max(num_terms, 1), dtype=norm.dtype, device=norm.device)
    loss, grad_norm = torch.stack([loss, norm]).tolist()
    return loss, grad_norm


def _scale_gradients(state: TrainState, factor: float) -> None:
    gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
    torch._foreach_mul_(gradients, factor)


def _validated(state: TrainState, validate: Callable[[], float]) -> float:
    with state.ema.applied(state.model):
        loss = validate()
    if not math.isfinite(loss):
        raise UserError(
            f"step {state.step}: the validation loss of the averaged weights is {loss}: try a lower learning_rate, or"
            " more num_warmup_steps"
        )
    return loss


def _seed_step(seed: int, step: int, device: torch.device) -> torch.Generator:
    """Randomness of one step's noise, the same in all processes."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, "step", step))


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
