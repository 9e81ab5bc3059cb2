"""Steps whose loss or gradient is not finite: stopped or skipped before the update, kept for inspection, counted."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file

from halfstep.data.seeds import derive_seed
from halfstep.objectives.base import Objective
from halfstep.run.errors import UserError
from halfstep.settings import load_params
from halfstep.settings.training import PretrainSettings
from halfstep.training.ema import EMA
from halfstep.training.loop import train
from halfstep.training.nonfinite import BATCH_FILE, FAULT_FILE, NUM_KEPT, NonFiniteStep, keep_nonfinite_step
from halfstep.training.optimizer import build_optimizer
from halfstep.training.output import write_curve
from halfstep.training.parallel import ModelLoss
from halfstep.training.session import check_skipped_steps
from halfstep.training.state import CurvePoint, TrainState

SEED = 3
Kept = list[tuple[int, torch.Tensor, NonFiniteStep]]


def new_state() -> TrainState:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
    optimizer = build_optimizer(model, betas=(0.9, 0.99), epsilon=1e-8, weight_decay=0.01)
    return TrainState(model, optimizer, EMA(model, 0.9))


def batch(step: int) -> torch.Tensor:
    return torch.randint(5, (4, 3), generator=torch.Generator().manual_seed(step))


def broken_at(*steps: int, gradient_only: bool = False) -> Objective:
    """An objective that is not finite at some steps, from 1, known by their batches."""
    broken = [batch(step - 1) for step in steps]

    def loss_of(model, x0):
        loss = (model(x0.float()) - 1).square().sum()
        if any(torch.equal(x0, other) for other in broken):
            # The root of zero is finite and its slope is not; what it is added to keeps a finite value.
            loss = loss + (model[1].bias * 0).sqrt().sum() if gradient_only else loss * float("nan")
        return loss, len(x0)

    return Objective(lambda shape, generator: (), loss_of)


def run(state: TrainState, num_train_steps: int, objective, **changes: Any) -> Kept:
    kept: Kept = []

    def keep(state: TrainState, x0: torch.Tensor, fault: NonFiniteStep) -> str:
        kept.append((state.step, x0, fault))
        return "its batch and state are in FOLDER"

    def batch_at(step: int):
        while True:
            yield batch(step)
            step += 1

    arguments = {
        "objective": objective,
        "batch_at": batch_at,
        "learning_rate": lambda step: 0.01 / (1 + step),
        "num_train_steps": num_train_steps,
        "num_accumulation_steps": 1,
        "max_grad_norm": 1.0,
        "on_nonfinite": "skip",
        "max_nonfinite_steps": 2,
        "keep_nonfinite_step": keep,
        "seed": SEED,
        "accelerator": Accelerator(cpu=True),
        "validate": lambda: 0.0,
        "validate_every_steps": 100,
        "log_every_steps": 1,
        "log": lambda point: None,
        "progress": lambda step, loss: None,
        "save_checkpoint": lambda state: None,
        "save_alone": None,
        "checkpoint_every_seconds": 1e9,
        "checkpoint_every_steps": None,
    }
    train(state, ModelLoss(state.model), **{**arguments, **changes})
    return kept


def tensors(state: TrainState) -> list[torch.Tensor]:
    moments = [tensor for group in state.optimizer.state.values() for tensor in group.values()]
    return [t.detach().clone() for t in (*state.model.parameters(), *state.ema.average.values(), *moments)]


def by_hand(num_steps: int, skipped: set[int]) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The same training in plain torch, with AdamW that is not fused: weights, and their average."""
    model = new_state().model
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.01)
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    num_updates = 0
    for step in range(1, num_steps + 1):
        if step in skipped:
            continue
        optimizer.param_groups[0]["lr"] = 0.01 / step
        optimizer.zero_grad()
        (model(batch(step - 1).float()) - 1).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        num_updates += 1
        decay = min(0.9, (1 + num_updates) / (10 + num_updates))
        for name, p in model.named_parameters():
            average[name] = decay * average[name] + (1 - decay) * p.detach()
    return model, average


