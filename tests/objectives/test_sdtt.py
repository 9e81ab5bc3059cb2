"""SDTT targets and loss against enumeration and closed forms."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.objectives.targets import sdtt_targets

from halfstep.diffusion.divergences import DIVERGENCES, kl_student_teacher
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.diffusion.subs import masked_log_probs
from halfstep.model.denoiser import Denoiser
from halfstep.objectives.sdtt import sdtt_loss
from halfstep.objectives.teacher import TeacherSteps, costs, teacher_step_size

SCHEDULE = LogLinearSchedule(1e-3)
VOCAB, MASK, LENGTH = 3, 2, 2


@pytest.fixture
def table(generator: torch.Generator) -> dict[tuple[int, ...], torch.Tensor]:
    """A teacher of fixed logits for every partly masked pair of tokens."""
    return {
        xt: torch.randn(LENGTH, VOCAB, dtype=torch.float64, generator=generator)
        for xt in itertools.product(range(VOCAB), repeat=LENGTH)
    }


def _logits_at(table, log=None):
    def logits_at(xt: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        if log is not None:
            log.append(xt.clone())
        return torch.stack([table[tuple(row)] for row in xt.tolist()])[at]

    return logits_at


def _targets(logits_at, xt, t, u_time, u_token, dt=0.25, num_teacher_steps=2):
    return sdtt_targets(
        logits_at,
        TeacherSteps(dt, num_teacher_steps, SCHEDULE),
        xt,
        t,
        mask_token_id=MASK,
        u_time=u_time,
        u_token=u_token,
    )


def test_a_round_doubles_the_step_and_stops_at_one_step() -> None:
    assert [teacher_step_size(k, 1024, 2) for k in (1, 2, 7, 10)] == [1 / 1024, 2 / 1024, 64 / 1024, 0.5]
    assert teacher_step_size(2, 9, 3) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="round 11 with 2 teacher steps needs base_num_steps of at least 2048"):
        teacher_step_size(11, 1024, 2)
    with pytest.raises(ValueError, match="round 0 with 2 teacher steps needs base_num_steps of at least 2"):
        teacher_step_size(0, 1024, 2)


def test_teacher_steps_sit_at_t_and_t_minus_dt() -> None:
    """A position still masked at s given masked at t has u below m(s) / m(t) = s / t."""
    t = torch.tensor([0.8], dtype=torch.float64)
    u = torch.tensor([[0.0, 0.249, 0.251, 0.499, 0.501, 0.749, 0.751, 0.999]], dtype=torch.float64)
    steps = TeacherSteps(0.2, 3, SCHEDULE).unmask_steps(u, t)
    assert steps.tolist() == [[4, 4, 3, 3, 2, 2, 1, 1]]


def test_a_step_that_ends_at_time_zero_leaves_nothing_masked() -> None:
    t = torch.tensor([0.25], dtype=torch.float64)
    u = torch.tensor([[0.0]], dtype=torch.float64)
    assert TeacherSteps(0.25, 2, SCHEDULE).unmask_steps(u, t).tolist() == [[1]]


def test_what_no_teacher_step_unmasks_is_one_step_later() -> None:
    t = torch.tensor([1.0, 0.5], dtype=torch.float64)
    u = torch.zeros(2, 1, dtype=torch.float64)
    assert TeacherSteps(0.1, 2, SCHEDULE).unmask_steps(u, t).tolist() == [[3], [3]]


@pytest.mark.parametrize("num_teacher_steps", [2, 3])
@pytest.mark.parametrize("min_time", [1e-5, 0.3])
def test_what_a_teacher_evaluates_is_the_mean_over_times_and_numbers(num_teacher_steps: int, min_time: float) -> None:
    """`TeacherSteps.unmask_steps` on a fine grid of times and of uniform numbers, where nothing is left to chance.

    A step unmasks nothing of a sequence of n tokens with the nth power of the chance that it leaves one alone. The
    grids leave errors below 1e-3.
    """
    length, schedule = 5, LogLinearSchedule(0.1)
    t = min_time + (1 - min_time) * (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    u = ((torch.arange(2000, dtype=torch.float64) + 0.5) / 2000).expand(len(t), -1)
    step = TeacherSteps(0.2, num_teacher_steps, schedule).unmask_steps(u, t)
    masked = 1 - schedule.alpha(t)
    settings = SimpleNamespace(
        own=SimpleNamespace(clock="even", positions="random"),
        min_time=min_time,
        base_num_steps=5,
        num_teacher_steps=num_teacher_steps,
    )  # fmt: skip
    passes = costs(settings, 1, schedule, length, 4).passes
    for i, (evaluated, unmasking) in enumerate(passes, start=1):
        chance = masked * (step.clamp(max=num_teacher_steps) == i).double().mean(dim=1)
        assert unmasking == pytest.approx(chance.mean().item(), abs=1e-3)
        assert evaluated == pytest.approx((1 - (1 - chance) ** length).mean().item(), abs=1e-3)
    assert sum(unmasking for _, unmasking in passes) == pytest.approx(0.9 * (1 + min_time) / 2)


def test_targets_carry_no_gradient_to_the_teacher(published: Path) -> None:
    teacher = Denoiser.from_pretrained(published)
    xt = torch.full((1, 4), teacher.config.mask_token_id)
    u = torch.full((1, 4), 0.5, dtype=torch.float64)
    targets = sdtt_targets(
        teacher.logits_at,
        TeacherSteps(0.25, 2, SCHEDULE),
        xt,
        torch.tensor([0.5], dtype=torch.float64),
        mask_token_id=teacher.config.mask_token_id,
        u_time=u,
        u_token=u,
    )
    assert not targets.requires_grad
    assert teacher(xt).requires_grad


def test_a_step_beyond_time_zero_unmasks_everything() -> None:
    u = torch.tensor([[0.0, 0.5, 1 - 2**-53]], dtype=torch.float64)
    t = torch.tensor([0.1], dtype=torch.float64)
    assert TeacherSteps(0.2, 2, SCHEDULE).unmask_steps(u, t).tolist() == [[1, 1, 1]]


def _enumerated(table, t: float, dt: float, num_teacher_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Everything the teacher can do from two masks: probabilities [m], and our targets for each, [m, LENGTH, VOCAB].

    A position is decided by the step in which it unmasks and by its token, which only matters if another position
    is still masked then. Uniform numbers that stand for each case go through our own function.
    """
    ends = [max(t - i * dt, 0.0) / t for i in range(num_teacher_steps + 1)]
    # Step i has the numbers between ends[i] and ends[i - 1]; below the last end nothing unmasks.
    cases = [(i, (ends[i] + ends[i - 1]) / 2, ends[i - 1] - ends[i]) for i in range(1, num_teacher_steps + 1)]
    if ends[-1] > 0:
        cases.append((num_teacher_steps + 1, ends[-1] / 2, ends[-1]))
    probabilities, u_times, u_tokens = [], [], []
    for (i, u_i, p_i), (j, u_j, p_j) in itertools.product(cases, repeat=2):
        for tokens in itertools.product(range(MASK), repeat=LENGTH):
            first, second = (0, 1) if i <= j else (1, 0)
            p_rows = [masked_log_probs(table[MASK, MASK], MASK).exp()] * LENGTH
            xt = [MASK, MASK]
            if i != j:
                xt[first] = tokens[first]
                p_rows[second] = masked_log_probs(table[tuple(xt)], MASK).exp()
            probability, u_token = p_i * p_j, [0.0, 0.0]
            for position, token in enumerate(tokens):
                row = p_rows[position][position]
                probability *= float(row[token])
                u_token[position] = float(row[:token].sum() + row[token] / 2)
            probabilities.append(probability)
            u_times.append([u_i, u_j])
            u_tokens.append(u_token)
    num = len(probabilities)
    targets = _targets(
        _logits_at(table),
        torch.full((num, LENGTH), MASK),
        torch.full((num,), t, dtype=torch.float64),
        torch.tensor(u_times, dtype=torch.float64),
        torch.tensor(u_tokens, dtype=torch.float64),
        dt,
        num_teacher_steps,
    )
    return torch.tensor(probabilities, dtype=torch.float64), targets.view(num, LENGTH, VOCAB)


