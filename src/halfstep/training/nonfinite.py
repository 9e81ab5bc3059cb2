"""Steps whose loss or gradient is NaN or infinite: what is kept of them for inspection."""

import math
import shutil
from dataclasses import asdict, dataclass

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from halfstep.run import ranks
from halfstep.run.faults import storage_fault
from halfstep.run.files import project_root, write_json, written_by_main
from halfstep.training.sharding import whole
from halfstep.training.state import TrainState

NUM_KEPT = 3
"""Steps kept of a run. Weights, average and moments are in each, so they are large."""

BATCH_FILE = "batch.safetensors"
FAULT_FILE = "fault.json"


@dataclass(frozen=True)
class NonFiniteStep:
    """A step whose update was not made.

    Attributes:
        step: its number in the run, from 1.
        step_seed: of its noise and dropout.
        loss, grad_norm: as computed, at least one not finite.
        learning_rate: it would have had.
        parameters: names of those whose gradient is not finite.
    """

    step: int
    step_seed: int
    loss: float
    grad_norm: float
    learning_rate: float
    parameters: list[str]


def nonfinite_gradients(model: nn.Module) -> list[str]:
    """Names of the parameters whose gradient holds a NaN or an infinity."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not bool(torch.isfinite(whole(parameter.grad)).all())
    ]


def keep_nonfinite_step(run: str, state: TrainState, x0: Tensor, fault: NonFiniteStep) -> str:
    """Write the state before a step, its batch and what went wrong to `.halfstep/faults/RUN-step-N`.

    Inspecting a fault must not become another one: where the disk refuses, nothing is written and the result says so.
    Of each run the newest few are kept.

    Args:
        run: name of the run, such as `distill-2`.
        state: as it was before the step.
        x0: this process's rows of the step's batch, int64 [rows, length].
        fault: what went wrong.
    Returns:
        where it is, as part of a sentence.
    """
    root = project_root() / ".halfstep" / "faults"
    folder = root / f"{run}-step-{fault.step:09d}"
    try:
        # Row i of the batch is in process i mod their number.
        batch = torch.stack(ranks.gather(x0.cpu()), dim=1).flatten(0, 1)
        with written_by_main(folder) as temporary:
            temporary.mkdir()
            state.save(temporary)
            save_file({"x0": batch}, temporary / BATCH_FILE)
            # JSON has no word for these numbers.
            values = {
                k: v if not isinstance(v, float) or math.isfinite(v) else str(v) for k, v in asdict(fault).items()
            }
            write_json(temporary / FAULT_FILE, values)
    except Exception as error:
        if storage_fault(error) is None:
            raise
        return f"its batch and state could not be kept in {folder} ({error})"
    if ranks.is_main():
        for old in sorted(root.glob(f"{run}-step-*"))[:-NUM_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
    return f"its batch and state are in {folder}"
