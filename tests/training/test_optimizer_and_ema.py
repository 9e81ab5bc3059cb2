import pytest
import torch

from halfstep.training.ema import EMA
from halfstep.training.optimizer import learning_rate_at
from halfstep.training.parallel import compile_blocks


def _rate(step: int, schedule="constant") -> float:
    return learning_rate_at(step, peak=2.0, schedule=schedule, num_warmup_steps=4, num_train_steps=12)


def test_the_rate_rises_along_a_line_to_its_peak() -> None:
    assert [_rate(step) for step in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]


def test_after_the_warm_up_it_stays_or_falls_to_zero() -> None:
    assert _rate(100) == 2.0
    assert [_rate(step, "linear") for step in (4, 8, 12, 20)] == [2.0, 1.0, 0.0, 0.0]
    assert [_rate(step, "cosine") for step in (4, 8, 12)] == pytest.approx([2.0, 1.0, 0.0])


def _linear(value: float) -> torch.nn.Linear:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, value)
    return model


def test_the_average_follows_its_closed_form() -> None:
    """From 0 with weights held at 1, after n updates the average is 1 - the product of the decays."""
    model = _linear(0.0)
    ema = EMA(model, decay=0.5)
    torch.nn.init.constant_(model.weight, 1.0)
    remaining = 1.0
    for n in range(1, 30):
        ema.update(model)
        remaining *= min(0.5, (1 + n) / (10 + n))
        assert float(ema.average["weight"]) == pytest.approx(1 - remaining, rel=1e-5)


def test_averaged_weights_are_there_in_the_block_only_even_if_it_fails() -> None:
    model = _linear(0.0)
    ema = EMA(model, decay=0.9)
    torch.nn.init.constant_(model.weight, 1.0)

    def fail_with_average() -> None:
        with ema.applied(model):
            assert model.weight.item() == 0.0
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_with_average()
    assert model.weight.item() == 1.0


def test_an_average_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="another model"):
        EMA(_linear(0.0), 0.9).load({"other": torch.zeros(1)}, 3)


def test_only_the_repeated_blocks_are_compiled_and_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place, so that the names of weights in files stay as they are."""
    model = torch.nn.Module()
    model.blocks = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(2))
    model.head = torch.nn.Linear(2, 2)
    names, compiled = list(model.state_dict()), []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda block: compiled.append(block))
    compile_blocks(model)
    assert compiled == list(model.blocks)
    assert list(model.state_dict()) == names
