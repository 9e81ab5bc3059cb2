"""The loop on a toy problem: what a step does, and that a run cut off anywhere ends where it would have."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from halfstep.objectives.base import Objective
from halfstep.run.errors import Interrupted, UserError
from halfstep.training.checkpoint import CheckpointFolder
from halfstep.training.ema import EMA
from halfstep.training.loop import train
from halfstep.training.optimizer import build_optimizer
from halfstep.training.parallel import ModelLoss
from halfstep.training.state import CurvePoint, TrainState


def _new_state() -> TrainState:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.2), torch.nn.Linear(4, 1))
    optimizer = build_optimizer(model, betas=(0.9, 0.99), epsilon=1e-8, weight_decay=0.01)
    return TrainState(model, optimizer, EMA(model, 0.9))


def _draw(shape, generator):
    return (torch.rand(shape, generator=generator),)


def _loss(model, x0, noise):
    return (model(x0.float() + noise) - 1).square().sum(), len(x0)


_objective = Objective(_draw, _loss)


def _batch_at(step: int) -> Iterator[torch.Tensor]:
    while True:
        yield torch.randint(5, (4, 3), generator=torch.Generator().manual_seed(step))
        step += 1


def _train(state: TrainState, num_train_steps: int, **changes) -> None:
    arguments = {
        "objective": _objective,
        "batch_at": _batch_at,
        "learning_rate": lambda step: 0.01 / (1 + step),
        "num_train_steps": num_train_steps,
        "num_accumulation_steps": 1,
        "max_grad_norm": 1.0,
        "on_nonfinite": "stop",
        "max_nonfinite_steps": 0,
        "keep_nonfinite_step": lambda state, x0, fault: "nothing was kept",
        "seed": 3,
        "accelerator": Accelerator(cpu=True),
        "validate": lambda: next(state.model.parameters()).sum().item(),
        "validate_every_steps": 4,
        "log_every_steps": 2,
        "log": lambda point: None,
        "progress": lambda step, loss: None,
        "save_checkpoint": lambda state: None,
        "save_alone": None,
        "checkpoint_every_seconds": 1e9,
        "checkpoint_every_steps": None,
    }
    train(state, ModelLoss(state.model), **{**arguments, **changes})


def _tensors(state: TrainState) -> list[torch.Tensor]:
    moments = [tensor for group in state.optimizer.state.values() for tensor in group.values()]
    return [*state.model.parameters(), *state.ema.average.values(), *moments]


def test_a_run_that_goes_on_from_a_checkpoint_is_the_run_that_never_stopped(tmp_path: Path) -> None:
    whole = _new_state()
    _train(whole, 9)

    first = _new_state()
    _train(first, 5, validate_every_steps=4)
    # The last step of the shorter run is validated, which the longer run does not do at that step.
    first.curve.pop()
    first.save(tmp_path)
    resumed = _new_state()
    resumed.load(tmp_path)
    _train(resumed, 9)

    assert resumed.curve == whole.curve
    assert resumed.step == resumed.optimizer_step == 9
    assert all(torch.equal(a, b) for a, b in zip(_tensors(resumed), _tensors(whole), strict=True))


def test_a_signal_stops_after_the_step_and_keeps_it(tmp_path: Path) -> None:
    state, saved = _new_state(), []

    def progress(step: int, loss: float) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="after step 3 of 9") as raised:
        _train(state, 9, progress=progress, save_checkpoint=lambda state: saved.append(state.step))
    assert raised.value.signal_number == signal.SIGTERM
    assert saved == [3]


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    state = _new_state()
    before = [tensor.clone() for tensor in _tensors(state)]

    def loss(*arguments):
        total, count = _loss(*arguments)
        return total * float("nan"), count

    objective = Objective(_draw, loss)
    with pytest.raises(UserError, match="step 1: the loss is nan"):
        _train(state, 2, objective=objective)
    assert all(torch.equal(a, b) for a, b in zip(_tensors(state), before, strict=True))


def test_accumulation_gives_the_gradient_of_the_whole_batch() -> None:
    states = []
    for num_accumulation_steps in (1, 2, 4):
        state = _new_state()
        state.model[1].p = 0.0
        _train(state, 3, num_accumulation_steps=num_accumulation_steps)
        states.append(state)
    for state in states[1:]:
        for a, b in zip(state.model.parameters(), states[0].model.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_gradients_are_clipped_to_their_norm() -> None:
    """With plain SGD the step's length is the learning rate times the clipped norm."""
    state = _new_state()
    state.optimizer = torch.optim.SGD(state.model.parameters(), lr=0.0)
    before = [p.detach().clone() for p in state.model.parameters()]
    _train(state, 1, max_grad_norm=0.01, learning_rate=lambda step: 1.0)
    step = torch.cat([(a - b).flatten() for a, b in zip(state.model.parameters(), before, strict=True)])
    assert step.norm().item() == pytest.approx(0.01, rel=1e-4)
    assert state.curve[-1].grad_norm > 0.01


