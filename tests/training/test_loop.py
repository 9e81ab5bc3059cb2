"""The loop on toy problems: what a step does, that a run cut off anywhere ends where it would have, and what it does
where a loss is not finite."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file

from halfstep.objectives.base import Objective
from halfstep.run.errors import Interrupted, UserError
from halfstep.settings import load_params
from halfstep.settings.training import PretrainSettings
from halfstep.training.checkpoint import CheckpointFolder
from halfstep.training.fit import check_skipped_steps
from halfstep.training.loop import Hooks, train
from halfstep.training.parallel import ModelLoss
from halfstep.training.stage import write_curve
from halfstep.training.state import CurvePoint, Trained, TrainState

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")
# A rate that differs from step to step and does not depend on how many there are.
SETTINGS = PARAMS.pretrain.model_copy(
    update={
        "learning_rate": 1.0, "num_warmup_steps": 1000, "adam_beta2": 0.99, "weight_decay": 0.01, "ema_decay": 0.9,
        "max_grad_norm": 1.0, "num_accumulation_steps": 1, "validate_every_steps": 4, "log_every_steps": 2,
        "checkpoint_every_seconds": 1e9, "on_nonfinite": "skip", "max_nonfinite_steps": 2,
    }
)  # fmt: skip
OF_THE_CRITIC = {"learning_rate": 3.0, "max_grad_norm": 0.1, "ema_decay": 0.5}


def _model(dropout: float = 0.0) -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(dropout), torch.nn.Linear(4, 1))


def _state(objective: Objective | None = None, dropout: float = 0.0) -> TrainState:
    networks = {"model": _model(dropout), **(objective.networks if objective else {})}
    of = objective.settings_of if objective else lambda name, settings: settings
    return TrainState({name: Trained.new(network, of(name, SETTINGS)) for name, network in networks.items()})


def _batch(step: int) -> torch.Tensor:
    return torch.randint(5, (4, 3), generator=torch.Generator().manual_seed(step))


def _draw(shape, generator):
    return (torch.rand(shape, generator=generator),)


def _loss(model, x0, noise):
    return (model(x0.float() + noise) - 1).square().sum(), len(x0)


NOISY = Objective(_draw, {"model": _loss})


def _without_noise(*broken_steps: int, gradient_only: bool = False) -> Objective:
    """An objective that is not finite at some steps, from 1, known by their batches."""
    broken = [_batch(step - 1) for step in broken_steps]

    def loss_of(model, x0):
        loss = (model(x0.float()) - 1).square().sum()
        if any(torch.equal(x0, other) for other in broken):
            # The root of zero is finite and its slope is not; what it is added to keeps a finite value.
            loss = loss + (model[2].bias * 0).sqrt().sum() if gradient_only else loss * float("nan")
        return loss, len(x0)

    return Objective(lambda shape, generator: (), {"model": loss_of})


def _with_critic(dropout: float = 0.0) -> Objective:
    """A critic that learns first, from what the model gives; the model's loss asks it, and leaves gradients there."""
    torch.manual_seed(2)
    critic = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Dropout(dropout), torch.nn.Linear(2, 1))

    def of_critic(critic, x0, noise):
        return (critic(x0[:, :1] + noise[:, :1]) - x0[:, 1:2]).square().sum(), len(x0)

    def of_model(model, x0, noise):
        return (critic(model(x0.float() + noise)) - 1).square().sum(), len(x0)

    losses = {"critic": of_critic, "model": of_model}
    return Objective(_draw, losses, {"critic": critic}, {"critic": OF_THE_CRITIC})


def _train(
    state: TrainState,
    num_train_steps: int,
    objective: Objective = NOISY,
    *,
    num_parts: int = 1,
    hooks: dict[str, Any] | None = None,
    **changes: Any,
) -> None:
    validate = {"validate": lambda: next(state.product.model.parameters()).sum().item()}
    train(
        state,
        {name: ModelLoss(network.model) for name, network in state.networks.items()},
        objective,
        _batch,
        SETTINGS.model_copy(update={"num_train_steps": num_train_steps, **changes}),
        Hooks(**{**validate, **(hooks or {})}),
        num_parts=num_parts,
        seed=3,
        accelerator=Accelerator(cpu=True),
    )


