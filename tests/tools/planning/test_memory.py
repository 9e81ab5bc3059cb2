"""Memory and FLOPs of the plan against what torch hands out and counts, and what both follow from the launch."""

import copy
import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.planned import allocations, check_stage
from benchmarks.sizes import Size

from halfstep.diffusion import projection
from halfstep.diffusion.divergences import DIVERGENCES
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.diffusion.subs import masked_log_probs
from halfstep.model.config import DenoiserConfig
from halfstep.model.denoiser import Denoiser
from halfstep.objectives.nelbo import nelbo_objective
from halfstep.objectives.sdtt import distillation_objective
from halfstep.samplers.ancestral import sample
from halfstep.samplers.base import sample_uniforms
from halfstep.tools.planning import disk, memory
from halfstep.tools.planning.memory import LOGIT_BYTES, Device, Sharing, evaluation_peak, sampling_peak, training_peak
from halfstep.tools.planning.networks import Network, count_parameters
from halfstep.training import checkpoint

ROOT = Path(__file__).parents[3]
CPU = Device("cpu", is_bf16=False)
NETWORK = Network(vocab_size=512, hidden_size=64, num_blocks=4, num_heads=4, length=48, cond_dim=16)


def test_constants_are_those_of_the_code() -> None:
    assert memory.MAX_LOGITS == projection.MAX_LOGITS
    assert disk.NUM_KEPT == checkpoint.NUM_KEPT
    assert set(DIVERGENCES) < set(LOGIT_BYTES)


@pytest.mark.parametrize(("stage", "parts"), [("distill", 2), ("baseline", 1)])
def test_a_step_takes_the_memory_and_the_flops_that_are_planned(stage: str, parts: int) -> None:
    """Within a tenth. Noise and weights are those of fixed seeds, so that nothing here is left to chance."""
    checked = check_stage(ROOT, "tiny", Size(512, 64, 4, 2, 16, 32, 8), stage, parts)
    assert checked.memory_ratio == pytest.approx(1, abs=0.1)
    assert checked.flops_ratio == pytest.approx(1, abs=0.1)
    planned = checked.planned.parts
    assert checked.held == {"weights": planned.weights, "average": planned.average, "optimizer": planned.optimizer}


