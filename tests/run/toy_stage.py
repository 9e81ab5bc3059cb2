"""A stage in small, which trains a toy network in as many processes as its parameters say; run by test_launch.py."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from halfstep.objectives.base import Objective
from halfstep.run import console, ranks
from halfstep.run.launch import enter
from halfstep.run.work import open_work
from halfstep.settings import load_params
from halfstep.training.fit import Data, fit
from halfstep.training.parallel import make_devices

NUM_STEPS = 14


def _batch(step: int) -> torch.Tensor:
    return torch.randint(3, (8, 3), generator=torch.Generator().manual_seed(step))


def _loss(model: torch.nn.Module, x0: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, int]:
    return (model(x0 + noise) - 1).square().sum(), len(x0)


def _draw(shape: tuple[int, int], generator: torch.Generator) -> tuple[torch.Tensor]:
    return (torch.rand(shape, generator=generator),)


def _stop_all() -> None:
    """Send SIGTERM to the agent, and wait until it has come back from there to every process."""
    came = []
    handler = signal.getsignal(signal.SIGTERM)

    def note(*arguments: Any) -> None:
        came.append(arguments)
        handler(*arguments)

    signal.signal(signal.SIGTERM, note)
    os.kill(os.getppid(), signal.SIGTERM)
    while not came:
        time.sleep(0.01)
    signal.signal(signal.SIGTERM, handler)


def main(
    params_path: Path,
    curve_path: Path,
    kill_at: Annotated[int | None, typer.Option(help="Step at which process 1 ends itself, if not restarted.")] = None,
    stop_at: Annotated[int | None, typer.Option(help="Step at which process 0 sends SIGTERM to its parent.")] = None,
) -> None:
    """Train, and write the losses."""
    params = load_params(params_path)
    enter(params.launch, params.runtime)
    settings = params.pretrain.model_copy(
        update={
            "num_train_steps": NUM_STEPS, "batch_size": 8, "num_accumulation_steps": 2, "log_every_steps": 1,
            "validate_every_steps": 100, "checkpoint_every_seconds": 1e6,
        }
    )  # fmt: skip
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))

    def log(step: int, values: dict[str, float | None]) -> None:
        is_first_attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if step == kill_at and ranks.rank() == 1 and is_first_attempt:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == stop_at and ranks.is_main():
            _stop_all()

    objective, data = Objective(_draw, {"model": _loss}), Data(_batch, lambda: [torch.ones(2, 3, dtype=torch.int64)])
    devices = make_devices(params.runtime, params.launch)
    with open_work("toy", {}, []) as work:
        state = fit(work, model, objective, settings, devices, data, seed=0, log=log)
        if ranks.is_main():
            curve_path.write_text(json.dumps([point.loss for point in state.curve]))


if __name__ == "__main__":
    console.run(main)
