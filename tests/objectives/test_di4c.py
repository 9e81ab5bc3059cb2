"""A mixture over a latent: its correlations by enumeration, its loss against one that forms everything."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from tests.objectives.test_rivals import SCHEDULE, gradients, some_denoiser
from torch import Tensor

from halfstep.diffusion.categorical import draw_categorical
from halfstep.diffusion.noise import mask_tokens_at
from halfstep.diffusion.subs import masked_log_probs
from halfstep.model.denoiser import Denoiser
from halfstep.model.layouts import config_values
from halfstep.objectives import di4c
from halfstep.objectives.di4c import correlation, di4c_objective, of_mixture
from halfstep.run.errors import UserError
from halfstep.samplers.base import Uniforms
from halfstep.samplers.sampler import Sampler

VOCAB, MASK, LENGTH, NUM_LATENTS = 4, 3, 3, 3


def some_student(seed: int) -> Denoiser:
    student = some_denoiser(seed).with_latent()
    for parameter in student.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return student


def test_the_mean_correlation_of_a_mixture_is_what_its_positions_know_of_each_other() -> None:
    """By enumeration: minus the total correlation; a product has none of any sequence."""
    logits = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_p = logits.log_softmax(dim=-1)
    pairs = torch.tensor([*itertools.product(range(4), repeat=2)])
    of_pairs = torch.stack([log_p[:, 0, pairs[:, 0]], log_p[:, 1, pairs[:, 1]]], dim=1)
    p = of_mixture(of_pairs.sum(dim=1)).exp()
    assert float(p.sum()) == pytest.approx(1)
    marginals = of_mixture(log_p).exp()
    total = sum(p * (p / (marginals[0, pairs[:, 0]] * marginals[1, pairs[:, 1]])).log())
    assert float((p * correlation(of_pairs)).sum()) == pytest.approx(-float(total))
    assert float(total) > 0.01
    assert correlation(of_pairs[:1].expand(3, -1, -1)).abs().max() < 1e-12


def test_a_mixture_of_two_has_a_pair_that_no_product_has() -> None:
    """Both tokens 0, or both 1: as likely as 1/2, where the product of the marginals has 1/4."""
    log_p = torch.eye(2, dtype=torch.float64)[:, None].expand(2, 2, 2).log()
    assert float(correlation(log_p[:, :, 0])) == pytest.approx(-math.log(2))


def reference(student: Denoiser, teacher: Denoiser, x0: Tensor, drawn: tuple[Tensor, ...], dt: float) -> Tensor:
    """The loss as its formula has it, a row and a sequence at a time."""
    t, u_mask, u_step, u_token, latents, u_again = drawn
    m, total = NUM_LATENTS, torch.zeros(())
    xt = mask_tokens_at(x0, SCHEDULE.alpha(t), MASK, u_mask)

    def predicted(network: Denoiser, x: Tensor, z: Tensor | None) -> Tensor:
        hidden = network.hidden(x[None], latent=None if z is None else z.float()[None])
        return masked_log_probs(network.head(hidden), MASK)[0, :, :MASK]

    for b in range(len(x0)):
        at = (xt[b] == MASK).nonzero()[:, 0].tolist()
        of_teacher = predicted(teacher, xt[b], None)
        now = torch.stack([predicted(student, xt[b], latents[b, m + i]) for i in range(m)])
        if t[b] <= 2 * dt:
            total = total + sum((of_teacher[i].exp() * (of_teacher[i] - one[i])).sum() / m for one in now for i in at)
            continue
        s = max(t[b] - dt, t[b] / 2)
        xs = xt[b].clone()
        for i in at:
            if u_step[b, i] >= (1 - SCHEDULE.alpha(s)) / (1 - SCHEDULE.alpha(t[b])):
                xs[i] = draw_categorical(of_teacher[i], u_token[b, i])
        with torch.no_grad():
            after = [predicted(student, xs, latents[b, i]) for i in range(m)]
        marginal = of_mixture(now)
        wanted = of_mixture(torch.stack(after))
        for i in at:
            total = total + (of_teacher[i].exp() * (of_teacher[i] - marginal[i])).sum()
            if xs[i] == MASK:
                total = total + (wanted[i].exp() * (wanted[i] - marginal[i])).sum()
            else:
                total = total - marginal[i, xs[i]]
        texts = [x0[b]]
        for one, u in zip(after, u_again[b], strict=True):
            texts.append(torch.where(xs == MASK, draw_categorical(one, u), xs))
        weights = [0.3 * torch.sigmoid(20 * (t[b] - 0.5)), *([1 / m] * m)]
        for weight, text in zip(weights, texts, strict=True):
            total = total + weight * correlation(now[:, at, text[at]])
    return total


@pytest.mark.parametrize("rows_at_once", [10**6, NUM_LATENTS * 2])
def test_the_loss_and_its_gradient_are_those_of_the_formula(rows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(di4c, "rows_per_chunk", lambda *_: rows_at_once)
    student, teacher = some_student(1), some_denoiser(2).requires_grad_(False)
    x0 = torch.randint(MASK, (40, LENGTH), generator=torch.Generator().manual_seed(3))
    objective = di4c_objective(
        teacher, dt=0.25, num_latents=NUM_LATENTS, correlation_weight=0.3, schedule=SCHEDULE, min_time=1e-3,
        mask_token_id=MASK,
    )  # fmt: skip
    drawn = objective.draw(x0.shape, torch.Generator().manual_seed(4))
    total, count = objective.loss(student, x0, *drawn)
    xt = mask_tokens_at(x0, SCHEDULE.alpha(drawn[0]), MASK, drawn[1])
    assert count == int((xt == MASK).sum())
    slow = reference(student, teacher, x0, drawn, 0.25)
    assert total.item() == pytest.approx(slow.item(), rel=1e-4)
    found = gradients(student, total)
    expected = gradients(student, slow)
    assert float((found - expected).norm()) < 1e-3 * float(expected.norm())


def test_a_student_begins_as_its_teacher_and_its_latent_tells_sequences_apart(tmp_path: Path) -> None:
    teacher = some_denoiser(1)
    student = di4c.student(teacher, di4c.Settings(num_latents=2, correlation_weight=0.1))
    xt, at = torch.full((2, LENGTH), MASK), torch.ones(2, LENGTH, dtype=torch.bool)
    same = student.hidden_at(xt, at, latent=torch.tensor([[0.2], [0.2]])).view(2, LENGTH, -1)
    torch.testing.assert_close(same[0], same[1])
    other = student.hidden_at(xt, at, latent=torch.tensor([[0.2], [0.7]])).view(2, LENGTH, -1)
    assert (other[0] - other[1]).abs().max() > 1e-4
    for name, weight in teacher.state_dict().items():
        assert torch.equal(student.state_dict()[name], weight)
    student.save_pretrained(tmp_path)
    again = Denoiser.from_pretrained(tmp_path)
    assert again.config == student.config
    torch.testing.assert_close(again.hidden_at(xt, at, latent=torch.tensor([[0.2], [0.7]])).view_as(other), other)
    with pytest.raises(UserError, match="mdlm has no takes latent"):
        config_values(student.config, "mdlm")
    with pytest.raises(ValueError, match="takes no latent"):
        teacher.hidden_at(xt, at, latent=torch.zeros(2, 1))


def test_a_sample_has_a_latent_of_its_own_in_every_step_whatever_the_batch() -> None:
    student = some_student(1)
    sampler = Sampler("ancestral", {"num_steps": 2})
    seen: list[Tensor] = []
    hidden_at = student.hidden_at
    student.hidden_at = lambda *a, latent, **k: seen.append(latent) or hidden_at(*a, latent=latent, **k)  # type: ignore[method-assign]

    def texts(indices: range) -> Tensor:
        x_init = torch.full((len(indices), LENGTH), MASK)
        return sampler.sample(student, x_init, mask_token_id=MASK, uniforms=Uniforms(0, indices, LENGTH)).tokens

    whole = texts(range(20))
    assert len({float(z) for latent in seen for z in latent}) == sum(map(len, seen))
    assert torch.equal(torch.cat([texts(range(7)), texts(range(7, 20))]), whole)


def test_a_batch_in_which_nothing_is_masked_or_everything_is_written_has_a_loss() -> None:
    student, teacher = some_student(1), some_denoiser(2).requires_grad_(False)
    objective = di4c_objective(
        teacher, dt=0.1, num_latents=2, correlation_weight=0.1, schedule=SCHEDULE, min_time=1e-3, mask_token_id=MASK
    )
    x0 = torch.zeros(3, LENGTH, dtype=torch.int64)
    t, u_mask, u_step, *others = objective.draw(x0.shape, torch.Generator().manual_seed(0))
    total, count = objective.loss(student, x0, t, torch.zeros_like(u_mask), u_step, *others)
    assert (total.item(), count) == (0, 0)
    total, count = objective.loss(student, x0, t, torch.ones_like(u_mask), torch.ones_like(u_step), *others)
    assert count == 3 * LENGTH
    assert torch.isfinite(total)