def _expected_target(
    table, xt: tuple[int, ...], times: list[float], fixed: dict[int, torch.Tensor]
) -> dict[int, torch.Tensor]:
    """Expected target by position, from the definition: one teacher step after the other, all outcomes of each."""
    log_p = masked_log_probs(table[xt], MASK)
    masked = [position for position in range(LENGTH) if xt[position] == MASK]
    if len(times) == 2 or not masked:
        return {**fixed, **{position: log_p[position] for position in masked}}
    stays = times[1] / times[0]
    total = {position: torch.zeros(VOCAB, dtype=torch.float64) for position in range(LENGTH)}
    for outcome in itertools.product(range(VOCAB), repeat=len(masked)):
        probability, xs, now = 1.0, list(xt), dict(fixed)
        for position, token in zip(masked, outcome, strict=True):
            if token == MASK:
                probability *= stays
            else:
                probability *= (1 - stays) * float(log_p[position, token].exp())
                xs[position] = token
                now[position] = log_p[position]
        if probability:
            for position, target in _expected_target(table, tuple(xs), times[1:], now).items():
                total[position] = total[position] + probability * target.nan_to_num(neginf=0.0)
    return total


@pytest.mark.parametrize(
    ("t", "dt", "num_teacher_steps"), [(0.9, 0.25, 2), (0.9, 0.25, 3), (0.3, 0.25, 2), (1.0, 0.5, 2)]
)
def test_the_expected_target_is_that_of_the_enumerated_teacher_trajectories(
    table, t: float, dt: float, num_teacher_steps: int
) -> None:
    """Exactly, also where the second step would go beyond time 0 and where everything unmasks."""
    probabilities, targets = _enumerated(table, t, dt, num_teacher_steps)
    assert float(probabilities.sum()) == pytest.approx(1, rel=1e-12)
    mean = (probabilities[:, None, None] * targets[..., :MASK]).sum(0)
    times = [max(t - i * dt, 0.0) for i in range(num_teacher_steps + 1)]
    exact = _expected_target(table, (MASK, MASK), times, {})
    for position in range(LENGTH):
        torch.testing.assert_close(mean[position], exact[position][:MASK], rtol=1e-10, atol=1e-12)


