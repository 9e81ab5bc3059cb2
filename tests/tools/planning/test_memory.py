"""The formula of memory against what torch hands out, and what follows from the launch."""

from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest
import torch

from halfstep.settings import Params
from halfstep.settings.training import TrainingSettings
from halfstep.tools.planning.compose import composed_params
from halfstep.tools.planning.memory import Memory, training_memory
from halfstep.tools.planning.networks import Network, count_parameters
from halfstep.tools.trial import train_two_steps

pytestmark = pytest.mark.stage  # takes seconds
ROOT = Path(__file__).parents[3]
NETWORK = Network(vocab_size=512, hidden_size=64, num_blocks=4, num_heads=4, length=32, cond_dim=16)
WIDE = replace(NETWORK, hidden_size=256, num_blocks=2)
"""Activations make up most of the first, weights most of the second."""


def params_of(network: Network, batch_size: int, *overrides: str) -> Params:
    sizes = ("hidden_size", "num_blocks", "num_heads", "cond_dim")
    values = [f"model.{name}={getattr(network, name)}" for name in sizes]
    values += ["runtime.device=cpu", f"data.context_length={network.length}", "sample.continuation_length=8"]
    for stage in ("pretrain", "baseline", "distill"):
        values += [f"{stage}.batch_size={batch_size}", f"{stage}.num_valid_sequences={batch_size}"]
    return composed_params(["preset=smoke", "sample.prefix_length=1", *values, *overrides], ROOT)


def measured_bytes(params: Params, stage: str) -> int:
    """The most bytes of tensors during two steps and a validation."""
    with torch.autograd.profiler.profile(profile_memory=True) as profiler:
        train_two_steps(params, stage, NETWORK.vocab_size, masks_most=False)
    assert profiler.kineto_results is not None
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.parametrize(
    ("network", "stage", "batch_size", "overrides"),
    [
        (NETWORK, "distill", 16, ["distill.num_accumulation_steps=2"]),
        (NETWORK, "baseline", 8, []),
        (WIDE, "pretrain", 4, []),
        (WIDE, "distill", 8, ["objective=idlm"]),
        (NETWORK, "distill", 8, ["objective=di4c", "distill.di4c.num_latents=4"]),
    ],
)
def test_the_formula_is_right_to_a_quarter(network: Network, stage: str, batch_size: int, overrides: list[str]) -> None:
    params = params_of(network, batch_size, *overrides)
    settings: TrainingSettings = getattr(params, stage)
    trained = replace(network, cond_dim=None) if stage == "baseline" else network
    planned = training_memory(params, trained, stage, settings.num_accumulation_steps)
    assert planned.total == pytest.approx(measured_bytes(params, stage), rel=0.25)


def distilled(*overrides: str) -> Memory:
    return training_memory(params_of(NETWORK, 16, *overrides), NETWORK, "distill", 1)


def test_ddp_keeps_a_place_for_gradients_and_fsdp_divides_all_but_activations() -> None:
    model = count_parameters(NETWORK)
    alone, copied = distilled(), distilled("launch.processes_per_node=8")
    assert copied == replace(alone, gradients=alone.weights, activations=copied.activations, logits=copied.logits)
    assert copied.activations == alone.activations / 8
    fsdp = ("launch.processes_per_node=8", "launch.strategy=fsdp")
    spread = distilled(*fsdp)
    assert spread.optimizer == alone.optimizer / 8
    block = model.blocks / NETWORK.num_blocks
    assert spread.weights == alone.weights / 8 + 4 * (model.total - model.blocks + 2 * block)
    assert alone.teacher == spread.teacher == 4 * model.total
    in_parts = distilled(*fsdp, "launch.shard_teacher=true").teacher
    assert spread.teacher - in_parts == 4 * (model.blocks * 7 / 8 - 2 * block)


def test_checkpointing_keeps_one_residual_for_each_block() -> None:
    less = distilled().activations - distilled("launch.gradient_checkpointing=true").activations
    residual = 4 * 16 * NETWORK.length * NETWORK.hidden_size
    assert less == 3 * distilled().activations / NETWORK.num_blocks - NETWORK.num_blocks * residual
