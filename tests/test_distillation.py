"""SDTT targets and loss against enumeration and closed forms."""

import itertools

import pytest
import torch

from halfstep.diffusion.divergences import DIVERGENCES, kl_student_teacher, kl_teacher_student
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.diffusion.subs import masked_log_probs
from halfstep.distillation import sdtt_loss, sdtt_targets, teacher_step_size, teacher_unmask_steps

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
        xt,
        t,
        dt=dt,
        num_teacher_steps=num_teacher_steps,
        mask_token_id=MASK,
        schedule=SCHEDULE,
        u_time=u_time,
        u_token=u_token,
    )


def test_a_round_doubles_the_step_and_stops_at_one_step() -> None:
    assert [teacher_step_size(k, 1024, 2) for k in (1, 2, 7, 10)] == [1 / 1024, 2 / 1024, 64 / 1024, 0.5]
    with pytest.raises(ValueError, match="round 11"):
        teacher_step_size(11, 1024, 2)


def test_teacher_steps_sit_at_t_and_t_minus_dt() -> None:
    """A position still masked at s given masked at t has u below m(s) / m(t) = s / t."""
    t = torch.tensor([0.8], dtype=torch.float64)
    u = torch.tensor([[0.0, 0.249, 0.251, 0.499, 0.501, 0.749, 0.751, 0.999]], dtype=torch.float64)
    steps = teacher_unmask_steps(u, t, dt=0.2, num_teacher_steps=3, schedule=SCHEDULE)
    assert steps.tolist() == [[4, 4, 3, 3, 2, 2, 1, 1]]


def test_a_step_beyond_time_zero_unmasks_everything() -> None:
    u = torch.tensor([[0.0, 0.5, 1 - 2**-53]], dtype=torch.float64)
    t = torch.tensor([0.1], dtype=torch.float64)
    assert teacher_unmask_steps(u, t, dt=0.2, num_teacher_steps=2, schedule=SCHEDULE).tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("num_teacher_steps", [2, 3])
def test_mean_target_is_that_of_the_enumerated_teacher_trajectories(table, num_teacher_steps: int) -> None:
    """Expected target of each position over everything the teacher can do from two masks.

    20,000 trajectories; entries lie within a range below 5, so their mean has a standard deviation below
    0.5 * 5 / sqrt(20,000) = 0.018; four of them at each of four entries: a false alarm in below 3e-4 of seeds.
    """
    t, dt, num = 0.9, 0.25, 20_000
    step_times = [max(t - i * dt, 0.0) for i in range(num_teacher_steps + 1)]

    def expect(xt: tuple[int, ...], i: int, fixed: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Expected targets from teacher step i on."""
        log_p = masked_log_probs(table[xt], MASK)
        masked = [position for position in range(LENGTH) if xt[position] == MASK]
        if i == num_teacher_steps - 1 or not masked:
            return {**fixed, **{position: log_p[position] for position in masked}}
        stays = step_times[i + 1] / step_times[i]
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
                for position, target in expect(tuple(xs), i + 1, now).items():
                    total[position] = total[position] + probability * target.nan_to_num(neginf=0.0)
        return total

    exact = expect((MASK, MASK), 0, {})
    g = torch.Generator().manual_seed(2)
    u_time, u_token = torch.rand(2, num, LENGTH, dtype=torch.float64, generator=g)
    xt = torch.full((num, LENGTH), MASK)
    targets = _targets(
        _logits_at(table),
        xt,
        torch.full((num,), t, dtype=torch.float64),
        u_time,
        u_token,
        dt,
        num_teacher_steps,
    )
    mean = targets.view(num, LENGTH, VOCAB)[..., :MASK].mean(0)
    for position in range(LENGTH):
        torch.testing.assert_close(mean[position], exact[position][:MASK], atol=4 * 0.018, rtol=0)


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


def test_nothing_masked_is_no_target_and_a_loss_of_zero(table) -> None:
    xt = torch.tensor([[0, 1]])
    u = torch.zeros(1, 2, dtype=torch.float64)
    targets = _targets(_logits_at(table), xt, torch.tensor([0.1], dtype=torch.float64), u, u)
    assert targets.shape == (0, VOCAB)
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


def test_forward_kl_is_minimised_by_the_mean_and_reverse_kl_by_the_geometric_mean() -> None:
    targets = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]], dtype=torch.float64)
    mean = targets.mean(0)
    geometric = targets.log().mean(0).softmax(0)
    for divergence, best in ((kl_teacher_student, mean), (kl_student_teacher, geometric)):
        logits = best.log().clone().requires_grad_()
        total, _ = sdtt_loss(logits.log_softmax(0).expand(2, 3), targets.log(), divergence)
        (gradient,) = torch.autograd.grad(total, logits)
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)
