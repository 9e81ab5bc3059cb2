"""Try in a process of its own whether memory holds a stage: `python -m halfstep.tools.trial`, see `try_batch`.

What runs is the stage's own loop on made-up tokens, with as many masks as its times can bring. The process ends itself
where it needs more than it may have: a kernel that runs out of memory might end another one.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.model.base import MaskedModel
from halfstep.model.gpt2 import new_gpt2
from halfstep.objectives.autoregressive import autoregressive_objective
from halfstep.objectives.base import PRODUCT, Objective
from halfstep.objectives.distillation import Distillation, adapt, distillation_objective, student_of
from halfstep.objectives.nelbo import nelbo_objective
from halfstep.run.device import autocast, peak_memory_bytes, select_device, select_precision, set_num_threads
from halfstep.run.faults import lacks_memory
from halfstep.samplers.ancestral import sample
from halfstep.samplers.base import Uniforms
from halfstep.settings import Params
from halfstep.settings.training import TrainingSettings
from halfstep.tools.planning.teacher import new_teacher
from halfstep.training.loop import Hooks, train
from halfstep.training.parallel import Devices, make_devices, parallelize, parallelize_teacher
from halfstep.training.state import Trained, TrainState
from halfstep.training.validation import mean_loss

EXIT_TOO_MUCH = 77
"""The process ended because it needed more memory than it may have."""

WATCH_SECONDS = 0.005


def main(params: Params, stage: str, *, vocab_size: int, limit_bytes: int | None) -> None:
    """Print the peak memory of a stage in bytes, or exit with `EXIT_TOO_MUCH`; None is all of an accelerator's."""
    device = select_device(params.runtime.device)
    set_num_threads(params.runtime.num_threads)
    if device.type == "cpu":
        _be_the_first_to_go()
        threading.Thread(target=_watch, args=(limit_bytes,), daemon=True).start()
    elif limit_bytes is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(limit_bytes / total, 1.0), device)
    try:
        if stage == "sample":
            _sample(params, vocab_size, device)
        else:
            train_few_steps(params, stage, vocab_size)
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        sys.exit(EXIT_TOO_MUCH)
    print(torch.cuda.max_memory_reserved(device) if device.type == "cuda" else peak_memory_bytes())


def _watch(limit: int) -> None:
    """End the process as soon as it has ever had more than `limit` bytes in RAM."""
    while peak_memory_bytes() <= limit:
        time.sleep(WATCH_SECONDS)
    os._exit(EXIT_TOO_MUCH)


def _be_the_first_to_go() -> None:
    """Should memory run out all the same, have Linux end this process and no other."""
    score = Path("/proc/self/oom_score_adj")
    if score.is_file():
        score.write_text("1000")


def train_few_steps(
    params: Params,
    stage: str,
    vocab_size: int,
    *,
    num_steps: int = 2,
    masks_most: bool = True,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """A stage's own loop on made-up tokens: a few steps, then a validation.

    Args:
        params: all parameters.
        stage: pretrain, baseline or distill.
        vocab_size: tokens, the mask token included.
        num_steps: from the second on the optimizer's moments are there.
        masks_most: as many masks as the unluckiest draw of times brings, not those of any.
        progress: see `Hooks`.
    """
    settings: TrainingSettings = getattr(params, stage)
    num_parts = settings.num_accumulation_steps
    devices = make_devices(params.runtime, params.launch)
    at_once = settings.batch_size // num_parts if masks_most else None
    model, objective, valid_objective = _objectives(params, stage, vocab_size, at_once, devices)
    x0 = torch.randint(vocab_size - 1, (settings.batch_size, params.data.context_length))
    if isinstance(model, MaskedModel):
        # No text holds the token that masks.
        x0 += x0 == model.config.mask_token_id
    few_steps = {
        "num_train_steps": num_steps, "learning_rate": 0.0, "validate_every_steps": num_steps, "on_nonfinite": "stop",
        "checkpoint_every_seconds": float("inf"), "checkpoint_every_steps": None,
    }  # fmt: skip
    networks = {PRODUCT: model, **objective.networks}
    parallel = {name: parallelize(network, devices) for name, network in networks.items()}
    state = TrainState(
        {name: Trained.new(network, objective.settings_of(name, settings)) for name, network in networks.items()}
    )

    def validate() -> float:
        batches = [x0[: settings.num_valid_sequences].to(devices.device)]
        with devices.accelerator.autocast():
            return mean_loss(valid_objective, parallel[PRODUCT], batches, num_parts=num_parts, seed=0)

    train(
        state,
        parallel,
        objective,
        lambda step: x0,
        settings.model_copy(update=few_steps),
        Hooks(validate, progress=progress),
        num_parts=num_parts,
        seed=0,
        accelerator=devices.accelerator,
    )


def _objectives(
    params: Params, stage: str, vocab_size: int, at_once: int | None, devices: Devices
) -> tuple[nn.Module, Objective, Objective]:
    """A new model, and what it is trained and validated by; with the most masks that `at_once` sequences may have."""
    numbers = params.baseline.num_givens
    autoregressive = partial(
        new_gpt2,
        vocab_size=vocab_size,
        length=params.data.context_length,
        fills_in=bool(numbers),
        **params.model.of_baseline,
    )
    if stage == "baseline":
        objective = autoregressive_objective(numbers, mask_token_id=vocab_size - 1)
        return autoregressive(), objective, objective
    denoiser = new_teacher(params, vocab_size)
    schedule = LogLinearSchedule(params.noise.epsilon)
    settings = params.distill if stage == "distill" else params.pretrain
    # The times of n sequences lie in n equal parts of [min_time, 1]; leaving the first out masks about as many tokens
    # as the unluckiest draw.
    min_time = max(settings.min_time, min(1 / at_once, 0.999)) if at_once else settings.min_time
    mask_token_id = denoiser.config.mask_token_id
    valid = nelbo_objective(schedule=schedule, min_time=settings.min_time, mask_token_id=mask_token_id)
    if stage == "pretrain":
        return denoiser, nelbo_objective(schedule=schedule, min_time=min_time, mask_token_id=mask_token_id), valid
    adapt(denoiser, None, params.distill.lora)
    student = student_of(denoiser, params.distill)
    assert isinstance(student, nn.Module)
    teacher = denoiser.eval()
    parallelize_teacher(teacher, devices)
    most_masks = params.distill.model_copy(update={"min_time": min_time})
    asked = None
    if params.distill.asks_autoregressive:
        asked = autoregressive().requires_grad_(False).eval().to(devices.device)
    given = Distillation(1, teacher, student, schedule, most_masks, autoregressive=asked)
    return student, distillation_objective(given), valid


def _sample(params: Params, vocab_size: int, device: torch.device) -> None:
    """One batch in the fewest denoising steps asked for, which unmask the most tokens at once."""
    denoiser = new_teacher(params, vocab_size).eval().to(device)
    shape, mask = (params.sample.batch_size, params.data.context_length), denoiser.config.mask_token_id
    u_time, u_token = Uniforms(0, range(shape[0]), shape[1]).first
    x_init = torch.full(shape, mask, device=device)
    num_steps = min(params.sample.num_steps)
    with autocast(device, select_precision(params.runtime.precision, device)):
        sample(denoiser, x_init, num_steps=num_steps, mask_token_id=mask, u_time=u_time, u_token=u_token)


if __name__ == "__main__":
    main(Params.model_validate_json(sys.stdin.read()), **json.loads(sys.argv[1]))
