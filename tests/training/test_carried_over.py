"""The training state that a round takes over: whole, or an error of one line."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from halfstep.run.errors import UserError
from halfstep.run.files import read_json, write_json
from halfstep.training.ema import EMA
from halfstep.training.fit import CarriedOver, carry_over, load_raw_weights
from halfstep.training.optimizer import build_optimizer
from halfstep.training.state import TENSORS_FILE, VALUES_FILE, Trained, TrainState


def new_network() -> Trained:
    model = torch.nn.Linear(3, 2)
    optimizer = build_optimizer(model, betas=(0.9, 0.99), epsilon=1e-8, weight_decay=0.0)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return Trained(model, optimizer, EMA(model, 0.9))


def new_state(seed: int) -> TrainState:
    torch.manual_seed(seed)
    return TrainState({"model": new_network(), "critic": new_network()}, optimizer_step=seed)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    new_state(7).save(tmp_path)
    return tmp_path


@pytest.mark.parametrize("optimizer", [True, False])
@pytest.mark.parametrize("ema", [True, False])
def test_what_is_asked_for_is_taken_over_and_nothing_else(folder: Path, optimizer: bool, ema: bool) -> None:
    before, state, after = new_state(7), new_state(8), new_state(8)
    carry_over(after, CarriedOver(folder, optimizer=optimizer, ema=ema))
    assert after.optimizer_step == (7 if optimizer else 8)
    for name, network in after.networks.items():
        for key, expected in (before if ema else state).networks[name].ema.average.items():
            assert torch.equal(network.ema.average[key], expected)
        expected = (before if optimizer else state).networks[name].tensors()["exp_avg.weight"]
        assert torch.equal(network.tensors()["exp_avg.weight"], expected)
        assert torch.equal(network.model.weight, state.networks[name].model.weight)
        load_raw_weights(network.model, folder, name)
        assert torch.equal(network.model.weight, before.networks[name].model.weight)


def _cut(folder: Path) -> None:
    file = folder / TENSORS_FILE
    file.write_bytes(file.read_bytes()[:-4])


def _reshape(folder: Path, name: str = "model.bias") -> None:
    tensors = load_file(folder / TENSORS_FILE)
    save_file({**tensors, name: tensors[name][:1].clone()}, folder / TENSORS_FILE)


def _without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / TENSORS_FILE)
    save_file({name: tensor for name, tensor in tensors.items() if not name.endswith("bias")}, folder / TENSORS_FILE)


def _pickle(folder: Path) -> None:
    torch.save({"model.weight": torch.ones(2, 3)}, folder / TENSORS_FILE)


@pytest.mark.parametrize(
    "harm", [_cut, _reshape, _without_a_tensor, _pickle, lambda folder: (folder / TENSORS_FILE).unlink()]
)
def test_a_broken_state_is_one_line(folder: Path, harm: Callable[[Path], None]) -> None:
    harm(folder)
    with pytest.raises(UserError, match=r"dvc repro.*next_teacher=ema") as raised:
        load_raw_weights(new_state(8).product.model, folder)
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


def _without_the_count(folder: Path) -> None:
    values = read_json(folder / VALUES_FILE)
    del values["ema_num_updates"]
    write_json(folder / VALUES_FILE, values)


@pytest.mark.parametrize(
    "harm",
    [
        *(lambda folder, text=text: (folder / VALUES_FILE).write_text(text) for text in ("[]", "{}", "{", "null")),
        # One row would be spread over all.
        *(lambda folder, name=name: _reshape(folder, name) for name in ("ema.weight", "exp_avg.weight")),
        _without_the_count,
    ],
)
def test_a_broken_state_is_not_taken_over(folder: Path, harm: Callable[[Path], None]) -> None:
    harm(folder)
    with pytest.raises(UserError, match=r"the training state in .* is broken"):
        carry_over(new_state(8), CarriedOver(folder, optimizer=True, ema=True))
