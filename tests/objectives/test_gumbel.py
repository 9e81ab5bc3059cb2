"""Noise behind texts: its distribution, the loss against one that forms everything, and what a student does with it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.objectives.test_rivals import SCHEDULE, gradients, some_denoiser
from torch import Tensor, nn
from torch.nn import functional as F

from halfstep.diffusion.nelbo import nelbo_weight
from halfstep.diffusion.noise import mask_tokens_at
from halfstep.diffusion.subs import masked_log_probs
from halfstep.model.denoiser import Denoiser
from halfstep.model.gpt2 import new_gpt2
from halfstep.model.layouts import config_values
from halfstep.model.noise import SCALE, exponentials
from halfstep.objectives import gumbel
from halfstep.objectives.gumbel import noise_of_texts, posterior
from halfstep.objectives.nelbo import nelbo_objective
from halfstep.run.errors import UserError
from halfstep.samplers.base import Uniforms
from halfstep.samplers.sampler import Sampler

VOCAB, MASK, LENGTH = 4, 3, 3
CPU = torch.device("cpu")


def some_student(seed: int) -> Denoiser:
    student = some_denoiser(seed).with_noise()
    for parameter in student.parameters():
        nn.init.normal_(parameter, std=0.5)
    assert student.noise_embed is not None
    nn.init.normal_(student.noise_embed.weight, std=0.5 / SCALE)
    return student


def some_autoregressive(fills_in: bool) -> nn.Module:
    torch.manual_seed(5)
    sizes = {"hidden_size": 8, "num_blocks": 1, "num_heads": 2, "dropout": 0.0}
    model = new_gpt2(vocab_size=VOCAB, length=LENGTH, fills_in=fills_in, **sizes)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=1.0)
    return model.eval()


def test_the_noise_behind_a_token_makes_it_the_first_and_is_distributed_as_that_which_does() -> None:
    """Against noise of which only what makes the token first is kept: means within 6 standard errors of either."""
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    number = torch.tensor(0.3, dtype=torch.float64)
    drawn = exponentials(number, 200_000, 5, CPU)
    any_noise = exponentials(number / 2, 800_000, 4, CPU)
    for token in range(4):
        found = posterior(p.expand(len(drawn), 4), torch.full((len(drawn),), token), drawn)
        assert torch.equal((found / p).argmin(dim=1), torch.full((len(drawn),), token))
        kept = any_noise[(any_noise / p).argmin(dim=1) == token]
        # Means, second moments and products: 14 numbers for each token; one of them is off once in 10^7 runs.
        one, other = (torch.cat([x, (x[:, :, None] * x[:, None]).flatten(1)], dim=1) for x in (found, kept))
        error = (one.var(dim=0) / len(one) + other.var(dim=0) / len(other)).sqrt()
        assert ((one.mean(dim=0) - other.mean(dim=0)).abs() < 6 * error).all()


def test_over_tokens_of_the_model_the_noise_is_a_priori_noise() -> None:
    """Exponential and independent: means and second moments within 6 standard errors, off once in 10^7 runs."""
    p = torch.tensor([0.6, 0.3, 0.1])
    tokens = torch.multinomial(p, 400_000, replacement=True, generator=torch.Generator().manual_seed(0))
    found = posterior(p.expand(len(tokens), 3), tokens, exponentials(torch.tensor(0.7), len(tokens), 4, CPU))
    products = found[:, :, None] * found[:, None]
    assert ((found.mean(dim=0) - 1).abs() < 6 / len(tokens) ** 0.5).all()
    error = products.var(dim=0).sqrt() / len(tokens) ** 0.5
    assert ((products.mean(dim=0) - 1 - torch.eye(3)).abs() < 6 * error).all()


def reference(student: Denoiser, model: nn.Module, x0: Tensor, drawn: tuple[Tensor, ...], fills_in: bool) -> Tensor:
    """The loss as its formula has it, a position at a time, in noise and not in its exponential."""
    assert student.noise_embed is not None
    t, u_mask, u = drawn
    total = torch.zeros(())
    for b in range(len(x0)):
        xt = mask_tokens_at(x0[b : b + 1], SCHEDULE.alpha(t[b : b + 1]), MASK, u_mask[b : b + 1])[0]
        at = (xt == MASK).nonzero()[:, 0].tolist()
        z = -exponentials(u[b, 0], len(at), VOCAB + 1, CPU).log()
        x = student.vocab_embed(xt).detach().clone().requires_grad_()
        embedded = [student.vocab_embed(xt)[i] for i in range(LENGTH)]
        for row, i in enumerate(at):
            if i == 0:
                xi = z[row, :-1].clone()
                xi[x0[b, 0]] = z[row, -1]
            else:
                text = torch.cat([xt, x0[b, :i]]) if fills_in else x0[b, :i]
                log_p = model(text[None]).logits[0, -1].log_softmax(dim=-1).detach()
                xi = -torch.log(torch.exp(-z[row, :-1]) + log_p.exp() * torch.exp(-z[row, -1]))
                xi[x0[b, i]] = z[row, -1] - log_p[x0[b, i]]
            if u[b, 1] < 0.5:
                embedded[i] = embedded[i] + SCALE * xi.softmax(dim=-1) @ student.noise_embed.weight
        x, (_, cond, cos, sin) = torch.stack(embedded)[None], student._embedded(xt[None], None)
        for block in student.blocks:
            x = block(x, cond, cos, sin)
        log_q = masked_log_probs(student.head(student.output_layer(x, cond, None)), MASK)[0]
        total = total - sum(nelbo_weight(t[b], SCHEDULE) * log_q[i, x0[b, i]] for i in at)
    return total


@pytest.mark.parametrize("fills_in", [False, True])
def test_the_loss_and_its_gradient_are_those_of_the_formula(fills_in: bool) -> None:
    student, model = some_student(1), some_autoregressive(fills_in)
    x0 = torch.randint(MASK, (20, LENGTH), generator=torch.Generator().manual_seed(3))
    objective = nelbo_objective(
        schedule=SCHEDULE, min_time=1e-3, mask_token_id=MASK, latent_of=noise_of_texts(model, 0.5, MASK)
    )
    drawn = objective.draw(x0.shape, torch.Generator().manual_seed(4))
    total, count = objective.loss(student, x0, *drawn)
    assert count == x0.numel()
    slow = reference(student, model, x0, drawn, fills_in)
    assert total.item() == pytest.approx(slow.item(), rel=1e-4)
    found, expected = gradients(student, total), gradients(student, slow)
    assert float((found - expected).norm()) < 1e-3 * float(expected.norm())


def test_a_student_begins_as_its_teacher(tmp_path: Path) -> None:
    teacher = some_denoiser(1)
    student = gumbel.student(teacher, gumbel.Settings(noise_share=0.9))
    xt, at = torch.full((2, LENGTH), MASK), torch.ones(2, LENGTH, dtype=torch.bool)
    latent = student.latent_of(Uniforms(0, range(2), LENGTH).one, LENGTH)
    assert latent is not None
    torch.testing.assert_close(student.hidden_at(xt, at, latent=latent(1)), teacher.hidden_at(xt, at), rtol=0, atol=0)
    student = some_student(1)
    student.save_pretrained(tmp_path)
    again = Denoiser.from_pretrained(tmp_path)
    assert again.config == student.config
    for name, weight in student.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)
    assert again.with_noise().config == student.config
    with pytest.raises(UserError, match="mdlm has no takes noise"):
        config_values(student.config, "mdlm")
    with pytest.raises(
        UserError, match=r"objective is gumbel, .* a network of transformers has no place for one: .*=sdtt$"
    ):
        gumbel.student(SimpleNamespace(), gumbel.Settings(noise_share=0.9))  # type: ignore[arg-type]


def test_what_is_written_hides_its_noise() -> None:
    student, generator = some_student(1), torch.Generator().manual_seed(0)
    xt, at = torch.tensor([[0, MASK, MASK]]), torch.ones(1, LENGTH, dtype=torch.bool)
    latent = torch.randn(1, LENGTH, 16, generator=generator)
    found = student.hidden_at(xt, at, latent=latent)
    for place, is_seen in ((0, False), (1, True)):
        other = latent.clone()
        other[0, place] += 1.0
        assert torch.equal(student.hidden_at(xt, at, latent=other), found) != is_seen


def test_a_sample_keeps_its_noise_through_all_steps_whatever_the_batch() -> None:
    student = some_student(1)
    seen: list[Tensor] = []
    hidden_at = student.hidden_at
    student.hidden_at = lambda *a, latent, **k: seen.append(latent) or hidden_at(*a, latent=latent, **k)  # type: ignore[method-assign]

    def texts(indices: range) -> Tensor:
        x_init = torch.full((len(indices), LENGTH), MASK)
        sampler = Sampler("ancestral", {"num_steps": 2})
        return sampler.sample(student, x_init, mask_token_id=MASK, uniforms=Uniforms(0, indices, LENGTH)).tokens

    whole = texts(range(20))
    found = {tuple(z.flatten().tolist()) for latent in seen for z in latent}
    assert len(found) == 20
    assert sum(map(len, seen)) > 20
    assert torch.equal(torch.cat([texts(range(7)), texts(range(7, 20))]), whole)


class _Twins(nn.Module):
    """An autoregressive model of pairs after a first token: one of two tokens, and the same again."""

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.config = SimpleNamespace()
        self.head = nn.Linear(2, 3, bias=False)
        self.head.weight.data = torch.tensor([[20.0, -20.0], [-20.0, 20.0], [-60.0, -60.0]])

    @property
    def base_model(self) -> "_Twins":
        return self

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, tokens: Tensor, use_cache: bool = False) -> SimpleNamespace:
        states = F.one_hot(tokens, 2).float()
        # Nothing is known of the one after the first.
        states[:, 0] = 0.0
        return SimpleNamespace(last_hidden_state=states, logits=self.head(states) * self.temperature)


def test_a_student_writes_pairs_in_one_step_that_no_product_of_its_positions_has() -> None:
    """Of independent tokens half would be no pair; 300 steps leave fewer than one in five of 500."""
    torch.manual_seed(0)
    student = some_denoiser(1, LENGTH, 3).with_noise().train()
    objective = nelbo_objective(
        schedule=SCHEDULE, min_time=0.6, mask_token_id=2, latent_of=noise_of_texts(_Twins(), 1.0, 2)
    )
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    for _ in range(300):
        x0 = torch.randint(2, (32, 1), generator=generator).expand(-1, 3).clone()
        x0[:, 0] = 0
        total, count = objective(student, x0, generator)
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    x_init = torch.full((500, LENGTH), 2)
    x_init[:, 0] = 0
    texts = Sampler("ancestral", {"num_steps": 1}).sample(
        student.eval(), x_init, mask_token_id=2, uniforms=Uniforms(0, range(500), LENGTH)
    )
    assert (texts.nfe == 1).all()
    differ = (texts.tokens[:, 1] != texts.tokens[:, 2]).double().mean()
    assert differ < 0.2
    assert 0.2 < (texts.tokens[:, 1] == 0).double().mean() < 0.8


def test_a_model_that_does_more_than_project_its_states_is_refused() -> None:
    with pytest.raises(UserError, match=r"models/ar changes its logits after the projection: .* -S baseline"):
        noise_of_texts(_Twins(temperature=0.5), 1.0, 2)  # type: ignore[arg-type]
