"""Our numbers against those of the authors' code, array by array.

`tests/fixtures/mdlm-*` hold a small denoiser each, in the published layout, and what the authors' network, losses,
sampler and teacher computed with it. Every array there is compared with what our functions give, to the tolerance of
the fixture's README; the last test sees to it that none is left out. Where we depart from the authors' code on
purpose, the test states the departure exactly: what theirs adds to ours, or where theirs looks in time.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from halfstep.diffusion.divergences import DIVERGENCES
from halfstep.diffusion.nelbo import nelbo_per_token, nelbo_weight
from halfstep.diffusion.posterior import posterior_probs
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.diffusion.subs import masked_log_probs, subs_log_probs
from halfstep.model.denoiser import Denoiser
from halfstep.objectives.sdtt import sdtt_loss
from halfstep.objectives.teacher import TeacherSteps
from tests.objectives.targets import sdtt_targets

FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("mdlm-*"))
MIN_TIME = 1e-5
MASK_COLUMN_BELOW = -9e5
"""The authors' code puts about -1e6 where we put -inf."""

DIVERGENCE_OF = {"kl_fwd": "kl_teacher_student", "kl_bwd": "kl_student_teacher", "mse": "mse", "tvd": "log_l1"}


class Fixture:
    """A fixture's network and arrays; remembers which arrays were looked at."""

    def __init__(self, folder: Path) -> None:
        self.arrays = {name: torch.from_numpy(array) for name, array in np.load(folder / "io.npz").items()}
        self.seen: set[str] = set()
        self.denoiser = Denoiser.from_pretrained(folder)
        self.mask = self.denoiser.config.mask_token_id
        self.schedule = LogLinearSchedule(self.denoiser.config.noise_epsilon)

    def __getitem__(self, name: str) -> Tensor:
        self.seen.add(name)
        return self.arrays[name]

    def student(self) -> Denoiser:
        """The network with every parameter halved."""
        student = Denoiser(self.denoiser.config).eval()
        student.load_state_dict(self.denoiser.state_dict())
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.mul_(0.5)
        return student

    @torch.no_grad()
    def log_p_x0(self, xt: Tensor, sigma: Tensor | None = None) -> Tensor:
        return subs_log_probs(self.denoiser(xt, sigma), xt, self.mask)

    def posterior(self, log_p_x0: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Our posterior from t to s, time below 0 being 0, in float64."""
        alpha_t, alpha_s = (self.schedule.alpha(time.double()) for time in (t, s.clamp(min=0)))
        return posterior_probs(log_p_x0.double().exp(), xt, alpha_t, alpha_s, self.mask)

    def draw(self, probs: Tensor, uniform: Tensor) -> Tensor:
        """The authors' draw: the scale of a row does not matter to it."""
        return (probs / (1e-10 - (uniform.double() + 1e-10).log())).argmax(dim=-1)


@pytest.fixture(scope="module", params=FIXTURES, ids=lambda folder: folder.name)
def fixture(request: pytest.FixtureRequest) -> Iterator[Fixture]:
    return Fixture(request.param)


def assert_log_probs_match(ours: Tensor, theirs: Tensor) -> None:
    """Equal to 1e-5 where a token is possible; theirs is about -1e6 wherever ours is -inf."""
    is_possible = ours > -torch.inf
    torch.testing.assert_close(ours[is_possible], theirs[is_possible].to(ours.dtype), atol=1e-5, rtol=0)
    assert (theirs[~is_possible] < MASK_COLUMN_BELOW).all()


def assert_gradient_matches(ours: Tensor | None, theirs: Tensor) -> None:
    assert ours is not None
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=1e-5 * float(theirs.abs().max()))


def grad_norm(denoiser: Denoiser) -> float:
    gradients = [p.grad.double().square().sum() for p in denoiser.parameters() if p.grad is not None]
    return math.sqrt(float(torch.stack(gradients).sum()))


@pytest.mark.parametrize("noise", ["zero", "nonzero"])
def test_logits_and_subs_log_probabilities(fixture: Fixture, noise: str) -> None:
    sigma = fixture[f"sigma_{noise}"]
    with torch.no_grad():
        logits = fixture.denoiser(fixture["xt"], sigma)
    torch.testing.assert_close(logits, fixture[f"logits_sigma_{noise}"], atol=1e-5, rtol=0)
    assert_log_probs_match(fixture.log_p_x0(fixture["xt"], sigma), fixture[f"logprobs_sigma_{noise}"])


def test_leaving_sigma_out_is_zero_noise_and_visible_tokens_are_the_clean_ones(fixture: Fixture) -> None:
    with torch.no_grad():
        torch.testing.assert_close(fixture.denoiser(fixture["xt"]), fixture["logits_sigma_zero"], atol=1e-5, rtol=0)
    is_visible = fixture["xt"] != fixture.mask
    assert torch.equal(fixture["xt"][is_visible], fixture["x0"][is_visible])


