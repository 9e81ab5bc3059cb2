"""Objectives that match distributions, against slow versions, by enumeration and at their fixed points."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.diffusion.subs import masked_log_probs
from halfstep.model.config import DenoiserConfig
from halfstep.model.denoiser import Denoiser
from halfstep.objectives.base import PRODUCT
from halfstep.objectives.idlm import FAKE, idlm_objective
from halfstep.objectives.mmd import kernel, mmd_objective, rewards

VOCAB, MASK, LENGTH = 4, 3, 3
SCHEDULE = LogLinearSchedule(1e-3)


def some_denoiser(seed: int, length: int = LENGTH, vocab: int = VOCAB) -> Denoiser:
    torch.manual_seed(seed)
    denoiser = Denoiser(DenoiserConfig(vocab, vocab - 1, length, 16, 2, 2, 8, 0.0, 1e-3))
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return denoiser.eval()


def gradients(network: Denoiser, loss: Tensor) -> Tensor:
    found = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    return torch.cat(
        [torch.zeros(p.numel()) if g is None else g.flatten() for p, g in zip(network.parameters(), found, strict=True)]
    )


def test_rewards_are_the_kernel_score_of_each_pair() -> None:
    """Against sums written out, of features in which every position differs."""
    generator = torch.Generator().manual_seed(0)
    data, drawn = torch.randn(2, 3, 5, generator=generator), torch.randn(2, 2, 2, 3, 5, generator=generator)
    is_masked = torch.tensor([[True, True, False], [True, True, True]])
    found = rewards(data, drawn, is_masked, 0.7)
    for pair, row in itertools.product(range(2), range(2)):
        places = is_masked[row].nonzero()[:, 0].tolist()

        def k(a: Tensor, b: Tensor) -> float:
            a, b = ((x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() for x in (a, b))
            return math.exp(-float((a - b).square().sum()) / (2 * 5 * 0.7))

        n, expected = len(places), 0.0
        for b in range(2):
            expected += sum(k(data[row, i], drawn[pair, b, row, j]) for i in places for j in places) / n**2
        one, other = drawn[pair, :, row]
        expected -= sum(k(one[i], other[j]) for i in places for j in places if i != j) / (n * (n - 1))
        assert float(found[pair, row]) == pytest.approx(expected, rel=1e-3)
    assert float(kernel(data[:1, :1], data[:1, :1], 0.5)) == pytest.approx(1, abs=1e-4)


def test_the_gradient_of_mmd_is_that_of_the_expected_reward() -> None:
    """Without bias, by enumeration of all that four draws of two tokens can be."""
    length, mask = 2, 2
    student, frozen = some_denoiser(1, length, 3), some_denoiser(2, length, 3).requires_grad_(False)
    objective = mmd_objective(
        lambda x: frozen.features(x, 1),
        num_pairs=2,
        bandwidth=0.3,
        schedule=SCHEDULE,
        min_time=1e-5,
        mask_token_id=mask,
    )
    x0, t = torch.tensor([[0, 1]]), torch.ones(1, dtype=torch.float64)
    hidden_by_mask = torch.full((1, length), 0.5, dtype=torch.float64)
    xt = torch.full((1, length), mask)
    log_q = masked_log_probs(student(xt), mask)[0, :, :2]
    q = log_q.exp().detach().double()
    middle = torch.stack([q[:, 0] / 2, q[:, 0] + q[:, 1] / 2])  # the number that draws token v at position i: [v, i]
    texts = list(itertools.product(range(2), repeat=length))

    def chance(text: tuple[int, ...]) -> float:
        return math.prod(float(q[i, v]) for i, v in enumerate(text))

    expected_gradient = torch.zeros(student.num_parameters())
    for four in itertools.product(texts, repeat=4):
        u = torch.stack([torch.stack([middle[v, i] for i, v in enumerate(text)]) for text in four])[None]
        total, count = objective.loss(student, x0, t, hidden_by_mask, u)
        assert count == 1
        expected_gradient += math.prod(map(chance, four)) * gradients(student, total)

    expected_reward = torch.zeros(())
    everywhere = torch.ones(1, length, dtype=torch.bool)
    for one, other in itertools.product(texts, repeat=2):
        features = frozen.features(torch.tensor([[0, 1], one, other]), 1)
        reward = rewards(features[:1], features[1:].view(1, 2, 1, length, -1), everywhere, 0.3)[0, 0]
        log_p = sum(log_q[i, text[i]] for text in (one, other) for i in range(length))
        expected_reward = expected_reward + torch.as_tensor(log_p).exp() * reward
    expected = gradients(student, -expected_reward / (2 * length))
    assert float(expected.norm()) > 1e-3
    assert float((expected_gradient - expected).norm()) < 1e-4 * float(expected.norm())


def idlm(teacher: Denoiser, student: Denoiser):
    return idlm_objective(
        teacher, student, schedule=SCHEDULE, min_time=0.05, mask_token_id=MASK, fake_learning_rate=1e-3
    )


def test_both_losses_of_idlm_are_their_formulas() -> None:
    teacher, student = some_denoiser(1).requires_grad_(False), some_denoiser(2)
    objective = idlm(teacher, student)
    fake = objective.networks[FAKE]
    with torch.no_grad():
        for parameter in fake.parameters():
            parameter.mul_(1.3)
    x0 = torch.randint(MASK, (6, LENGTH), generator=torch.Generator().manual_seed(0))
    t, u_mask, s, u_token, u_again = drawn = objective.draw(x0.shape, torch.Generator().manual_seed(1))
    of_fake, of_student = torch.zeros(()), torch.zeros(())
    for row in range(len(x0)):
        is_masked = u_mask[row] >= SCHEDULE.alpha(t[row])
        xt = torch.where(is_masked, MASK, x0[row])
        p = masked_log_probs(student(xt[None])[0], MASK).exp()
        token = (p.double().cumsum(dim=-1) <= u_token[row, :, None]).sum(dim=-1)
        x = torch.where(is_masked, token, xt)
        again = u_again[row] >= SCHEDULE.alpha(s[row])
        xs = torch.where(again, MASK, x)
        log_f = masked_log_probs(fake(xs[None])[0], MASK)[:, :MASK]
        log_teacher = masked_log_probs(teacher(xs[None])[0], MASK)[:, :MASK]
        for i in again.nonzero()[:, 0].tolist():
            w = 1 / float(s[row])
            of_fake = of_fake - w * (p[i, :MASK].detach() @ log_f[i] if is_masked[i] else log_f[i, x0[row, i]])
            if is_masked[i]:
                of_student = of_student + w * (p[i, :MASK] @ (log_f[i].detach() - log_teacher[i]))
    for name, network, expected in ((FAKE, fake, of_fake), (PRODUCT, student, of_student)):
        total, count = objective.losses[name](network, x0, *drawn)
        assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
        assert abs(float(expected.detach())) > 0.01
        found, slow = gradients(network, total), gradients(network, expected)
        assert float((found - slow).norm()) < 1e-4 * float(slow.norm())
        assert count == x0.numel()


def test_a_student_whose_fake_is_the_teacher_stays_as_it_is() -> None:
    teacher, student = some_denoiser(1).requires_grad_(False), some_denoiser(2)
    objective = idlm(teacher, student)
    x0 = torch.zeros(8, LENGTH, dtype=torch.int64)
    total, _ = objective.losses[PRODUCT](student, x0, *objective.draw(x0.shape, torch.Generator().manual_seed(0)))
    assert float(total.detach()) == 0
    assert float(gradients(student, total).abs().max()) == 0


def test_the_fake_of_a_student_that_is_right_is_the_teacher() -> None:
    """Tokens that do not depend on each other, and a teacher that knows their probabilities: student and fake are it.

    The fake's gradient is then zero on average over the texts, whatever is masked.
    """
    p = torch.tensor([0.5, 0.3, 0.2])
    teacher = some_denoiser(1).requires_grad_(False)
    torch.nn.init.zeros_(teacher.head.weight)
    teacher.head.bias.copy_(torch.cat([p.log(), torch.zeros(1)]))
    objective = idlm(teacher, teacher)
    fake = objective.networks[FAKE]
    drawn = objective.draw((1, LENGTH), torch.Generator().manual_seed(3))
    average, largest = torch.zeros(fake.num_parameters()), 0.0
    for text in itertools.product(range(MASK), repeat=LENGTH):
        total, _ = objective.losses[FAKE](fake, torch.tensor([text]), *drawn)
        found = gradients(fake, total)
        average += math.prod(float(p[v]) for v in text) * found
        largest = max(largest, float(found.abs().max()))
    assert largest > 0.1
    assert float(average.abs().max()) < 1e-5
