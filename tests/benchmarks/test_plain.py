"""The published computation as an independent reference: for our losses and gradients, and against enumeration."""

import copy
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency, chisquare

from benchmarks import plain
from halfstep.diffusion import projection
from halfstep.diffusion.divergences import kl_student_teacher
from halfstep.diffusion.noise import antithetic_times, mask_tokens
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.model.denoiser import Denoiser
from halfstep.objectives.nelbo import nelbo_objective
from halfstep.objectives.sdtt import sdtt_objective
from halfstep.objectives.teacher import TeacherSteps
from halfstep.samplers.ancestral import sample
from halfstep.samplers.base import Uniforms

SCHEDULE = LogLinearSchedule(1e-3)


@pytest.fixture
def denoiser(published: Path) -> Denoiser:
    return Denoiser.from_pretrained(published)


@pytest.fixture
def arrays(published: Path) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in np.load(published / "io.npz").items()}


def _noised(x0: torch.Tensor, mask_token_id: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Generator]:
    """What an objective draws first from a generator of this seed."""
    generator = torch.Generator().manual_seed(seed)
    t = antithetic_times(len(x0), 1e-5, generator=generator)
    return mask_tokens(x0, SCHEDULE.alpha(t), mask_token_id, generator=generator), t, generator


def _gradients(model: Denoiser, loss: torch.Tensor) -> list[torch.Tensor]:
    return torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)


def _assert_same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6 * max(float(b.abs().max()), 1e-3))


def test_the_plain_computation_is_that_of_the_authors(denoiser: Denoiser, arrays: dict[str, torch.Tensor]) -> None:
    mask = denoiser.config.mask_token_id
    with torch.no_grad():
        log_p = plain.log_p_x0(denoiser, arrays["xt"], mask)
    expected = arrays["logprobs_sigma_zero"]
    is_possible = expected > -9e5
    torch.testing.assert_close(log_p[is_possible], expected[is_possible], atol=1e-5, rtol=0)
    torch.testing.assert_close(log_p, expected, atol=0.2, rtol=0)
    loss = plain.nelbo(denoiser, arrays["elbo_x0"], arrays["elbo_xt"], arrays["elbo_t"], mask_token_id=mask)
    # The weight 1 / t, where theirs in float32 loses digits near t = 1.
    torch.testing.assert_close(loss, arrays["elbo_mean_loss"], rtol=1e-4, atol=0)


