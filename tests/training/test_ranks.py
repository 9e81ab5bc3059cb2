"""Several processes train as one does: the same curve and the same files, whatever their number."""

import copy
import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.model.hub_folders import published

from halfstep.diffusion.divergences import kl_student_teacher, kl_teacher_student
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.model.config import DenoiserConfig
from halfstep.model.denoiser import Denoiser
from halfstep.model.gpt2 import new_gpt2
from halfstep.model.hub import open_hub
from halfstep.objectives.autoregressive import autoregressive_objective
from halfstep.objectives.base import Objective
from halfstep.objectives.gumbel import noise_of_texts
from halfstep.objectives.heads import HeadSettings, with_head
from halfstep.objectives.idlm import idlm_objective
from halfstep.objectives.joint import joint_objective
from halfstep.objectives.joint_sdtt import joint_sdtt_objective
from halfstep.objectives.nelbo import nelbo_objective
from halfstep.objectives.sdtt import sdtt_objective
from halfstep.objectives.teacher import TeacherSteps
from halfstep.run import ranks
from halfstep.run.errors import UserError
from halfstep.run.work import Work, cached
from halfstep.settings import load_params
from halfstep.settings.training import num_parts_of
from halfstep.training.fit import Data, fit, seed_weights
from halfstep.training.parallel import make_devices, parallelize_teacher
from halfstep.training.stage import write_model, write_state

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")
RUNTIME = PARAMS.runtime.model_copy(update={"device": "cpu", "num_threads": 1})
VALID_TOKENS = torch.from_numpy(np.random.default_rng(0).integers(0, 12, (18, 10)))
NUM_STEPS = 12
TOLERANCE = 2e-5
"""Of losses around 2.5 in float32, summed in another order and fed back for some steps: 1e-6 was seen."""

CONFIG = DenoiserConfig(
    vocab_size=13, mask_token_id=12, length=10, hidden_size=16, num_blocks=2, num_heads=2, cond_dim=8, dropout=0.1,
    noise_epsilon=1e-3,
)  # fmt: skip


KINDS = ("baseline", "distill", "rivals", "idlm", "gumbel", "head", "joint", "hub", "lora")
HEAD_SETTINGS = HeadSettings(hidden_size=8, num_layers=2, num_heads=2, order="both", train_trunk=False)

DATA = Data(
    lambda step: torch.from_numpy(np.random.default_rng([1, step]).integers(0, 12, (16, 10))),
    lambda: VALID_TOKENS.split(4),
)


def with_rival(nelbo: Objective) -> Objective:
    """A second network, the rival, is trained too, first; the product's loss asks it, and leaves gradients there."""
    rival = Denoiser(CONFIG)

    def of_product(model: Denoiser, x0: torch.Tensor, *drawn: torch.Tensor) -> tuple[torch.Tensor, int]:
        total, count = nelbo.loss(model, x0, *drawn)
        everywhere = torch.ones_like(x0, dtype=torch.bool)
        apart = model.hidden_at(x0, everywhere) - rival.hidden_at(x0, everywhere)
        return total + apart.square().mean(-1).sum(), count

    losses = {"rival": nelbo.loss, "model": of_product}
    return Objective(nelbo.draw, losses, {"rival": rival}, {"rival": {"learning_rate": 1e-3, "ema_decay": 0.5}})


