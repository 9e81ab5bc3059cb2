"""Any `MaskedModel` will do: given the time and a latent, without a bias, its mask anywhere, some ids excluded."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.model.base import MaskedModel
from halfstep.objectives.nelbo import nelbo_objective
from halfstep.samplers.ancestral import Ancestral, sample, unmask_steps
from halfstep.samplers.base import Uniforms, fill
from halfstep.samplers.confidence import Confidence

MASK, EXCLUDED, VOCAB, LENGTH = 2, (0, 5), 7, 6


@dataclass(frozen=True)
class Config:
    vocab_size: int = VOCAB
    mask_token_id: int = MASK
    length: int = LENGTH
    noise_epsilon: float = 1e-3
    num_blocks: int = 1


class Toy(nn.Module):
    """Logits are sums of columns of the projection, which a latent chooses; it keeps the times it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Config()
        self.weight = nn.Parameter(torch.randn(VOCAB, 4, generator=torch.Generator().manual_seed(0)))
        self.times: list[Tensor] = []

    def hidden_at(self, xt: Tensor, at: Tensor, *, t: Tensor | None = None, latent: Tensor | None = None) -> Tensor:
        assert t is not None
        self.times.append(t)
        rows = at.nonzero()[:, 0]
        return torch.ones(len(rows), 4) if latent is None else latent[rows]

    def projection(self) -> tuple[Tensor, Tensor]:
        return self.weight, torch.zeros(VOCAB).index_fill(0, torch.tensor(EXCLUDED), -torch.inf)


def test_ids_that_are_excluded_are_never_drawn_nor_is_a_mask_in_mid_vocabulary() -> None:
    model = Toy()
    assert isinstance(model, MaskedModel)
    x_init = torch.full((200, LENGTH), MASK)
    u_time, u_token = Uniforms(0, range(200), LENGTH).first
    drawn = sample(model, x_init, num_steps=3, mask_token_id=MASK, u_time=u_time, u_token=u_token).tokens
    surest = fill(model, x_init, Confidence(MASK, 0.9), mask_token_id=MASK, u_token=u_token).tokens
    allowed = {*range(VOCAB)} - {MASK, *EXCLUDED}
    assert set(drawn.flatten().tolist()) == set(surest.flatten().tolist()) == allowed


def test_a_model_is_told_the_time_at_which_a_step_begins() -> None:
    model = Toy()
    x_init = torch.full((1, LENGTH), MASK)
    u_time = torch.tensor([[0.9, 0.8, 0.6, 0.4, 0.3, 0.1]], dtype=torch.float64)
    sample(model, x_init, num_steps=4, mask_token_id=MASK, u_time=u_time, u_token=u_time)
    assert [t.tolist() for t in model.times] == [[1.0], [0.75], [0.5], [0.25]]
    model.times.clear()
    fill(model, x_init, Confidence(MASK, 2.0), mask_token_id=MASK, u_token=u_time)
    assert torch.cat(model.times).tolist() == [n / 6 for n in (6, 5, 4, 3, 2, 1)]


def test_a_latent_is_shared_by_the_positions_of_its_sequence_only() -> None:
    """Two sequences whose latents point to one token each: nothing else is likely."""
    model = Toy()
    with torch.no_grad():
        model.weight.copy_(torch.eye(VOCAB)[:, [1, 3, 4, 6]] * 100)
    x_init = torch.full((2, LENGTH), MASK)
    u_time, u_token = Uniforms(0, range(2), LENGTH).first
    policy = Ancestral(MASK, unmask_steps(u_time, 3), 3, u_time)
    latent = torch.eye(4)[[3, 0]]
    tokens = fill(model, x_init, policy, mask_token_id=MASK, u_token=u_token, latent=lambda step: latent).tokens
    assert tokens.tolist() == [[6] * LENGTH, [1] * LENGTH]


def test_the_loss_is_that_of_the_softmax_over_the_ids_that_are_left_and_has_their_gradient() -> None:
    model = Toy()
    x0 = torch.tensor([[1, 3, 4, 6, 1, 3]])
    objective = nelbo_objective(schedule=LogLinearSchedule(1e-3), min_time=1e-3, mask_token_id=MASK)
    t, u_mask = torch.tensor([0.5], dtype=torch.float64), torch.zeros(1, LENGTH, dtype=torch.float64)
    u_mask[0, 3:] = 1.0
    total, num_terms = objective.loss(model, x0, t, u_mask)
    (gradient,) = torch.autograd.grad(total, model.weight)
    ids = [1, 3, 4, 6]
    log_p = (model.weight[ids].sum(dim=1)).log_softmax(dim=0)
    expected = -2 * sum(log_p[ids.index(token)] for token in (6, 1, 3))
    torch.testing.assert_close(total, expected.float(), rtol=1e-5, atol=0)
    assert num_terms == LENGTH
    (slow,) = torch.autograd.grad(expected, model.weight)
    torch.testing.assert_close(gradient, slow, rtol=1e-5, atol=1e-6)