@pytest.mark.parametrize("max_logits", [97, 7 * 97, 10**9])
def test_our_nelbo_and_its_gradients_are_the_plain_ones(
    denoiser: Denoiser, arrays: dict[str, torch.Tensor], max_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of one position, of seven, and all at once."""
    monkeypatch.setitem(projection.MAX_LOGITS, "cpu", max_logits)
    mask, x0 = denoiser.config.mask_token_id, arrays["x0"]
    xt, t, _ = _noised(x0, mask, seed=3)
    expected = plain.nelbo(denoiser, x0, xt, t, mask_token_id=mask)
    objective = nelbo_objective(schedule=SCHEDULE, min_time=1e-5, mask_token_id=mask)
    total, count = objective(denoiser, x0, torch.Generator().manual_seed(3))
    torch.testing.assert_close(total / count, expected, rtol=1e-5, atol=0)
    _assert_same(_gradients(denoiser, total / count), _gradients(denoiser, expected))


@pytest.mark.parametrize("max_logits", [97, 7 * 97, 10**9])
def test_our_distillation_loss_and_its_gradients_are_the_plain_ones(
    denoiser: Denoiser, arrays: dict[str, torch.Tensor], max_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One teacher step that unmasks everything leaves nothing to chance, so that both have the same targets."""
    monkeypatch.setitem(projection.MAX_LOGITS, "cpu", max_logits)
    mask, x0 = denoiser.config.mask_token_id, arrays["x0"]
    student = copy.deepcopy(denoiser)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(0.5)
    xt, t, generator = _noised(x0, mask, seed=3)
    options = {"dt": 1.0, "num_teacher_steps": 1, "mask_token_id": mask, "schedule": SCHEDULE}
    targets = plain.sdtt_targets(denoiser, xt, t, **options, generator=generator)
    expected = plain.sdtt_loss(student, xt, targets, mask_token_id=mask)
    objective = sdtt_objective(
        denoiser, TeacherSteps(1.0, 1, SCHEDULE), divergence=kl_student_teacher, min_time=1e-5, mask_token_id=mask
    )
    total, count = objective(student, x0, torch.Generator().manual_seed(3))
    assert expected > 0.01
    torch.testing.assert_close(total / count, expected, rtol=1e-5, atol=0)
    _assert_same(_gradients(student, total / count), _gradients(student, expected))


class Table:
    """Fixed logits for every partly masked sequence."""

    def __init__(self, vocab_size: int, length: int) -> None:
        generator = torch.Generator().manual_seed(11)
        self.logits = {
            xt: 1.5 * torch.randn(length, vocab_size, generator=generator)
            for xt in itertools.product(range(vocab_size), repeat=length)
        }

    def __call__(self, xt: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.logits[tuple(row)] for row in xt.tolist()])

    def logits_at(self, xt: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        return self(xt)[at]


@pytest.mark.parametrize("num_steps", [1, 3])
def test_both_samplers_have_the_same_distribution(num_steps: int) -> None:
    """Chi-square of two sets of 4000 sequences; false-alarm rate 1e-4 each.

    In one step the plain sampler leaves 1e-5 of the masks to the argmax, a bias of far less than one sequence.
    """
    table, num_samples, length, mask = Table(3, 3), 4000, 3, 2
    x_init = torch.full((num_samples, length), mask)
    u_time, u_token = Uniforms(5, range(num_samples), length).first
    ours = sample(
        table.logits_at, x_init, num_steps=num_steps, mask_token_id=mask, u_time=u_time, u_token=u_token
    ).tokens
    theirs = plain.sample(
        table,
        x_init,
        num_steps=num_steps,
        mask_token_id=mask,
        schedule=SCHEDULE,
        generator=torch.Generator().manual_seed(6),
    )
    counts = [Counter(map(tuple, tokens.tolist())) for tokens in (ours, theirs)]
    sequences = list(itertools.product(range(mask), repeat=length))
    assert sum(counts[1][x] for x in sequences) == num_samples
    assert chi2_contingency([[count[x] for x in sequences] for count in counts]).pvalue > 1e-4


def test_plain_targets_follow_the_two_teacher_steps() -> None:
    """From two masks at t with steps of dt: what the target of position 0 is, and how often.

    Still masked after the first step with probability (t - dt) / t, and then it sees what position 1 has become, if
    anything. Chi-square over 4000 draws, false-alarm rate 1e-4.
    """
    table, num_samples, mask, time, dt = Table(3, 2), 4000, 2, 0.8, 0.3
    xt = torch.full((num_samples, 2), mask)
    t = torch.full((num_samples,), time, dtype=torch.float64)
    targets = plain.sdtt_targets(
        table,
        xt,
        t,
        dt=dt,
        num_teacher_steps=2,
        mask_token_id=mask,
        schedule=SCHEDULE,
        generator=torch.Generator().manual_seed(8),
    )[:, 0, :mask]
    seen_from = {context: plain.log_p_x0(table, torch.tensor([context]), mask)[0, 0, :mask]
                 for context in ((mask, mask), (mask, 0), (mask, 1))}  # fmt: skip
    counts = [int((targets - row).abs().amax(-1).lt(1e-6).sum()) for row in seen_from.values()]
    assert sum(counts) == num_samples
    stays = (time - dt) / time
    p_other = plain.log_p_x0(table, xt[:1], mask)[0, 1, :mask].exp().tolist()
    unmasked = [stays * (1 - stays) * p for p in p_other]
    assert chisquare(counts, [num_samples * p for p in (1 - sum(unmasked), *unmasked)]).pvalue > 1e-4