def train(folder: Path, kind: str, *, num_train_steps: int = NUM_STEPS, validate_every: int = 4, **layout: Any) -> None:
    """Train in as many processes as there are, from where the folder's work stands, and write model and curve."""
    settings = PARAMS.pretrain.model_copy(
        update={
            "num_train_steps": num_train_steps, "num_warmup_steps": 4, "lr_schedule": "constant",
            "batch_size": 16, "num_accumulation_steps": 4, "num_valid_sequences": 20,
            "log_every_steps": 1, "validate_every_steps": validate_every, "checkpoint_every_steps": 5,
        }
    )  # fmt: skip
    launch = PARAMS.launch.model_copy(update=layout)
    devices = make_devices(RUNTIME, launch)
    schedule = LogLinearSchedule(1e-3)
    without_schedule = {"min_time": 1e-5, "mask_token_id": 12}
    common = {"schedule": schedule, **without_schedule}
    seed_weights(0, kind)
    objective = valid_objective = nelbo_objective(**common)
    model: torch.nn.Module = Denoiser(CONFIG)
    if kind == "baseline":
        model = new_gpt2(vocab_size=13, length=10, hidden_size=16, num_blocks=2, num_heads=2, dropout=0.1)
        objective = valid_objective = autoregressive_objective()
    elif kind == "distill":
        teacher = Denoiser(CONFIG).eval()
        torch.nn.init.normal_(teacher.head.weight, std=0.5)
        parallelize_teacher(teacher, devices)
        # So little time passes in a teacher's step that in some nothing unmasks.
        objective = sdtt_objective(
            teacher, TeacherSteps(1 / 128, 2, schedule, asks_in_every_step=devices.shards_teacher),
            divergence=kl_student_teacher, **without_schedule,
        )  # fmt: skip
    elif kind == "head":
        model = with_head(model, HEAD_SETTINGS)
        objective = joint_objective(train_trunk=False, order="both", **common)
    elif kind == "joint":
        # A teacher with a head, and so little time in a step that in some nothing unmasks, in some one position.
        joint_teacher = with_head(model, HEAD_SETTINGS).eval()
        for weight in (joint_teacher.trunk.head.weight, joint_teacher.joint_head.out.weight):
            torch.nn.init.normal_(weight, std=0.5)
        model = with_head(joint_teacher, HEAD_SETTINGS.model_copy(update={"train_trunk": True}))
        parallelize_teacher(joint_teacher, devices)
        objective = joint_sdtt_objective(
            joint_teacher,
            TeacherSteps(1 / 64, 2, schedule, "cosine", "surest", asks_in_every_step=devices.shards_teacher),
            divergence=kl_teacher_student, train_trunk=True, **without_schedule,
        )  # fmt: skip
    elif kind == "idlm":
        teacher = copy.deepcopy(model).eval()
        objective = idlm_objective(teacher, model, fake_learning_rate=1e-3, **common)
    elif kind == "gumbel":
        model = Denoiser(CONFIG).with_noise()
        sizes = {"hidden_size": 8, "num_blocks": 1, "num_heads": 2, "dropout": 0.0}
        asked = new_gpt2(vocab_size=13, length=10, **sizes).requires_grad_(False).eval()
        objective = nelbo_objective(latent_of=noise_of_texts(asked, 0.7, 12), **common)
    elif kind == "rivals":
        objective = with_rival(objective)
    elif kind in ("hub", "lora"):
        # Its embedding is its projection, too.
        hub = folder.parent / "hub"
        model = open_hub(hub, None, mask_token_id=12, num_tokens=13, length=10, noise_epsilon=1e-3, is_shifted=True)
        if kind == "lora":
            hub_teacher = model
            hub_teacher.adapt(hub, rank=2, alpha=4, targets=None)
            model = copy.deepcopy(hub_teacher)
        else:
            hub_teacher = copy.deepcopy(model).eval()
            torch.nn.init.normal_(hub_teacher.head.weight, std=0.5)
        parallelize_teacher(hub_teacher, devices)
        step_size = 1 / 8 if kind == "lora" else 1 / 128
        objective = sdtt_objective(
            hub_teacher, TeacherSteps(step_size, 2, schedule, asks_in_every_step=devices.shards_teacher),
            divergence=kl_student_teacher, **without_schedule,
        )  # fmt: skip
    work = Work(kind, folder / "work")
    log: Callable[..., None] = lambda step, values: None  # noqa: E731
    state = fit(work, model, objective, settings, devices, DATA, seed=0, log=log, valid_objective=valid_objective)
    tokenizer = folder / "tokenizer"
    if ranks.is_main():
        tokenizer.mkdir(exist_ok=True)
    write_state(state, folder / "state")
    write_model(state, folder / "model", tokenizer)
    if ranks.is_main():
        (folder / "curve.json").write_text(json.dumps([vars(point) for point in state.curve]))


def in_ranks(num_ranks: int, function: Callable[[], None]) -> None:
    """Call a function in several processes that have met."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["accelerate", "torch.distributed.checkpoint", "halfstep.training.fit"])
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    processes = [context.Process(target=_in_rank, args=(r, num_ranks, port, function)) for r in range(num_ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * num_ranks


def _in_rank(rank: int, num_ranks: int, port: int, function: Callable[[], None]) -> None:
    values = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": num_ranks,
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in values.items()})
    torch.set_num_threads(1)
    ranks.join(is_cpu=True, timeout_seconds=60)
    function()
    ranks.wait()
    torch.distributed.destroy_process_group()


def _all_with_two(root: Path) -> None:
    train(root / "ddp-2", "pretrain")
    train(root / "fsdp-2", "pretrain", strategy="fsdp", gradient_checkpointing=True)
    train(root / "baseline-2", "baseline", num_train_steps=4, strategy="fsdp")
    train(root / "distill-2", "distill", num_train_steps=4, strategy="fsdp", shard_teacher=True)
    train(root / "chain", "pretrain", num_train_steps=8, strategy="fsdp")
    train(root / "rivals-2", "rivals", num_train_steps=4)
    train(root / "idlm-2", "idlm", num_train_steps=4)
    train(root / "gumbel-2", "gumbel", num_train_steps=4, strategy="fsdp")
    train(root / "hub-2", "hub", num_train_steps=4, strategy="fsdp", shard_teacher=True)
    train(root / "lora-2", "lora", num_train_steps=4)
    train(root / "head-2", "head", num_train_steps=4)
    train(root / "joint-2", "joint", num_train_steps=4, strategy="fsdp", shard_teacher=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of runs, named after what was trained in how many processes."""
    root = tmp_path_factory.mktemp("runs")
    kinds = ("ddp-1", "ddp-2", "ddp-4", "fsdp-2", "chain")
    for name in (*kinds, *(f"{kind}-{num}" for kind in KINDS for num in (1, 2))):
        (root / name / "work").mkdir(parents=True)
    torch.set_num_threads(1)
    published(root / "hub", "qwen2", vocab_size=13, pad_token_id=None)
    train(root / "ddp-1", "pretrain")
    for kind in KINDS:
        train(root / f"{kind}-1", kind, num_train_steps=4)
    in_ranks(4, partial(_all_with_four, root))
    in_ranks(2, partial(_all_with_two, root))
    train(root / "chain", "pretrain")
    return root