def _tensors(state: TrainState) -> list[torch.Tensor]:
    return [tensor.clone() for network in state.networks.values() for tensor in network.tensors().values()]


def _equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("make", [lambda: NOISY, lambda: _with_critic(dropout=0.2)])
def test_a_run_that_a_signal_stops_goes_on_as_the_run_that_never_stopped(
    make: Callable[[], Objective], tmp_path: Path
) -> None:
    objective = make()
    undisturbed = _state(objective, dropout=0.2)
    _train(undisturbed, 9, objective)

    def stop(step: int, loss: float) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    objective, checkpoints = make(), CheckpointFolder(tmp_path)
    hooks = {"progress": stop, "save_checkpoint": checkpoints.save}
    with pytest.raises(Interrupted, match="after step 5 of 9") as raised:
        _train(_state(objective, dropout=0.2), 9, objective, hooks=hooks)
    assert raised.value.signal_number == signal.SIGTERM
    objective = make()
    resumed = _state(objective, dropout=0.2)
    assert checkpoints.restore(resumed)
    _train(resumed, 9, objective)

    assert resumed.curve == undisturbed.curve
    assert resumed.step == resumed.optimizer_step == 9
    assert _equal(_tensors(resumed), _tensors(undisturbed))


def _by_hand(num_steps: int, skipped: set[int], objective: Objective | None = None) -> list[torch.Tensor]:
    """The same training in plain torch, with AdamW that is not fused: weights, and their averages, of all networks."""
    objective = objective or _without_noise()
    networks = {"model": _model(), **objective.networks}
    of = {name: objective.settings_of(name, SETTINGS) for name in networks}
    optimizers = {
        name: torch.optim.AdamW(network.parameters(), lr=0.0, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.01)
        for name, network in networks.items()
    }
    averages = {name: [p.detach().clone() for p in network.parameters()] for name, network in networks.items()}
    num_updates = 0
    for step in range(1, num_steps + 1):
        if step in skipped:
            continue
        num_updates += 1
        x0 = _batch(step - 1)
        drawn = objective.draw(x0.shape, torch.Generator().manual_seed(step))
        for name, loss_of in objective.losses.items():
            optimizers[name].param_groups[0]["lr"] = of[name].learning_rate * step / 1000
            optimizers[name].zero_grad()
            total, count = loss_of(networks[name], x0, *(torch.zeros_like(tensor) for tensor in drawn))
            (total / count).backward()
            torch.nn.utils.clip_grad_norm_(networks[name].parameters(), of[name].max_grad_norm)
            optimizers[name].step()
            decay = min(of[name].ema_decay, (1 + num_updates) / (10 + num_updates))
            for average, p in zip(averages[name], networks[name].parameters(), strict=True):
                average.copy_(decay * average + (1 - decay) * p.detach())
    return [tensor for name in networks for tensor in (*networks[name].parameters(), *averages[name])]


def _weights(state: TrainState) -> list[torch.Tensor]:
    return [t for n in state.networks.values() for t in (*n.model.parameters(), *n.ema.average.values())]


def test_a_run_is_the_one_computed_by_hand_without_its_skipped_steps() -> None:
    state = _state()
    _train(state, 6, _without_noise(2, 5))
    # The fused update rounds in another order; six updates of 1e-2 leave differences of a few times 1e-8.
    torch.testing.assert_close(_weights(state), _by_hand(6, {2, 5}), atol=1e-6, rtol=0)
    assert not torch.allclose(state.product.model[0].weight, _by_hand(6, set())[0], atol=1e-4)


def test_two_networks_are_trained_as_by_hand_each_with_its_optimizer_clip_and_average() -> None:
    """Without noise. The model's gradients in the critic are not the critic's."""
    silent = replace(_with_critic(), draw=lambda shape, generator: (torch.zeros(shape),))
    state = _state(silent)
    _train(state, 6, silent)
    by_hand = replace(_with_critic(), draw=lambda shape, generator: (torch.zeros(shape),))
    torch.testing.assert_close(_weights(state), _by_hand(6, set(), by_hand), atol=1e-6, rtol=0)