@pytest.mark.parametrize("theirs", DIVERGENCE_OF)
@pytest.mark.parametrize("rows", ["div", "divsubs"])
def test_divergences_and_their_gradients(fixture: Fixture, rows: str, theirs: str) -> None:
    """The authors' mean of squares and sum of absolute differences also run over the mask token's column.

    There both sides hold about -1e6 with float32 steps of 1/16: what it adds is rounding, and is subtracted here.
    """
    preds, targets = fixture[f"{rows}_preds"].double(), fixture[f"{rows}_targets"].double()
    vocab_size = preds.shape[1]
    excluded = preds < MASK_COLUMN_BELOW
    student = preds.masked_fill(excluded, -torch.inf).requires_grad_()
    ours = DIVERGENCES[DIVERGENCE_OF[theirs]](student, targets.masked_fill(excluded, -torch.inf)).mean()
    (gradient,) = torch.autograd.grad(ours, student)
    rounding = torch.where(excluded, preds - targets, 0.0)
    num_possible = float((~excluded).sum(dim=1).double().mean())
    scale, added = {
        "kl_fwd": (1.0, 0.0),
        "kl_bwd": (1.0, 0.0),
        "mse": (num_possible / vocab_size, float(rounding.square().mean())),
        "tvd": (1.0, float(rounding.abs().sum(dim=1).mean())),
    }[theirs]
    value = float(ours.detach()) * scale + added
    assert value == pytest.approx(float(fixture[f"{rows}_{theirs}_f64"]), rel=1e-9)
    assert value == pytest.approx(float(fixture[f"{rows}_{theirs}"]), rel=1e-4)
    expected = fixture[f"{rows}_{theirs}_grad_preds"].masked_fill(excluded, 0.0)
    assert_gradient_matches(gradient * scale, expected)


def test_noise_schedule(fixture: Fixture) -> None:
    for suffix, dtype, rtol in (("", torch.float32, 1e-4), ("_f64", torch.float64, 1e-12)):
        t = fixture["sched_t"].to(dtype)
        alpha, dalpha = fixture.schedule.alpha(t), fixture.schedule.dalpha(t)
        ours = {"sigma": fixture.schedule.sigma(t), "dsigma": -dalpha / alpha, "move_chance": 1 - alpha}
        for name, value in ours.items():
            torch.testing.assert_close(value, fixture[f"sched_{name}{suffix}"], rtol=rtol, atol=0)


def test_training_loss_and_its_gradients(fixture: Fixture) -> None:
    t, x0 = fixture["elbo_t"], fixture["elbo_x0"]
    p_mask = 1 - fixture.schedule.alpha(t.double())
    torch.testing.assert_close(p_mask, fixture["elbo_move_chance"].double(), rtol=1e-4, atol=0)
    xt = torch.where(fixture["elbo_uniform"] < p_mask[:, None], fixture.mask, x0)
    assert torch.equal(xt, fixture["elbo_xt"])
    torch.testing.assert_close(
        nelbo_weight(t.double(), fixture.schedule), fixture["elbo_weight"].double(), rtol=1e-4, atol=0
    )
    fixture.denoiser.zero_grad()
    is_masked = xt == fixture.mask
    log_p = masked_log_probs(fixture.denoiser(xt, at=is_masked), fixture.mask)
    token_losses = nelbo_per_token(log_p, x0, is_masked, t.double(), fixture.schedule)
    torch.testing.assert_close(token_losses, fixture["elbo_token_loss"], rtol=1e-4, atol=1e-5)
    loss = token_losses.mean()
    assert float(loss.detach()) == pytest.approx(float(fixture["elbo_mean_loss"]), rel=1e-4)
    loss.backward()
    assert grad_norm(fixture.denoiser) == pytest.approx(float(fixture["elbo_grad_norm"]), rel=1e-4)
    assert_gradient_matches(fixture.denoiser.output_layer.linear.bias.grad, fixture["elbo_grad_output_bias"])
    assert_gradient_matches(fixture.denoiser.blocks[0].attn_qkv.weight.grad, fixture["elbo_grad_qkv0"])
    fixture.denoiser.zero_grad()


def test_ancestral_posterior_and_draw(fixture: Fixture) -> None:
    """Their rows sum to m(t) at masked positions, ours to one. Visible tokens they copy, ours are certain."""
    x, t = fixture["anc_x"], fixture["anc_t"].double()
    log_p = fixture.log_p_x0(x)
    assert_log_probs_match(log_p, fixture["anc_logprobs"])
    posterior = fixture.posterior(log_p, x, t, t - fixture["anc_dt"])
    masked_at_t = (1 - fixture.schedule.alpha(t))[:, None, None]
    is_masked = x == fixture.mask
    torch.testing.assert_close(
        (posterior * masked_at_t)[is_masked], fixture["anc_q_xs"].double()[is_masked], atol=1e-5, rtol=0
    )
    assert torch.equal(fixture.draw(posterior, fixture["anc_uniform"]), fixture["anc_x_next"])