def _all_with_four(root: Path) -> None:
    train(root / "ddp-4", "pretrain")
    train(root / "chain", "pretrain", num_train_steps=4, strategy="fsdp")


def curve(folder: Path) -> np.ndarray:
    points = json.loads((folder / "curve.json").read_text())
    return np.array([[p["loss"], p["grad_norm"], p["valid_loss"] or 0] for p in points])


@pytest.mark.parametrize(
    ("one", "several"),
    [
        ("ddp-1", "ddp-2"),
        ("ddp-1", "ddp-4"),
        ("ddp-1", "fsdp-2"),
        pytest.param("ddp-1", "chain", id="four-then-two-then-one"),
        ("baseline-1", "baseline-2"),
        ("distill-1", "distill-2"),
        ("rivals-1", "rivals-2"),
        ("idlm-1", "idlm-2"),
        ("gumbel-1", "gumbel-2"),
        ("hub-1", "hub-2"),
        ("lora-1", "lora-2"),
        ("head-1", "head-2"),
        ("joint-1", "joint-2"),
    ],
)
def test_curve_and_files_are_those_of_one_process(root: Path, one: str, several: str) -> None:
    np.testing.assert_allclose(curve(root / several), curve(root / one), rtol=TOLERANCE, atol=TOLERANCE)
    assert len(curve(root / one)) >= 4
    files = [sorted(path.name for path in (root / run / "model").iterdir()) for run in (one, several)]
    assert files[0] == files[1]
    weights = {f"model/{name}" for name in files[0] if name.endswith(".safetensors")}
    for name in ("state/train_state.safetensors", *weights):
        expected, found = (load_file(root / run / name) for run in (one, several))
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            # AdamW divides by the root of a second moment that may be close to nothing.
            torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=2e-4, msg=key)


def test_the_checkpoints_of_processes_with_parts_are_in_parts(root: Path) -> None:
    kept = [{file.name for file in path.iterdir()} for path in (root / "fsdp-2" / "work").glob("step-*")]
    assert len(kept) == 2
    for files in kept:
        assert {"__0_0.distcp", "__1_0.distcp", ".metadata", "hashes.json", "train_state.json"} == files


def _two_networks_in_parts(root: Path) -> None:
    with pytest.raises(UserError, match=r"-S launch\.strategy=ddp"):
        train(root, "rivals", strategy="fsdp")


def test_several_networks_are_not_trained_in_parts(tmp_path: Path) -> None:
    in_ranks(2, partial(_two_networks_in_parts, tmp_path))


def test_a_batch_that_cannot_be_divided_is_refused() -> None:
    settings = PARAMS.pretrain.model_copy(update={"batch_size": 16, "num_accumulation_steps": 2})
    assert [num_parts_of(settings, "pretrain", num_processes) for num_processes in (1, 4)] == [2, 4]
    with pytest.raises(UserError, match=r"pretrain\.batch_size is 16, which 3 processes .* in 6 equal parts"):
        num_parts_of(settings, "pretrain", 3)


def _divide(folder: Path, broken: int | None) -> None:
    def compute(piece: int) -> dict[str, np.ndarray]:
        if piece == broken:
            raise UserError(f"piece {piece} is broken")
        (folder.parent / f"{piece}-by-{ranks.rank()}").touch()
        return {"square": np.array(piece**2)}

    pieces = cached(folder, range(7), compute)
    if broken is None:
        assert [(piece, int(kept["square"])) for piece, kept in pieces] == [(piece, piece**2) for piece in range(7)]
    else:
        with pytest.raises(UserError, match=f"piece {broken} is broken"):
            list(pieces)


def test_processes_divide_the_pieces_and_keep_what_one_keeps(tmp_path: Path) -> None:
    alone, shared = tmp_path / "alone" / "kind", tmp_path / "shared" / "kind"
    for folder in (alone, shared):
        folder.parent.mkdir()

    def kept(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    _divide(alone, None)
    # One process meets a broken piece, both hear of it; what was done before is kept.
    in_ranks(2, partial(_divide, shared, 5))
    assert len(kept(shared)) == 5
    in_ranks(2, partial(_divide, shared, None))
    assert kept(shared) == kept(alone)
    assert sorted(path.name for path in shared.parent.glob("*-by-*")) == [f"{i}-by-{i % 2}" for i in range(7)]