def test_the_curve_shows_the_product_and_the_checkpoint_names_its_tensors_as_without_others(tmp_path: Path) -> None:
    objective = _with_critic()
    state, alone = _state(objective), _state()
    _train(state, 2, objective)
    _train(alone, 2)
    (point,) = state.curve
    assert point.learning_rate == 2 / 1000
    tensors = state._tensors()
    assert set(alone._tensors()) == {name for name in tensors if not name.startswith("networks.critic.")}
    assert {"networks.critic.model.0.weight", "networks.critic.exp_avg.2.bias"} < set(tensors)


def test_a_loss_without_its_network_is_refused() -> None:
    with pytest.raises(ValueError, match="losses of"):
        Objective(_draw, {"model": _loss, "critic": _loss})


def test_a_stop_between_the_updates_of_a_step_keeps_the_checkpoint_before_it() -> None:
    objective = _with_critic()
    losses = {**objective.losses, "model": lambda model, x0, noise: (model(x0.float()).sum() * float("nan"), len(x0))}
    objective, saved = replace(objective, losses=losses), []
    hooks = {"save_checkpoint": lambda state: saved.append(state.step)}
    with pytest.raises(UserError, match="step 1: the loss is nan"):
        _train(_state(objective), 2, objective, hooks=hooks, on_nonfinite="stop")
    assert saved == []


def test_what_is_frozen_is_in_no_state_and_in_no_average(tmp_path: Path) -> None:
    def new() -> TrainState:
        model = _model()
        model[0].requires_grad_(False)
        return TrainState({"model": Trained.new(model, SETTINGS)})

    state, restored = new(), new()
    _train(state, 3)
    state.save(tmp_path)
    restored.load(tmp_path)
    assert _equal(_tensors(restored), _tensors(state))
    assert torch.equal(state.product.model[0].weight, _model()[0].weight)
    groups = ("model", "ema", "exp_avg", "exp_avg_sq", "step")
    expected = {f"{group}.2.{name}" for group in groups for name in ("weight", "bias")}
    assert load_file(tmp_path / "train_state.safetensors").keys() == expected
    with state.product.ema.applied(state.product.model):
        assert torch.equal(state.product.model[0].weight, _model()[0].weight)


@pytest.mark.parametrize("num_parts", [2, 4])
def test_accumulation_gives_the_gradient_of_the_whole_batch(num_parts: int) -> None:
    at_once, in_parts = _state(), _state()
    _train(at_once, 3)
    _train(in_parts, 3, num_parts=num_parts)
    torch.testing.assert_close(_weights(in_parts), _weights(at_once), atol=1e-6, rtol=1e-5)


def test_gradients_are_clipped_to_their_norm() -> None:
    """With plain SGD the step's length is the learning rate times the clipped norm."""
    state = _state()
    model = state.product.model
    state.product.optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    before = [p.detach().clone() for p in model.parameters()]
    _train(state, 1, max_grad_norm=0.01, num_warmup_steps=0)
    step = torch.cat([(a - b).flatten() for a, b in zip(model.parameters(), before, strict=True)])
    assert step.norm().item() == pytest.approx(0.01, rel=1e-4)
    assert state.curve[-1].grad_norm > 0.01


def test_the_gradient_is_that_of_the_mean_loss() -> None:
    """One step of plain SGD at rate 1 moves the weights by minus the gradient of sum / count."""
    state = _state()
    model = state.product.model
    state.product.optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    before = [p.detach().clone() for p in model.parameters()]
    expected = torch.autograd.grad((model(_batch(0).float()) - 1).square().mean(), list(model.parameters()))
    _train(state, 1, _without_noise(), max_grad_norm=1e9, num_warmup_steps=0)
    for old, new, gradient in zip(before, model.parameters(), expected, strict=True):
        torch.testing.assert_close(old - new, gradient, atol=1e-6, rtol=1e-5)


