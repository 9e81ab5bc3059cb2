"""Laws that hold for all inputs, tried on many by hypothesis: order of the batch, order of the vocabulary, shifts of
the logits, data types, nothing masked, everything masked."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from halfstep.diffusion.categorical import draw_categorical
from halfstep.diffusion.divergences import DIVERGENCES, total_variation
from halfstep.diffusion.nelbo import nelbo_per_token, nelbo_weight
from halfstep.diffusion.noise import antithetic_times, mask_tokens
from halfstep.diffusion.posterior import posterior_probs, unmask_probability
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.diffusion.subs import masked_log_probs, subs_log_probs
from halfstep.objectives.sdtt import sdtt_loss
from halfstep.objectives.teacher import TeacherSteps, teacher_step_size
from halfstep.samplers.ancestral import sample, unmask_steps
from halfstep.samplers.base import Uniforms
from tests.objectives.targets import sdtt_targets

pytestmark = pytest.mark.stage  # takes seconds
SCHEDULE = LogLinearSchedule(1e-3)
seeds = st.integers(0, 2**32)
vocab_sizes = st.integers(2, 6)
lengths = st.integers(1, 6)
batch_sizes = st.integers(1, 5)
epsilons = st.floats(1e-6, 0.9)
times = st.floats(1e-5, 1.0)
mask_rates = st.sampled_from([0.0, 0.3, 1.0])
dtypes = st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64])


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _partly_masked(vocab_size: int, batch_size: int, length: int, mask_rate: float, g: torch.Generator) -> Tensor:
    """Tokens whose mask is the last id; a rate of 0 or 1 masks nothing or everything."""
    x0 = torch.randint(vocab_size - 1, (batch_size, length), generator=g)
    return torch.where(torch.rand(x0.shape, generator=g) < mask_rate, vocab_size - 1, x0)


def _network(vocab_size: int, g: torch.Generator) -> Callable[[Tensor, Tensor], Tensor]:
    """Logits of a position from the tokens before, at and after it; each sequence on its own, in float64."""
    weights = torch.randn(3, vocab_size, vocab_size, generator=g, dtype=torch.float64)

    def logits_at(xt: Tensor, at: Tensor) -> Tensor:
        return sum(weight[xt.roll(shift, dims=1)] for shift, weight in zip((-1, 0, 1), weights, strict=True))[at]

    return logits_at


@given(seeds, vocab_sizes, batch_sizes, lengths, dtypes, st.floats(-50, 50))
def test_log_probabilities_are_normalised_and_do_not_see_a_shift(seed, vocab_size, batch_size, length, dtype, shift):
    logits = torch.randn(batch_size, length, vocab_size, generator=_generator(seed)).to(dtype)
    log_p = masked_log_probs(logits, vocab_size - 1)
    assert log_p.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones_like(log_p[..., 0]), atol=1e-5, rtol=0)
    assert (log_p[..., -1] == -torch.inf).all()
    torch.testing.assert_close(masked_log_probs(logits.double() + shift, vocab_size - 1).to(log_p.dtype), log_p)
    # What the mask's logit is makes no difference.
    logits[..., -1] = 1e4
    assert torch.equal(masked_log_probs(logits, vocab_size - 1), log_p)


@given(seeds, vocab_sizes, batch_sizes, lengths, mask_rates)
def test_subs_copies_visible_tokens_and_predicts_masked_ones(seed, vocab_size, batch_size, length, mask_rate):
    g = _generator(seed)
    xt = _partly_masked(vocab_size, batch_size, length, mask_rate, g)
    logits = torch.randn(batch_size, length, vocab_size, generator=g)
    p = subs_log_probs(logits, xt, vocab_size - 1).exp()
    is_masked = xt == vocab_size - 1
    assert torch.equal(p[~is_masked].argmax(-1), xt[~is_masked])
    assert (p[~is_masked].max(-1).values == 1).all()
    assert torch.equal(p[is_masked], masked_log_probs(logits[is_masked], vocab_size - 1).exp())


@given(epsilons, times, times)
def test_every_earlier_time_is_more_visible_and_the_posterior_is_a_distribution(epsilon, t, s):
    s, t = sorted((s, t))
    schedule = LogLinearSchedule(epsilon)
    alpha_s, alpha_t = (schedule.alpha(torch.tensor([time], dtype=torch.float64)) for time in (s, t))
    p = unmask_probability(alpha_t, alpha_s)
    assert 0 <= p <= 1
    # Masked at t and masked at s have the chances (1 - epsilon) t and (1 - epsilon) s: epsilon cancels.
    assert float(1 - p) == pytest.approx(s / t, rel=1e-6, abs=1e-9)
    p_x0 = torch.tensor([[[0.3, 0.7, 0.0]]], dtype=torch.float64)
    row = posterior_probs(p_x0, torch.tensor([[2]]), alpha_t, alpha_s, 2)[0, 0]
    assert float(row.sum()) == pytest.approx(1, rel=1e-12)
    assert (row >= 0).all()
    assert float(nelbo_weight(torch.tensor([t], dtype=torch.float64), schedule)) == pytest.approx(1 / t, rel=1e-9)


@given(st.integers(1, 40), st.floats(0, 0.99), seeds)
def test_antithetic_times_cover_the_interval(batch_size, min_time, seed):
    t = antithetic_times(batch_size, min_time, generator=_generator(seed))
    assert (t.diff() > 0).all()
    part = (t - min_time) / (1 - min_time) * batch_size
    assert torch.equal(part.floor().clamp(max=batch_size - 1), torch.arange(batch_size, dtype=torch.float64))


@given(seeds, vocab_sizes, batch_sizes, lengths, st.floats(0, 1))
def test_masking_changes_a_token_to_the_mask_or_not_at_all(seed, vocab_size, batch_size, length, alpha):
    g = _generator(seed)
    x0 = torch.randint(vocab_size - 1, (batch_size, length), generator=g)
    xt = mask_tokens(x0, torch.full((batch_size,), alpha), vocab_size - 1, generator=g)
    assert ((xt == x0) | (xt == vocab_size - 1)).all()


@given(seeds, st.integers(1, 20), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_a_larger_uniform_number_never_draws_an_earlier_token(seed, vocab_size, u, v):
    log_p = torch.randn(vocab_size, generator=_generator(seed), dtype=torch.float64) * 20
    log_p[torch.rand(vocab_size, generator=_generator(seed + 1)) < 0.3] = -torch.inf
    log_p[0] = 0.0
    drawn = draw_categorical(log_p.expand(2, -1), torch.tensor(sorted((u, v)), dtype=torch.float64))
    assert drawn[0] <= drawn[1] < vocab_size
    assert (log_p[drawn] > -torch.inf).all()


@pytest.mark.parametrize("name", DIVERGENCES)
@given(seed=seeds, num_rows=st.integers(0, 4), vocab_size=vocab_sizes, scale=st.floats(0.01, 60))
def test_distances_are_finite_not_negative_and_do_not_see_the_order_of_the_vocabulary(
    name, seed, num_rows, vocab_size, scale
):
    """With the mask token impossible on both sides, in float32, up to predictions that are all but certain."""
    g = _generator(seed)
    logits = scale * torch.randn(2, num_rows, vocab_size, generator=g)
    student, teacher = (masked_log_probs(rows, vocab_size - 1) for rows in logits)
    student.requires_grad_()
    distance = DIVERGENCES[name](student, teacher)
    assert distance.shape == (num_rows,)
    assert torch.isfinite(distance).all()
    assert (distance >= -1e-5).all()
    (gradient,) = torch.autograd.grad(distance.sum(), student)
    assert torch.isfinite(gradient).all()
    order = torch.randperm(vocab_size, generator=g)
    torch.testing.assert_close(DIVERGENCES[name](student[:, order], teacher[:, order]), distance, rtol=1e-4, atol=1e-5)
    assert (total_variation(student, teacher) <= 1 + 1e-6).all()


@given(seeds, vocab_sizes, batch_sizes, lengths, mask_rates)
def test_the_order_of_the_batch_does_not_change_token_losses(seed, vocab_size, batch_size, length, mask_rate):
    g = _generator(seed)
    xt = _partly_masked(vocab_size, batch_size, length, mask_rate, g)
    x0 = torch.where(xt == vocab_size - 1, 0, xt)
    t = torch.rand(batch_size, generator=g, dtype=torch.float64).clamp(min=1e-3)
    network = _network(vocab_size, g)

    def losses(order: Tensor) -> Tensor:
        is_masked = xt[order] == vocab_size - 1
        log_p = masked_log_probs(network(xt[order], is_masked), vocab_size - 1)
        return nelbo_per_token(log_p, x0[order], is_masked, t[order], SCHEDULE)

    order = torch.randperm(batch_size, generator=g)
    in_order = losses(torch.arange(batch_size))
    torch.testing.assert_close(losses(order), in_order[order])
    assert (in_order[xt != vocab_size - 1] == 0).all()
    assert in_order.shape == x0.shape


@given(seeds, vocab_sizes, batch_sizes, lengths, mask_rates, st.integers(1, 9))
def test_samples_keep_what_is_given_fill_what_is_masked_and_do_not_see_the_batch(
    seed, vocab_size, batch_size, length, mask_rate, num_steps
):
    g = _generator(seed)
    x_init = _partly_masked(vocab_size, batch_size, length, mask_rate, g)
    network = _network(vocab_size, g)
    u_time, u_token = Uniforms(seed, range(batch_size), length).first

    def draw(rows: Tensor):
        return sample(
            network,
            x_init[rows],
            num_steps=num_steps,
            mask_token_id=vocab_size - 1,
            u_time=u_time[rows],
            u_token=u_token[rows],
        )

    together = draw(torch.arange(batch_size))
    is_given = x_init != vocab_size - 1
    assert torch.equal(together.tokens[is_given], x_init[is_given])
    assert (together.tokens != vocab_size - 1).all()
    assert torch.equal(together.unmask_step == 0, is_given)
    assert (together.nfe <= num_steps).all()
    order = torch.randperm(batch_size, generator=g)
    assert torch.equal(draw(order).tokens, together.tokens[order])
    assert torch.equal(draw(order[:1]).tokens, together.tokens[order[:1]])


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 2000))
def test_halving_the_steps_joins_neighbouring_ones(u, num_steps):
    """The same uniform number unmasks in step i of n where it unmasks in step 2 i - 1 or 2 i of 2 n."""
    u_time = torch.tensor([u], dtype=torch.float64)
    assert unmask_steps(u_time, num_steps).item() == (unmask_steps(u_time, 2 * num_steps).item() + 1) // 2


@given(seeds, vocab_sizes, batch_sizes, lengths, mask_rates, st.integers(2, 4), st.floats(1e-3, 0.6))
def test_targets_do_not_see_the_order_of_the_batch(
    seed, vocab_size, batch_size, length, mask_rate, num_teacher_steps, dt
):
    g = _generator(seed)
    xt = _partly_masked(vocab_size, batch_size, length, mask_rate, g)
    t = torch.rand(batch_size, generator=g, dtype=torch.float64).clamp(min=1e-5)
    u_time, u_token = torch.rand(2, batch_size, length, generator=g, dtype=torch.float64)
    network = _network(vocab_size, g)

    def targets(order: Tensor) -> Tensor:
        """One row per position, zero where nothing is masked."""
        rows = sdtt_targets(
            network,
            TeacherSteps(dt, num_teacher_steps, SCHEDULE),
            xt[order],
            t[order],
            mask_token_id=vocab_size - 1,
            u_time=u_time[order],
            u_token=u_token[order],
        )
        dense = torch.zeros(batch_size, length, vocab_size, dtype=rows.dtype)
        dense[xt[order] == vocab_size - 1] = rows
        return dense

    order = torch.randperm(batch_size, generator=g)
    in_order = targets(torch.arange(batch_size))
    assert torch.equal(targets(order), in_order[order])
    # Its own targets cost a network nothing, and nothing masked is no loss.
    rows = in_order[xt == vocab_size - 1]
    total, count = sdtt_loss(rows, rows, DIVERGENCES["kl_student_teacher"])
    assert count == int((xt == vocab_size - 1).sum())
    assert float(total) == 0


@given(st.floats(1e-3, 1), st.floats(1e-3, 0.5), st.integers(2, 5), st.floats(0, 1, exclude_max=True))
def test_teacher_steps_end_where_one_step_of_the_student_ends(t, dt, num_teacher_steps, u):
    """A position that the teacher unmasks in some step is one that the student's larger step unmasks."""
    u_time, time = torch.tensor([[u]], dtype=torch.float64), torch.tensor([t], dtype=torch.float64)
    teacher = TeacherSteps(dt, num_teacher_steps, SCHEDULE).unmask_steps(u_time, time)
    student = TeacherSteps(num_teacher_steps * dt, 1, SCHEDULE).unmask_steps(u_time, time)
    assert (teacher.item() <= num_teacher_steps) == (student.item() == 1)


@given(st.integers(2, 4), st.integers(1, 6), st.integers(0, 100))
def test_rounds_multiply_the_step_until_one_student_step_is_everything(num_teacher_steps, num_rounds, more):
    base_num_steps = num_teacher_steps**num_rounds
    steps = [teacher_step_size(k, base_num_steps, num_teacher_steps) for k in range(1, num_rounds + 1)]
    assert steps[0] == 1 / base_num_steps
    assert num_teacher_steps * steps[-1] == pytest.approx(1)
    with pytest.raises(ValueError, match=f"round {num_rounds + 1 + more} with"):
        teacher_step_size(num_rounds + 1 + more, base_num_steps, num_teacher_steps)
