"""The joint head against enumeration, its two ways of computing against each other, and its files."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from halfstep.diffusion.subs import exclude_mask
from halfstep.model.base import MaskedModel
from halfstep.model.config import DenoiserConfig
from halfstep.model.denoiser import Denoiser
from halfstep.model.joint import Arrangement, Cache, JointHeadConfig, JointModel, Order
from halfstep.model.opening import open_model
from halfstep.run.errors import UserError
from halfstep.tools.export import export_denoiser

VOCAB, MASK, LENGTH = 4, 3, 5


def joint_model(order: Order = "sampler", num_layers: int = 2, *, trained: bool = True) -> JointModel:
    """One whose head lets tokens depend on each other."""
    torch.manual_seed(3)
    denoiser = Denoiser(DenoiserConfig(VOCAB, MASK, LENGTH, 16, 2, 2, 8, 0.0, 1e-3))
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model = JointModel.untrained(denoiser, JointHeadConfig(8, num_layers, 2, order))
    if trained:
        torch.nn.init.normal_(model.joint_head.out.weight, std=0.5)
    return model.eval().requires_grad_(False)


def log_probs(model: JointModel, hidden: Tensor) -> Tensor:
    """float64 [..., vocab] of hidden states."""
    weight, bias = model.projection()
    return (hidden @ weight.T + exclude_mask(bias, MASK)).double().log_softmax(dim=-1)


def conditionals(model: JointModel, xt: Tensor, x: Tensor, priority: Tensor) -> Tensor:
    """Log-probability of each masked token of x given those before it in the order, [b, n], 0 beyond."""
    at = xt == MASK
    arrangement = model.arrange(at, priority)
    tokens = x.gather(1, arrangement.columns)
    hidden = model.conditional(model.hidden_at(xt, at), tokens, arrangement)
    found = log_probs(model, hidden).gather(2, tokens[..., None])[..., 0]
    return found.masked_fill(~arrangement.is_in, 0)


@pytest.mark.parametrize("order", ["sampler", "left_to_right"])
@pytest.mark.parametrize("xt", [(3, 3, 3), (3, 1, 3, 0, 3), (1, 3, 3, 3, 2)])
def test_the_likelihood_of_a_set_of_tokens_sums_to_one_over_all_completions(xt: tuple[int, ...], order: Order) -> None:
    model = joint_model(order)
    places = [place for place, token in enumerate(xt) if token == MASK]
    completions = []
    for tokens in itertools.product(range(VOCAB - 1), repeat=len(places)):
        filled = list(xt)
        for place, token in zip(places, tokens, strict=True):
            filled[place] = token
        completions.append(filled)
    x = torch.tensor(completions)
    given = torch.tensor([xt]).expand(len(x), -1)
    priority = torch.rand(len(xt), generator=torch.Generator().manual_seed(1)).expand(len(x), -1)
    total = conditionals(model, given, x, priority).sum(dim=1).exp()
    assert total.sum().item() == pytest.approx(1, abs=1e-6)
    assert total.std() > 1e-3, "all completions are as likely: nothing is tested"


def test_an_untrained_head_is_the_factorised_model_and_a_single_token_is_always_the_trunks() -> None:
    xt = torch.tensor([[MASK, 1, MASK, MASK, 0]])
    priority, at = torch.rand(1, LENGTH), xt == MASK
    for trained in (False, True):
        model = joint_model(trained=trained)
        hidden = model.hidden_at(xt, at)
        arrangement = model.arrange(at, priority)
        after = arrangement.row_major(model.conditional(hidden, torch.tensor([[0, 1, 2]]), arrangement))
        first = arrangement.rows[0, 0]
        assert torch.equal(after[first], hidden[first])
        assert torch.equal(after, hidden) is not trained


@pytest.mark.parametrize("num_places", [0, 1])
def test_where_a_set_has_no_second_token_nothing_is_corrected_and_every_weight_has_a_gradient(num_places: int) -> None:
    """Of several processes each computes the head, whatever its rows hold: they add up their gradients."""
    head = joint_model().joint_head.requires_grad_(True)
    hidden, tokens = torch.randn(2, 3, num_places, 16, generator=torch.Generator().manual_seed(0))
    correction = head(hidden, tokens, torch.zeros(3, num_places, dtype=torch.int64))
    assert correction.shape == hidden.shape
    assert not correction.any()
    correction.sum().backward()
    assert all(not parameter.grad.any() for parameter in head.parameters() if parameter.grad is not None)
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_a_position_knows_the_tokens_before_it_in_the_order_and_no_others() -> None:
    model, xt = joint_model(), torch.full((1, LENGTH), MASK)
    priority = torch.tensor([[0.3, 0.9, 0.1, 0.5, 0.7]])  # the order is 1, 4, 3, 0, 2
    order = [1, 4, 3, 0, 2]
    before = conditionals_of_all(model, xt, torch.zeros(1, LENGTH, dtype=torch.int64), priority)
    for number, place in enumerate(order):
        x = torch.zeros(1, LENGTH, dtype=torch.int64)
        x[0, place] = 2
        changed = (conditionals_of_all(model, xt, x, priority) - before).abs().amax(dim=-1)[0] > 1e-6
        assert changed.tolist() == [other > number for other in range(LENGTH)]


def conditionals_of_all(model: JointModel, xt: Tensor, x: Tensor, priority: Tensor) -> Tensor:
    """Distributions in the order, [b, n, vocab]."""
    at = xt == MASK
    arrangement = model.arrange(at, priority)
    tokens = x.gather(1, arrangement.columns)
    return log_probs(model, model.conditional(model.hidden_at(xt, at), tokens, arrangement)).exp()


@pytest.mark.parametrize("num_layers", [1, 3])
def test_one_place_at_a_time_with_a_cache_is_all_at_once(num_layers: int) -> None:
    model = joint_model(num_layers=num_layers)
    generator = torch.Generator().manual_seed(0)
    hidden, tokens = torch.randn(2, 2, LENGTH, 16, generator=generator)
    positions = torch.stack([torch.randperm(9, generator=generator)[:LENGTH] for _ in range(2)])
    head, cache = model.joint_head, Cache()
    slow = [torch.zeros(2, 1, 16)]
    for place in range(1, LENGTH):
        now, last = slice(place, place + 1), slice(place - 1, place)
        before = hidden[:, last], tokens[:, last], positions[:, last]
        slow.append(head.next(hidden[:, now], positions[:, now], before, cache))
    assert torch.allclose(torch.cat(slow, dim=1), head(hidden, tokens, positions), atol=1e-5)


def test_contents_learn_of_each_other_in_all_layers_but_the_last() -> None:
    layers = joint_model(num_layers=3).joint_head.layers
    assert [layer.is_last for layer in layers] == [False, False, True]
    generator = torch.Generator().manual_seed(0)
    query, content = torch.randn(2, 1, 4, 8, generator=generator)
    still = torch.ones(1, 1, 4, 2), torch.zeros(1, 1, 4, 2)
    other = content.clone()
    other[:, 1] = -content[:, 1]
    for layer in layers:
        (_, found), (_, of_other) = (layer(query, each, still, still) for each in (content, other))
        changes = ((found - of_other).abs() > 1e-6).any(dim=2)[0]
        # That of a place changes with the places before it.
        assert changes.tolist() == ([False, True, False, False] if layer.is_last else [False, True, True, True])


def test_a_sequence_does_not_depend_on_those_beside_it() -> None:
    model = joint_model()
    xt = torch.tensor([[MASK, MASK, 0, 1, 2], [MASK] * LENGTH, [0, 1, 2, 0, 1]])
    x, priority = torch.tensor([[0, 1, 0, 1, 2], [2, 1, 0, 1, 2], [0, 1, 2, 0, 1]]), torch.rand(3, LENGTH)
    together = conditionals(model, xt, x, priority)
    for row in range(3):
        alone = conditionals(model, xt[row : row + 1], x[row : row + 1], priority[row : row + 1])
        assert torch.allclose(alone[0], together[row, : alone.shape[1]], atol=1e-6)
    assert together[2].tolist() == [0] * LENGTH


def test_positions_are_arranged_by_priority_and_found_again() -> None:
    at = torch.tensor([[True, False, True, True], [False, False, True, False]])
    arrangement = Arrangement.of(at, torch.tensor([[0.1, 9.0, 0.5, 0.5], [1.0, 2.0, 3.0, 4.0]]))
    assert arrangement.columns.tolist() == [[2, 3, 0], [2, 0, 0]]
    assert arrangement.rows.tolist() == [[1, 2, 0], [3, 0, 0]]
    assert arrangement.is_in.tolist() == [[True, True, True], [True, False, False]]
    assert arrangement.row_major(arrangement.columns).tolist() == [0, 2, 3, 2]


def test_a_folder_holds_the_trunk_as_ever_and_the_head_beside_it(tmp_path: Path) -> None:
    model = joint_model("left_to_right")
    for name, what in (("with", model), ("without", model.trunk)):
        (tmp_path / name).mkdir()
        what.save_pretrained(tmp_path / name)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
    opened = open_model(tmp_path / "with")
    assert isinstance(opened, JointModel)
    assert isinstance(opened, MaskedModel)
    assert opened.joint_head.config == model.joint_head.config
    assert opened.relative_depth == 1.0
    for name, tensor in model.state_dict().items():
        assert torch.equal(opened.state_dict()[name], tensor)
    assert isinstance(open_model(tmp_path / "without"), Denoiser)


def test_export_takes_the_head_along(tmp_path: Path) -> None:
    model = joint_model()
    (tmp_path / "model").mkdir()
    model.save_pretrained(tmp_path / "model")
    export_denoiser(tmp_path / "model", tmp_path / "out", "mdlm")
    opened = open_model(tmp_path / "out")
    for name, tensor in model.state_dict().items():
        assert torch.equal(opened.state_dict()[name], tensor)  # type: ignore[union-attr]


def _without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "joint_head.safetensors")
    del tensors["out.bias"]
    save_file(tensors, folder / "joint_head.safetensors")


def _config(folder: Path, **changes: object) -> None:
    path = folder / "joint_head.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (_without_a_tensor, r"joint_head.safetensors lacks the tensors out.bias"),
        (
            lambda folder: (folder / "joint_head.safetensors").write_bytes(b"{}"),
            "joint_head.safetensors cannot be read",
        ),
        (lambda folder: (folder / "joint_head.safetensors").unlink(), "joint_head.safetensors cannot be read"),
        (lambda folder: (folder / "joint_head.json").write_text("{"), "joint_head.json cannot be read as JSON"),
        (lambda folder: _config(folder, order="any"), "order is 'any', which no joint head has"),
        (lambda folder: _config(folder, num_heads=3), "num_heads is 3, which no joint head has"),
        (lambda folder: _config(folder, num_heads=-1), "num_heads is -1, which no joint head has"),
        (lambda folder: _config(folder, num_layers=True), "num_layers is True, which no joint head has"),
        (lambda folder: _config(folder, num_layers=3), "lacks the tensors layers.2"),
        (lambda folder: _config(folder, hidden_size=4), r"shape \(8, 16\), but its configuration asks for \(4, 16\)"),
        (lambda folder: _config(folder, causal=True), "is not the configuration of a joint head"),
    ],
)
def test_a_broken_head_is_one_line(fault, message: str, tmp_path: Path) -> None:
    joint_model().save_pretrained(tmp_path)
    fault(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        open_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_pass_costs_the_heads_layers_over_the_trunks() -> None:
    assert math.isclose(joint_model(num_layers=1).relative_depth, 0.5)