def test_points_are_logged_and_validated_on_their_steps() -> None:
    state, points = _state(), []
    _train(state, 5, hooks={"log": points.append})
    assert [(p.step, p.valid_loss is not None) for p in points] == [(2, False), (4, True), (5, True)]
    assert points == state.curve
    assert isinstance(points[0], CurvePoint)


def test_validation_sees_the_averaged_weights() -> None:
    state, seen = _state(), []
    weight = state.product.model[0].weight
    _train(state, 4, hooks={"validate": lambda: seen.append(weight.detach().clone()) or 0.0})
    assert torch.equal(seen[-1], state.product.ema.average["0.weight"])
    assert not torch.equal(seen[-1], weight)


def test_checkpoints_keep_the_newest_two_and_restore_the_last(tmp_path: Path) -> None:
    folder, state = CheckpointFolder(tmp_path), _state()
    assert not folder.restore(state)
    _train(state, 3, hooks={"save_checkpoint": folder.save}, checkpoint_every_steps=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000002", "step-000000003"]
    restored = _state()
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
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(tmp_path: Path, caplog, file: str, damage) -> None:
    folder = CheckpointFolder(tmp_path)
    _train(_state(), 3, hooks={"save_checkpoint": folder.save}, checkpoint_every_steps=1)
    damage(tmp_path / "step-000000003" / file)
    restored, expected = _state(), _state()
    assert folder.restore(restored)
    assert "step-000000003 is damaged" in caplog.text
    _train(expected, 2)
    assert restored.step == 2
    assert _equal(_tensors(restored), _tensors(expected))


@pytest.mark.parametrize(("every", "saved"), [(None, [9]), (4, [4, 8, 9]), (3, [3, 6, 9])])
def test_checkpoints_are_written_every_so_many_steps_and_at_the_end(every: int | None, saved: list[int]) -> None:
    seen: list[int] = []
    hooks = {"save_checkpoint": lambda state: seen.append(state.step)}
    _train(_state(), 9, checkpoint_every_steps=every, hooks=hooks)
    assert seen == saved


def test_checkpoints_are_written_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that every step advances by a second."""
    now = iter(range(1000))
    monkeypatch.setattr("halfstep.training.loop.time.monotonic", lambda: next(now))
    seen: list[int] = []
    hooks = {"save_checkpoint": lambda state: seen.append(state.step)}
    _train(_state(), 9, checkpoint_every_seconds=2.5, hooks=hooks)
    assert seen[-1] == 9
    assert 2 < len(seen) < 6


def test_every_step_has_noise_of_its_own_and_the_same_in_every_run() -> None:
    def noise_of_a_run() -> list[float]:
        seen: list[float] = []

        def draw(shape, generator):
            seen.append(torch.rand((), generator=generator).item())
            return _draw(shape, generator)

        _train(_state(), 4, replace(NOISY, draw=draw))
        return seen

    first = noise_of_a_run()
    assert len(set(first)) == 4
    assert first == noise_of_a_run()


@pytest.mark.parametrize("gradient_only", [False, True])
def test_a_skipped_step_leaves_weights_moments_and_average_as_they_were(gradient_only: bool) -> None:
    state = _state()
    _train(state, 2, _without_noise())
    before = _tensors(state)
    _train(state, 3, _without_noise(3, gradient_only=gradient_only))
    assert _equal(_tensors(state), before)
    assert (state.step, state.optimizer_step, state.num_skipped_steps) == (3, 3, 1)
    assert all(p.grad is None for p in state.product.model.parameters())


def test_the_curve_counts_skipped_steps_and_has_no_numbers_for_them(tmp_path: Path) -> None:
    state, logged = _state(), []
    _train(state, 3, _without_noise(3), hooks={"log": logged.append}, log_every_steps=1)
    assert [point.num_skipped_steps for point in state.curve] == [0, 0, 1]
    assert [point.loss is None for point in state.curve] == [False, False, True]
    assert [point.grad_norm is None for point in state.curve] == [False, False, True]
    assert logged == state.curve
    state.curve[2].valid_loss = None
    write_curve(state.curve, tmp_path / "0.csv")
    header, *rows = (tmp_path / "0.csv").read_text().splitlines()
    assert header == "step,loss,learning_rate,grad_norm,valid_loss,num_skipped_steps"
    assert rows[2] == "3,,0.003,,,1"


def test_the_count_is_saved_and_restored_and_may_not_be_missing(tmp_path: Path) -> None:
    state = _state()
    _train(state, 3, _without_noise(2))
    state.save(tmp_path)
    restored = _state()
    restored.load(tmp_path)
    assert restored.num_skipped_steps == 1
    assert restored.curve == state.curve
    # The bound is the whole run's: one more is allowed after the restoration, and no second one.
    _train(restored, 4, _without_noise(4))
    with pytest.raises(UserError, match="after max_nonfinite_steps 2 were skipped"):
        _train(restored, 5, _without_noise(5))
    values = json.loads((tmp_path / "train_state.json").read_text())
    del values["num_skipped_steps"]
    (tmp_path / "train_state.json").write_text(json.dumps(values))
    with pytest.raises(KeyError, match="num_skipped_steps"):
        _state().load(tmp_path)


@pytest.mark.parametrize(("policy", "bound"), [("stop", 2), ("skip", 0)])
def test_a_run_that_may_not_skip_stops_before_the_update_and_repeats_the_step(
    policy: str, bound: int, tmp_path: Path
) -> None:
    state, folder = _state(), CheckpointFolder(tmp_path)
    _train(state, 1, _without_noise())
    before, changes = _tensors(state), {"on_nonfinite": policy, "max_nonfinite_steps": bound}
    line = r"step 2: the loss is nan .*the same command repeats the step.*learning_rate"
    with pytest.raises(UserError, match=line) as raised:
        _train(state, 3, _without_noise(2), hooks={"save_checkpoint": folder.save}, **changes)
    assert "\n" not in str(raised.value)
    assert str(raised.value).endswith("on_nonfinite=skip" if policy == "stop" else "max_nonfinite_steps=1")
    assert _equal(_tensors(state), before)
    again = _state()
    assert folder.restore(again)
    assert (again.step, again.num_skipped_steps) == (1, 0)
    assert _equal(_tensors(again), before)
    with pytest.raises(UserError, match="step 2"):
        _train(again, 3, _without_noise(2), **changes)


def test_a_validation_that_is_not_finite_stops_the_run() -> None:
    hooks = {"validate": lambda: float("nan")}
    with pytest.raises(UserError, match="step 2: the validation loss of the averaged weights is nan"):
        _train(_state(), 4, hooks=hooks, validate_every_steps=2)


def test_a_checkpoint_without_room_does_not_hide_the_fault() -> None:
    def full(state: TrainState) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="step 1: the loss is nan"):
        _train(_state(), 2, _without_noise(1), on_nonfinite="stop", hooks={"save_checkpoint": full})


def _settings(**changes: Any) -> PretrainSettings:
    values = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8"))
    return PretrainSettings.model_validate(values["pretrain"] | changes)


def test_another_policy_goes_on_from_the_same_checkpoint_and_another_rate_does_not() -> None:
    def deciding(**changes: Any) -> dict[str, Any]:
        return PARAMS.model_copy(update={"pretrain": _settings(**changes)}).deciding("seed", "pretrain")

    assert deciding() == deciding(on_nonfinite="skip") == deciding(max_nonfinite_steps=3)
    assert deciding() == deciding(checkpoint_every_seconds=3.0) == deciding(checkpoint_every_steps=3)
    assert deciding() != deciding(learning_rate=1e-9)


def test_skipped_steps_are_not_taken_over_by_a_policy_that_forbids_them() -> None:
    state = _state()
    state.num_skipped_steps = 2
    check_skipped_steps(state, _settings(on_nonfinite="skip", max_nonfinite_steps=2), Path("F"))
    for changes in ({"on_nonfinite": "stop"}, {"on_nonfinite": "skip", "max_nonfinite_steps": 1}):
        with pytest.raises(UserError, match="F: the run was cut off after 2 skipped steps"):
            check_skipped_steps(state, _settings(**changes), Path("F"))