@pytest.mark.parametrize("gradient_only", [False, True])
def test_a_skipped_step_leaves_weights_moments_and_average_as_they_were(gradient_only: bool) -> None:
    state = new_state()
    run(state, 2, broken_at())
    before = tensors(state)
    run(state, 3, broken_at(3, gradient_only=gradient_only))
    assert all(torch.equal(a, b) for a, b in zip(tensors(state), before, strict=True))
    assert (state.step, state.optimizer_step, state.num_skipped_steps) == (3, 3, 1)
    assert all(p.grad is None for p in state.model.parameters())


def test_a_run_with_skipped_steps_is_the_one_computed_by_hand_without_them() -> None:
    state = new_state()
    run(state, 6, broken_at(2, 5))
    model, average = by_hand(6, {2, 5})
    for ours, theirs in zip(state.model.parameters(), model.parameters(), strict=True):
        # The fused update rounds in another order; six updates of 1e-2 leave differences of a few times 1e-8.
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    for name, theirs in average.items():
        torch.testing.assert_close(state.ema.average[name], theirs, atol=1e-6, rtol=0)
    unskipped, _ = by_hand(6, set())
    assert not torch.allclose(state.model[0].weight, unskipped[0].weight, atol=1e-4)


def test_the_curve_counts_skipped_steps_and_has_no_numbers_for_them(tmp_path: Path) -> None:
    state, logged = new_state(), []
    run(state, 4, broken_at(3), log=logged.append)
    assert [point.num_skipped_steps for point in state.curve] == [0, 0, 1, 1]
    assert [point.loss is None for point in state.curve] == [False, False, True, False]
    assert [point.grad_norm is None for point in state.curve] == [False, False, True, False]
    assert logged == state.curve
    write_curve(state.curve, tmp_path / "0.csv")
    header, *rows = (tmp_path / "0.csv").read_text().splitlines()
    assert header == "step,loss,learning_rate,grad_norm,valid_loss,num_skipped_steps"
    assert rows[2] == f"3,,{0.01 / 3},,,1"


def test_the_count_is_saved_and_restored_and_may_not_be_missing(tmp_path: Path) -> None:
    state = new_state()
    run(state, 3, broken_at(2))
    state.save(tmp_path)
    restored = new_state()
    restored.load(tmp_path)
    assert restored.num_skipped_steps == 1
    assert restored.curve == state.curve
    # The bound is the whole run's: one more is allowed after the restoration, and no second one.
    run(restored, 4, broken_at(4))
    with pytest.raises(UserError, match="after max_nonfinite_steps 2 were skipped"):
        run(restored, 5, broken_at(5))
    values = json.loads((tmp_path / "train_state.json").read_text())
    del values["num_skipped_steps"]
    (tmp_path / "train_state.json").write_text(json.dumps(values))
    with pytest.raises(KeyError, match="num_skipped_steps"):
        new_state().load(tmp_path)