def test_a_step_beyond_time_zero_unmasks_everything_where_theirs_has_a_negative_probability(fixture: Fixture) -> None:
    x, t, dt = fixture["anc_x"], fixture["anc_edge_t"].double(), fixture["anc_dt"]
    assert (t < dt).all()
    log_p = fixture.log_p_x0(x)
    is_masked = x == fixture.mask
    theirs = fixture["anc_edge_q_xs"].double()
    # Theirs is p * (m(t) - m(s)) with s < 0, so the mask's m(s) is negative; ours stops at s = 0, where m is 0.
    m_t, m_s = (1 - fixture.schedule.alpha(time) for time in (t, t - dt))
    torch.testing.assert_close(theirs[..., fixture.mask], m_s[:, None].expand(x.shape), atol=1e-5, rtol=0)
    ours = fixture.posterior(log_p, x, t, t - dt)
    assert (ours[is_masked][:, fixture.mask] == 0).all()
    expected = ours * (m_t - m_s)[:, None, None]
    expected[..., fixture.mask] = m_s[:, None]
    torch.testing.assert_close(theirs[is_masked], expected[is_masked], atol=1e-5, rtol=0)


def test_last_denoising_step_takes_the_most_likely_token(fixture: Fixture) -> None:
    """We have no such step: our last one ends at time 0. Their argmax is that of our posterior there."""
    x = fixture["anc_x"]
    t = fixture["denoise_t"].double().expand(len(x))
    posterior = fixture.posterior(fixture.log_p_x0(x), x, t, torch.zeros_like(t))
    assert torch.equal(posterior.argmax(dim=-1), fixture["denoise_x"])


def test_sampler_loop(fixture: Fixture) -> None:
    """Their whole sampler, made of our SUBS and posterior: the same tokens after every step."""
    uniform = fixture["samp_uniform"]
    num_steps, batch_size, length, _ = uniform.shape
    times = torch.linspace(1, MIN_TIME, num_steps + 1, dtype=torch.float64)[:-1]
    torch.testing.assert_close(times, fixture["samp_t"].double(), rtol=1e-6, atol=1e-7)
    dt = (1 - MIN_TIME) / num_steps
    assert dt == pytest.approx(float(fixture["samp_dt"]), rel=1e-12)
    x = torch.full((batch_size, length), fixture.mask)
    num_calls = 0
    for t, u, expected in zip(times, uniform, fixture["samp_x"], strict=True):
        time = t.expand(batch_size)
        x = fixture.draw(fixture.posterior(fixture.log_p_x0(x), x, time, time - dt), u)
        num_calls += 1
        assert torch.equal(x, expected)
    if (x == fixture.mask).any():
        x = torch.where(x == fixture.mask, fixture.log_p_x0(x).argmax(dim=-1), x)
        num_calls += 1
    assert torch.equal(x, fixture["samp_final"])
    assert num_calls == int(fixture["samp_forward_calls"])


def published_teacher_times(t: Tensor, dt: float, num_teacher_steps: int) -> Tensor:
    """The times at which the authors' code evaluates its teacher, [num_teacher_steps, batch] (jdeschena/sdtt issue 2).

    With e the end of the last step it means a t + (1 - a) e for a from 1 to 0, and has (1 - t) in place of (1 - a).
    """
    end = t.double() - num_teacher_steps * dt
    a = torch.linspace(1, 0, num_teacher_steps, dtype=torch.float64)[:, None]
    return (a * t + (1 - t) * end).clamp(min=MIN_TIME)


@pytest.mark.parametrize("num_teacher_steps", [2, 4])
@pytest.mark.parametrize("num_steps", [1024, 16])
def test_their_teacher_times_are_not_the_even_ones(fixture: Fixture, num_steps: int, num_teacher_steps: int) -> None:
    t, dt = fixture["times_t"].double(), float(fixture[f"times_dt_{num_steps}"])
    assert dt == pytest.approx((1 - MIN_TIME) / num_steps, rel=1e-12)
    theirs = fixture[f"times_upstream_{num_steps}_k{num_teacher_steps}"].double()
    torch.testing.assert_close(published_teacher_times(t, dt, num_teacher_steps), theirs, rtol=1e-6, atol=1e-9)
    meant = t - torch.arange(num_teacher_steps)[:, None] * dt
    assert ((theirs - meant).abs() > 0.05).any()