@pytest.mark.parametrize("distance", ["nelbo", *DIVERGENCES])
def test_a_chunk_of_logits_takes_what_its_loss_makes_of_it(distance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 and in bf16: a few chunks of 64 rows through networks so narrow that little but logits is made.

    The teacher's first step is so short that nearly all unmasks in its second.
    """
    vocab_size, rows = 2048, 64
    monkeypatch.setitem(projection.MAX_LOGITS, "cpu", rows * vocab_size)
    student = Denoiser(DenoiserConfig(vocab_size, vocab_size - 1, 48, 4, 1, 1, 2, 0.0, 1e-3))
    options: dict = {"schedule": LogLinearSchedule(1e-3), "min_time": 1e-5, "mask_token_id": vocab_size - 1}
    if distance == "nelbo":
        objective = nelbo_objective(**options)
    else:
        teacher = copy.deepcopy(student).eval().requires_grad_(False)
        options |= {"dt": 1e-3, "num_teacher_steps": 2, "divergence": DIVERGENCES[distance]}
        objective = distillation_objective(teacher, **options)
    x0 = torch.randint(vocab_size - 1, (10, 48))
    inputs = x0, *objective.draw(x0.shape, torch.Generator().manual_seed(0))

    def in_bf16() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            objective.loss(student, *inputs)

    peaks = allocated(lambda: objective.loss(student, *inputs), in_bf16)
    assert peaks == pytest.approx([num_bytes * rows * vocab_size for num_bytes in LOGIT_BYTES[distance][0]], rel=0.1)


def allocated(*calls: Callable[[], object]) -> list[int]:
    """The most bytes that torch hands out during each of some calls that leave nothing; one recording for all."""
    ends = [0]

    def run() -> None:
        for call in calls:
            call()
            ends.append(time.time_ns())

    _, held = allocations(run)
    return [
        max(num_bytes for moment, num_bytes in held if start < moment <= end) for start, end in itertools.pairwise(ends)
    ]


@pytest.mark.parametrize("num_steps", [1, 16])
def test_samples_and_likelihoods_take_the_memory_that_is_planned(num_steps: int) -> None:
    """Within a tenth; at one step the logits are the most, at sixteen the blocks."""
    network = Network(vocab_size=1024, hidden_size=96, num_blocks=2, num_heads=2, length=64, cond_dim=8)
    denoiser = Denoiser(DenoiserConfig(1024, 1023, 64, 96, 2, 2, 8, 0.0, 1e-3)).eval()
    weights = 4 * count_parameters(network).total
    masks = torch.full((16, 64), 1023)
    u_time, u_token = sample_uniforms(0, range(16), 64)
    options: dict = {"num_steps": num_steps, "mask_token_id": 1023, "u_time": u_time, "u_token": u_token}
    planned = sampling_peak(network, CPU, num_sequences=16, length=64, num_steps=num_steps)
    assert planned.moment == ("head" if num_steps == 1 else "blocks")
    judged = evaluation_peak(network, None, CPU, num_sequences=16, length=64, masked_share=1.0)
    at = torch.ones_like(masks, dtype=torch.bool)
    with torch.inference_mode():
        taken = allocated(
            lambda: sample(denoiser, masks, **options), lambda: masked_log_probs(denoiser.logits_at(masks, at), 1023)
        )
    assert [weights + most for most in taken] == pytest.approx([planned.total, judged.total], rel=0.1)


def peak_of(sharing: Sharing = memory.ALONE, **changes: object) -> memory.Peak:
    options: dict = {
        "loss": "nelbo",
        "num_sequences": 8,
        "sequence_length": 48,
        "is_accumulated": False,
        "num_valid_sequences": 0,
        "masked_share": 0.5,
        "dropout": 0.0,
        "sharing": sharing,
    }
    return training_peak(NETWORK, CPU, **(options | changes))


def test_spread_over_devices_only_the_outer_modules_are_whole_at_the_projection() -> None:
    parameters = count_parameters(NETWORK)
    whole, spread = peak_of().parts, peak_of(Sharing(8, True, False, False)).parts
    assert whole.optimizer == 8 * parameters.total
    assert spread.optimizer == whole.optimizer / 8
    assert spread.average == whole.average / 8
    assert spread.weights == whole.weights / 8 + 4 * (parameters.total - parameters.blocks)
    assert spread.activations == whole.activations
    # Of a part before, what is added up is a device's own.
    again = peak_of(Sharing(8, True, False, False), is_accumulated=True).parts
    assert again.gradients == spread.gradients + whole.weights / 8


def test_a_spread_teacher_keeps_its_outer_modules_and_two_blocks_whole() -> None:
    parameters = count_parameters(NETWORK)
    peaks = [peak_of(Sharing(8, True, shares, False), has_teacher=True) for shares in (False, True)]
    assert peaks[0].parts.teacher == 4 * parameters.total
    assert peaks[0].parts.teacher - peaks[1].parts.teacher == 4 * (parameters.blocks * 7 / 8 - 2 * parameters.block)


def test_copied_to_devices_gradients_have_a_place_of_their_own_all_the_time() -> None:
    """And once more where parts before the last are added up beside it."""
    copied = Sharing(8, False, False, False)
    weights = peak_of().parts.weights
    for is_accumulated in (False, True):
        alone, shared = (peak_of(sharing, is_accumulated=is_accumulated).parts for sharing in (memory.ALONE, copied))
        assert shared == replace(alone, gradients=alone.gradients + weights)
    assert peak_of(copied, num_valid_sequences=8000).parts.gradients == weights


def test_checkpointing_keeps_one_residual_for_each_block() -> None:
    deeper = replace(NETWORK, num_blocks=5)
    sharing = Sharing(1, False, False, True)
    options = {"loss": "nelbo", "num_sequences": 8, "sequence_length": 48, "is_accumulated": False}
    rest = {"num_valid_sequences": 0, "masked_share": 0.5, "dropout": 0.0, "sharing": sharing}
    more = training_peak(deeper, CPU, **options, **rest).parts.activations - peak_of(sharing).parts.activations
    assert more == 4 * 8 * 48 * NETWORK.hidden_size
    assert peak_of(sharing).parts.activations < peak_of().parts.activations


def test_a_validation_of_many_sequences_is_the_fullest_moment() -> None:
    peak = peak_of(num_valid_sequences=8000)
    assert peak.moment == "validation"
    # The raw weights are kept beside the average, which takes their place.
    assert peak.parts.average == 2 * peak.parts.weights
    assert peak.parts.gradients == 0