@pytest.mark.parametrize(("policy", "bound"), [("stop", 2), ("skip", 0)])
def test_a_run_that_may_not_skip_stops_before_the_update(policy: str, bound: int) -> None:
    state = new_state()
    run(state, 1, broken_at())
    before, saved = tensors(state), []
    with pytest.raises(UserError, match=r"step 2: the loss is nan .*are in FOLDER.*learning_rate") as raised:
        run(
            state,
            3,
            broken_at(2),
            on_nonfinite=policy,
            max_nonfinite_steps=bound,
            save_checkpoint=lambda state: saved.append((state.step, tensors(state))),
        )
    assert "\n" not in str(raised.value)
    assert str(raised.value).endswith("on_nonfinite=skip" if policy == "stop" else "max_nonfinite_steps=1")
    ((step, kept),) = saved
    assert step == 1
    assert all(torch.equal(a, b) for a, b in zip(kept, before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(tensors(state), before, strict=True))
    assert (state.step, state.num_skipped_steps) == (1, 0)


def test_what_is_kept_says_which_step_and_which_gradients() -> None:
    state = new_state()
    ((step, x0, fault),) = run(state, 3, broken_at(2, gradient_only=True))
    assert step == 1
    assert torch.equal(x0, batch(1))
    assert (fault.step, fault.step_seed) == (2, derive_seed(SEED, "step", 1))
    assert math.isfinite(fault.loss)
    assert not math.isfinite(fault.grad_norm)
    assert fault.learning_rate == 0.01 / 2
    assert fault.parameters == ["1.bias"]


def test_the_folder_holds_what_makes_the_step_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    state = new_state()
    run(state, 3, broken_at(2), keep_nonfinite_step=lambda *kept: keep_nonfinite_step("pretrain", *kept))
    folder = tmp_path / ".halfstep" / "faults" / "pretrain-step-000000002"
    values = json.loads((folder / FAULT_FILE).read_text())
    assert (values["loss"], values["grad_norm"], values["step"]) == ("nan", "nan", 2)
    assert values["parameters"] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    again = new_state()
    again.load(folder)
    assert again.step == 1
    assert torch.equal(load_file(folder / BATCH_FILE)["x0"], batch(1))
    with pytest.raises(UserError, match="step 2"):
        run(again, 2, broken_at(2), on_nonfinite="stop")


def test_the_newest_few_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    keep_nonfinite_step("distill-1", new_state(), batch(0), NonFiniteStep(1, 0, 1.0, 1.0, 1.0, []))
    for step in (9, 10, 11, 100, 101):
        keep_nonfinite_step("distill-10", new_state(), batch(0), NonFiniteStep(step, 0, 1.0, 1.0, 1.0, []))
    names = sorted(path.name for path in (tmp_path / ".halfstep" / "faults").iterdir())
    assert names == ["distill-1-step-000000001", *(f"distill-10-step-{n:09d}" for n in (11, 100, 101)[-NUM_KEPT:])]


def test_a_disk_without_room_does_not_hide_the_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    state = new_state()

    def refuse(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state, "save", refuse)
    told = keep_nonfinite_step("pretrain", state, batch(0), NonFiniteStep(1, 0, 1.0, 1.0, 1.0, []))
    assert "could not be kept" in told
    assert "No space left" in told
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_validation_that_is_not_finite_stops_the_run() -> None:
    state = new_state()
    with pytest.raises(UserError, match="step 2: the validation loss of the averaged weights is nan"):
        run(state, 4, broken_at(), validate=lambda: float("nan"), validate_every_steps=2)
    assert isinstance(state.curve[-1], CurvePoint)


def test_a_checkpoint_without_room_does_not_hide_the_fault() -> None:
    def full(state: TrainState) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="step 1: the loss is nan"):
        run(new_state(), 2, broken_at(1), on_nonfinite="stop", save_checkpoint=full)


def _settings(**changes: Any) -> PretrainSettings:
    values = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8"))
    return PretrainSettings.model_validate(values["pretrain"] | changes)


def test_another_policy_goes_on_from_the_same_checkpoint_and_another_rate_does_not() -> None:
    params = load_params(Path(__file__).parents[2] / "params.yaml")

    def deciding(**changes: Any) -> dict[str, Any]:
        return params.model_copy(update={"pretrain": _settings(**changes)}).deciding("seed", "pretrain")

    assert deciding() == deciding(on_nonfinite="skip") == deciding(max_nonfinite_steps=3)
    assert deciding() == deciding(checkpoint_every_seconds=3.0) == deciding(checkpoint_every_steps=3)
    assert deciding() != deciding(learning_rate=1e-9)


def test_skipped_steps_are_not_taken_over_by_a_policy_that_forbids_them() -> None:
    state = new_state()
    state.num_skipped_steps = 2
    check_skipped_steps(state, _settings(on_nonfinite="skip", max_nonfinite_steps=2), Path("F"))
    for changes in ({"on_nonfinite": "stop"}, {"on_nonfinite": "skip", "max_nonfinite_steps": 1}):
        with pytest.raises(UserError, match="F: the run was cut off after 2 skipped steps"):
            check_skipped_steps(state, _settings(**changes), Path("F"))
