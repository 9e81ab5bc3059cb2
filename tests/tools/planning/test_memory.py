"""The formula of memory against what torch hands out, and what follows from the launch."""

import copy
from collections.abc import Iterable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from tests.model.hub_folders import published
from transformers import LlamaConfig, LlamaForCausalLM

from halfstep.model.hub import HubConfig, HubModel, open_hub
from halfstep.settings import Params
from halfstep.settings.training import TrainingSettings
from halfstep.tools.planning.compose import composed_params
from halfstep.tools.planning.gpus import GPUS
from halfstep.tools.planning.memory import Lora, Memory, training_memory
from halfstep.tools.planning.networks import Network, count_parameters
from halfstep.tools.planning.plan import USABLE_SHARE
from halfstep.tools.planning.teacher import teacher_network
from halfstep.tools.trial import train_few_steps
from halfstep.training.parallel import hold_in_bf16
from halfstep.training.state import Trained

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
        train_few_steps(params, stage, NETWORK.vocab_size, masks_most=False)
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
        (NETWORK, "distill", 8, ["objective=gumbel"]),
    ],
)
def test_the_formula_is_right_to_a_quarter(network: Network, stage: str, batch_size: int, overrides: list[str]) -> None:
    params = params_of(network, batch_size, *overrides)
    settings: TrainingSettings = getattr(params, stage)
    trained = replace(network, cond_dim=None) if stage == "baseline" else network
    planned = training_memory(params, trained, stage, settings.num_accumulation_steps)
    assert planned.total == pytest.approx(measured_bytes(params, stage), rel=0.25)


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_the_formula_is_right_to_a_quarter_for_a_hubs_model(kind: str, tmp_path: Path) -> None:
    """Of other sizes than `model` has."""
    published(tmp_path, kind, hidden_size=64, num_hidden_layers=5, intermediate_size=160, vocab_size=512)
    given = [f"pretrain.init_from={tmp_path}", "pretrain.init_shift=true"]
    params = params_of(NETWORK, 8, *given)
    planned = training_memory(params, teacher_network(params, NETWORK.vocab_size), "distill", 1)
    assert planned.total == pytest.approx(measured_bytes(params, "distill"), rel=0.25)


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


def wide_llama(folder: Path, rank: int) -> HubModel:
    """As wide and deep as `WIDE`, with an adapter."""
    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_key_value_heads": 4}
    published(folder, "llama", vocab_size=512, **sizes)
    model = open_hub(folder, None, mask_token_id=511, num_tokens=512, length=32, noise_epsilon=1e-3, is_shifted=False)
    model.adapt(folder, rank=rank, alpha=8, targets=None)
    return model


@pytest.mark.parametrize("rank", [8, 64])
def test_a_round_of_adapters_takes_what_is_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    monkeypatch.setattr("halfstep.tools.trial.new_teacher", lambda *given: wide_llama(tmp_path, rank))
    params = params_of(WIDE, 4, "objective=sdtt")
    planned = training_memory(params, WIDE, "distill", 1, Lora.of(wide_llama(tmp_path, rank)))
    assert planned.total == pytest.approx(measured_bytes(params, "distill"), rel=0.1)


def num_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Of tensors that may have memory in common."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_held_between_steps_of_adapters_is_exact(tmp_path: Path, precision: str) -> None:
    teacher = wide_llama(tmp_path, 8)
    student = copy.deepcopy(teacher)
    if precision == "bf16":
        hold_in_bf16(teacher)
    params, lora = params_of(WIDE, 4, f"runtime.precision={precision}"), Lora.of(student)
    planned = training_memory(params, WIDE, "distill", 1, lora)
    # Autocast's copies come with a step: of the projection at every use, of the adapter once.
    cast = {"fp32": 0, "bf16": 2}[precision]
    assert num_bytes(teacher.parameters()) == planned.teacher - cast * lora.projection
    both = num_bytes([*teacher.parameters(), *student.parameters()])
    assert both - num_bytes(teacher.parameters()) == planned.weights - cast * lora.adapter
    trained = Trained.new(student, params.distill)
    xt = torch.zeros(1, 8, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        student.hidden_at(xt, xt == 0).sum().backward()
    trained.optimizer.step()
    of = {
        name: num_bytes(t for key, t in trained.tensors().items() if key.startswith(name)) for name in ("ema", "exp_")
    }
    assert of == {"ema": planned.average, "exp_": planned.optimizer}


def test_eight_billion_parameters_fit_one_card_of_80_gb(tmp_path: Path) -> None:
    """LLaDA's sizes, one sequence of 1024 tokens at a time, of which learning everything fits none."""
    sizes = {"vocab_size": 126464, "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 12288}
    (tmp_path / "config.json").write_text("{}")
    with torch.device("meta"):
        model = HubModel(
            LlamaForCausalLM(LlamaConfig(**sizes)), HubConfig(126464, 126336, 1024, 1e-3, 32, 126349, False)
        )
        model.adapt(tmp_path, rank=64, alpha=64, targets=None)
    overrides = ["preset=paper", "runtime.device=cuda", "runtime.precision=bf16", "objective=sdtt"]
    params, lora = composed_params(overrides, ROOT), Lora.of(model)
    assert (lora.base, lora.adapter) == (8_015_581_184, 32 * 64 * (8 * 4096 + 3 * (4096 + 12288)))
    network = Network(126464, 4096, 32, 32, 1024, cond_dim=128)
    by_adapter, by_all = (
        training_memory(params, network, "distill", params.distill.batch_size, some).total for some in (lora, None)
    )
    (card,) = (gpu for gpu in GPUS if gpu.name == "H100-SXM")
    assert by_adapter < 33e9 < USABLE_SHARE * card.memory_bytes < by_all