def test_random_trajectories_average_to_the_enumerated_target(table) -> None:
    """The same with real uniform numbers.

    20,000 trajectories; entries lie within a range below 5, so their mean has a standard deviation below
    0.5 * 5 / sqrt(20,000) = 0.018; four of them at each of four entries: a false alarm in below 3e-4 of seeds.
    """
    num = 20_000
    exact = _expected_target(table, (MASK, MASK), [0.9, 0.65, 0.4], {})
    u_time, u_token = torch.rand(2, num, LENGTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    xt = torch.full((num, LENGTH), MASK)
    t = torch.full((num,), 0.9, dtype=torch.float64)
    mean = _targets(_logits_at(table), xt, t, u_time, u_token).view(num, LENGTH, VOCAB)[..., :MASK].mean(0)
    for position in range(LENGTH):
        torch.testing.assert_close(mean[position], exact[position][:MASK], atol=4 * 0.018, rtol=0)


@pytest.mark.parametrize("name", ["kl_teacher_student", "kl_student_teacher"])
def test_the_best_student_is_the_teachers_mean_arithmetic_or_geometric(table, name: str) -> None:
    """Minimise the expected loss over everything the teacher can do, by L-BFGS from a uniform student.

    The forward KL wants the arithmetic mean of the teacher's predictions, the reverse KL their normalised geometric
    mean, at each position; both losses are convex in the one probability that a position has.
    """
    probabilities, targets = _enumerated(table, 0.9, 0.25, 2)
    weight = probabilities[:, None, None]
    if name == "kl_teacher_student":
        best = (weight * targets[..., :MASK].exp()).sum(0)
    else:
        best = (weight * targets[..., :MASK]).sum(0).softmax(-1)
    logits = torch.zeros(LENGTH, VOCAB, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        student = masked_log_probs(logits, MASK)
        return sum(
            p * sdtt_loss(student, target, DIVERGENCES[name])[0]
            for p, target in zip(probabilities, targets, strict=True)
        )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    torch.testing.assert_close(logits.detach()[:, :MASK].softmax(-1), best, atol=1e-6, rtol=0)


def test_targets_come_in_the_order_of_the_masked_positions(table) -> None:
    """Position 1 unmasks in step 1, position 0 after it: its target knows what position 1 became."""
    xt = torch.tensor([[MASK, MASK], [1, MASK]])
    t = torch.tensor([0.9, 0.9], dtype=torch.float64)
    u_time = torch.tensor([[0.0, 0.99], [0.5, 0.99]], dtype=torch.float64)
    u_token = torch.full((2, 2), 1 - 2**-53, dtype=torch.float64)
    targets = _targets(_logits_at(table), xt, t, u_time, u_token)
    expected = [table[MASK, 1][0], table[MASK, MASK][1], table[1, MASK][1]]
    torch.testing.assert_close(targets, masked_log_probs(torch.stack(expected), MASK))
    assert xt.tolist() == [[MASK, MASK], [1, MASK]]


def test_the_teacher_is_not_asked_for_sequences_that_need_nothing(table) -> None:
    asked: list[torch.Tensor] = []
    xt = torch.tensor([[MASK, MASK], [MASK, MASK]])
    u_time = torch.tensor([[0.0, 0.0], [0.99, 0.99]], dtype=torch.float64)
    t = torch.tensor([0.9, 0.9], dtype=torch.float64)
    _targets(_logits_at(table, asked), xt, t, u_time, torch.zeros(2, 2, dtype=torch.float64))
    assert [len(rows) for rows in asked] == [1, 1]


def test_where_nothing_unmasks_in_the_first_step_the_second_still_teaches(table) -> None:
    asked: list[torch.Tensor] = []
    xt = torch.tensor([[MASK, 0], [1, MASK]])
    u_time = torch.full((2, 2), 0.5, dtype=torch.float64)
    t = torch.tensor([0.9, 0.9], dtype=torch.float64)
    targets = _targets(_logits_at(table, asked), xt, t, u_time, torch.zeros(2, 2, dtype=torch.float64))
    torch.testing.assert_close(targets, masked_log_probs(torch.stack([table[MASK, 0][0], table[1, MASK][1]]), MASK))
    assert [len(rows) for rows in asked] == [2]


def test_tokens_beyond_the_mask_are_visible_and_have_no_target() -> None:
    """The mask in the middle of the vocabulary."""
    asked: list[torch.Tensor] = []
    table = {xt: torch.zeros(LENGTH, VOCAB, dtype=torch.float64) for xt in itertools.product(range(VOCAB), repeat=2)}
    u = torch.full((1, 2), 0.99, dtype=torch.float64)
    targets = sdtt_targets(
        _logits_at(table, asked),
        TeacherSteps(0.25, 2, SCHEDULE),
        torch.tensor([[1, 2]]),
        torch.tensor([0.5], dtype=torch.float64),
        mask_token_id=1,
        u_time=u,
        u_token=u,
    )
    torch.testing.assert_close(targets.exp(), torch.tensor([[0.5, 0.0, 0.5]], dtype=torch.float64))


def test_nothing_masked_is_no_target_and_a_loss_of_zero(table) -> None:
    asked: list[torch.Tensor] = []
    xt = torch.tensor([[0, 1], [1, 1]])
    u = torch.zeros(2, 2, dtype=torch.float64)
    t = torch.tensor([0.1, 0.2], dtype=torch.float64)
    targets = _targets(_logits_at(table, asked), xt, t, u, u)
    assert targets.shape == (0, VOCAB)
    assert [len(rows) for rows in asked] == [1]
    student = torch.zeros(0, VOCAB, requires_grad=True)
    total, count = sdtt_loss(student, targets, kl_student_teacher)
    assert count == 0
    assert total.item() == 0
    total.backward()
    assert student.grad is not None


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_student_equal_to_a_teacher_that_ignores_context_has_no_loss(name: str) -> None:
    """Such a teacher is exact in one step, whatever it draws."""
    row = torch.randn(LENGTH, VOCAB, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    table = dict.fromkeys(itertools.product(range(VOCAB), repeat=LENGTH), row)
    xt = torch.full((8, LENGTH), MASK)
    u_time, u_token = torch.rand(2, 8, LENGTH, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    t = torch.full((8,), 0.9, dtype=torch.float64)
    targets = _targets(_logits_at(table), xt, t, u_time, u_token)
    student = masked_log_probs(row.repeat(8, 1), MASK)
    total, count = sdtt_loss(student, targets, DIVERGENCES[name])
    assert count == 16
    assert float(total) == pytest.approx(0, abs=1e-12)