def test_points_are_logged_and_validated_on_their_steps() -> None:
    state, points = _new_state(), []
    _train(state, 5, log=points.append)
    assert [(p.step, p.valid_loss is not None) for p in points] == [(2, False), (4, True), (5, True)]
    assert points == state.curve
    assert isinstance(points[0], CurvePoint)


def test_validation_sees_the_averaged_weights() -> None:
    state, seen = _new_state(), []
    _train(state, 4, validate=lambda: seen.append(next(state.model.parameters()).detach().clone()) or 0.0)
    assert torch.equal(seen[-1], state.ema.average["0.weight"])
    assert not torch.equal(seen[-1], state.model[0].weight)


def test_checkpoints_keep_the_newest_two_and_restore_the_last(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    state = _new_state()
    assert not folder.restore(state)
    _train(state, 3, save_checkpoint=folder.save, checkpoint_every_steps=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000002", "step-000000003"]
    restored = _new_state()
    assert folder.restore(restored)
    assert restored.step == 3


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("file", ["train_state.safetensors", "train_state.json", "hashes.json"])
@pytest.mark.parametrize("damage", [_cut, _flip_a_bit, Path.unlink])
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_used(tmp_path: Path, caplog, file: str, damage) -> None:
    folder = CheckpointFolder(tmp_path)
    _train(_new_state(), 3, save_checkpoint=folder.save, checkpoint_every_steps=1)
    damage(tmp_path / "step-000000003" / file)
    restored, expected = _new_state(), _new_state()
    assert folder.restore(restored)
    assert "step-000000003 is damaged" in caplog.text
    _train(expected, 2)
    assert restored.step == 2
    assert all(torch.equal(a, b) for a, b in zip(_tensors(restored), _tensors(expected), strict=True))


@pytest.mark.parametrize(("every", "saved"), [(None, [9]), (4, [4, 8, 9]), (3, [3, 6, 9])])
def test_checkpoints_are_written_every_so_many_steps_and_at_the_end(every: int | None, saved: list[int]) -> None:
    seen: list[int] = []
    _train(_new_state(), 9, checkpoint_every_steps=every, save_checkpoint=lambda state: seen.append(state.step))
    assert seen == saved


def test_checkpoints_are_written_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that every step advances by a second."""
    now = iter(range(1000))
    monkeypatch.setattr("halfstep.training.loop.time.monotonic", lambda: next(now))
    seen: list[int] = []
    _train(_new_state(), 9, checkpoint_every_seconds=2.5, save_checkpoint=lambda state: seen.append(state.step))
    assert seen[-1] == 9
    assert 2 < len(seen) < 6


def test_the_gradient_is_that_of_the_mean_loss() -> None:
    """One step of plain SGD at rate 1 moves the weights by minus the gradient of sum / count."""
    state = _new_state()
    state.model[1].p = 0.0
    state.optimizer = torch.optim.SGD(state.model.parameters(), lr=0.0)
    x0 = next(_batch_at(0)).float()
    before = [p.detach().clone() for p in state.model.parameters()]
    expected = torch.autograd.grad((state.model(x0) - 1).square().mean(), list(state.model.parameters()))

    def loss(model, x0):
        return (model(x0.float()) - 1).square().sum(), len(x0)

    objective = Objective(lambda shape, generator: (), loss)
    _train(state, 1, objective=objective, max_grad_norm=1e9, learning_rate=lambda step: 1.0)
    for old, new, gradient in zip(before, state.model.parameters(), expected, strict=True):
        torch.testing.assert_close(old - new, gradient, atol=1e-6, rtol=1e-5)


def test_every_step_has_noise_of_its_own_and_the_same_in_every_run() -> None:
    def noise_of_a_run() -> list[float]:
        seen: list[float] = []

        def draw(shape, generator):
            seen.append(torch.rand((), generator=generator).item())
            return _draw(shape, generator)

        _train(_new_state(), 4, objective=Objective(draw, _loss))
        return seen

    first = noise_of_a_run()
    assert len(set(first)) == 4
    assert first == noise_of_a_run()