@pytest.mark.parametrize("times", ["teach", "teacheven"])
def test_teacher_trajectory_and_target(fixture: Fixture, times: str) -> None:
    """The two ancestral steps at given times, and the target that our function makes of the same trajectory.

    `teach` has the authors' times, `teacheven` those the paper means, which are ours.
    """
    t, x0, dt = fixture["teach_t"].double(), fixture["teach_x0"], float(fixture["teach_dt"])
    assert dt == pytest.approx((1 - MIN_TIME) / 16, rel=1e-12)
    num_teacher_steps = int(fixture["teach_num_distill_steps"])
    p_mask = 1 - fixture.schedule.alpha(t)
    torch.testing.assert_close(p_mask, fixture["teach_move_chance"].double(), rtol=1e-4, atol=0)
    xt = torch.where(fixture["teach_qxt_uniform"] < p_mask[:, None], fixture.mask, x0)
    assert torch.equal(xt, fixture["teach_xt"])
    is_masked = xt == fixture.mask
    assert torch.equal(is_masked, fixture["teach_is_mask"])

    if times == "teach":
        ts = published_teacher_times(t, dt, num_teacher_steps)
    else:
        ts = t - torch.arange(num_teacher_steps)[:, None] * dt
    torch.testing.assert_close(ts, fixture[f"{times}_ts"].double(), rtol=1e-6, atol=1e-7)
    xs, trajectory = xt, []
    for i, time in enumerate(ts, start=1):
        posterior = fixture.posterior(fixture.log_p_x0(xs), xs, time, time - dt)
        xs = fixture.draw(posterior, fixture[f"teach_uniform_step{i}"])
        assert torch.equal(xs, fixture[f"{times}_x_step{i}"])
        trajectory.append(xs)

    # Uniform numbers with which our teacher takes the same first step: the second cannot change the target. Their
    # times are not ours, so for theirs the start is 1, from where both of our steps can be reached.
    unmasks_first = is_masked & (trajectory[0] != fixture.mask)
    start = t if times == "teacheven" else torch.ones_like(t)
    u_time = torch.where(unmasks_first, 1 - 2**-53, 0.0).double()
    p = fixture.log_p_x0(xt).double().exp()
    token = torch.where(unmasks_first, trajectory[0], 0)[..., None]
    u_token = (p.cumsum(dim=-1) - p / 2).gather(-1, token)[..., 0].clamp(min=0)
    target = sdtt_targets(
        fixture.denoiser.logits_at,
        TeacherSteps(dt, num_teacher_steps, fixture.schedule),
        xt,
        start,
        mask_token_id=fixture.mask,
        u_time=u_time,
        u_token=u_token,
    )
    assert_log_probs_match(target, fixture[f"{times}_target_masked"])


def test_distillation_loss_and_its_gradients(fixture: Fixture) -> None:
    """End to end, with the authors' target. The two distances of logarithms carry the mask column's rounding: 2 %."""
    target = fixture["teach_target_masked"]
    target = target.masked_fill(target < MASK_COLUMN_BELOW, -torch.inf)
    student, xt = fixture.student(), fixture["teach_xt"]
    for theirs, ours in DIVERGENCE_OF.items():
        student.zero_grad()
        log_p = masked_log_probs(student(xt, at=xt == fixture.mask), fixture.mask)
        assert_log_probs_match(log_p, fixture["sdtt_student_logprobs_masked"])
        total, count = sdtt_loss(log_p, target, DIVERGENCES[ours])
        loss = total / count
        scale = (log_p.shape[1] - 1) / log_p.shape[1] if theirs == "mse" else 1.0
        rtol = 2e-2 if theirs in ("mse", "tvd") else 1e-4
        for suffix in ("", "_prec64"):
            assert float(loss.detach()) * scale == pytest.approx(
                float(fixture[f"sdtt_loss_{theirs}{suffix}"]), rel=rtol
            )
        if theirs == "kl_bwd":
            loss.backward()
            assert grad_norm(student) == pytest.approx(float(fixture["sdtt_grad_norm"]), rel=1e-4)
            assert_gradient_matches(student.output_layer.linear.bias.grad, fixture["sdtt_grad_output_bias"])
            assert_gradient_matches(student.blocks[0].attn_qkv.weight.grad, fixture["sdtt_grad_qkv0"])


def test_no_array_is_left_out(fixture: Fixture, request: pytest.FixtureRequest) -> None:
    """Runs last; says nothing when only some of this file's tests were asked for."""
    functions = {name for name in globals() if name.startswith("test_")}
    if not functions <= {getattr(item, "originalname", "") for item in request.session.items}:
        pytest.skip("only some of the comparisons run")
    assert fixture.arrays.keys() - fixture.seen == set()
