import copy
import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from halfstep.diffusion.categorical import draw_categorical
from halfstep.diffusion.divergences import kl_student_teacher
from halfstep.diffusion.noise import mask_tokens_at
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.diffusion.subs import masked_log_probs
from halfstep.model.config import DenoiserConfig
from halfstep.model.denoiser import Denoiser
from halfstep.model.gpt2 import new_gpt2
from halfstep.objectives.autoregressive import autoregressive_objective
from halfstep.objectives.nelbo import nelbo_objective
from halfstep.objectives.sdtt import sdtt_objective
from halfstep.objectives.teacher import Clock, TeacherSteps, own_states
from halfstep.training.parallel import ModelLoss
from halfstep.training.validation import mean_loss

SCHEDULE = LogLinearSchedule(1e-3)
CONFIG = DenoiserConfig(
    vocab_size=9, mask_token_id=8, length=6, hidden_size=8, num_blocks=1, num_heads=2, cond_dim=4, dropout=0.0,
    noise_epsilon=1e-3,
)  # fmt: skip


def test_a_uniform_denoiser_has_a_nelbo_of_log_v_per_token(generator: torch.Generator) -> None:
    """Times are antithetic over the batch, so 256 rows of 60 tokens leave a standard deviation of about 0.03."""
    objective = nelbo_objective(schedule=SCHEDULE, min_time=1e-3, mask_token_id=8)
    x0 = torch.randint(8, (256, 60), generator=generator)
    total, count = objective(Denoiser(CONFIG), x0, generator)
    assert count == x0.numel()
    assert total.item() / count == pytest.approx(math.log(8), abs=0.15)


def test_the_mean_over_noise_is_the_nll_averaged_over_orders(generator: torch.Generator) -> None:
    """A network whose logits depend on what is visible, against all 6 orders of writing 3 tokens.

    400 batches of 64 copies. Batches are independent, so five standard errors of their mean are a false alarm in
    6e-7 of seeds; what the schedule's epsilon takes off is below one of them.
    """
    weights = torch.randn(3, 3, 4, dtype=torch.float64, generator=generator)
    x0 = torch.tensor([1, 0, 2])

    def logits(xt: torch.Tensor) -> torch.Tensor:
        """Every visible token votes on every position; id 3 is the mask."""
        votes = sum(weights[i][xt[:, i].clamp(max=2)] * (xt[:, i] != 3)[:, None] for i in range(3))
        return torch.stack([votes * (position + 1) for position in range(3)], dim=1)

    def network(xt: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        return logits(xt)[at]

    by_order = []
    for order in itertools.permutations(range(3)):
        xt, nll = torch.full((1, 3), 3), 0.0
        for position in order:
            nll -= float(masked_log_probs(logits(xt)[0, position], 3)[x0[position]])
            xt[0, position] = x0[position]
        by_order.append(nll / 3)
    objective = nelbo_objective(schedule=SCHEDULE, min_time=1e-5, mask_token_id=3)
    losses = torch.tensor([float(objective(network, x0.expand(64, 3), generator)[0]) / 192 for _ in range(400)])
    standard_error = float(losses.std()) / 20
    assert standard_error < 0.02 * losses.mean()
    assert float(losses.mean()) == pytest.approx(sum(by_order) / 6, abs=5 * standard_error)


def test_a_uniform_autoregressive_model_costs_log_v_per_scored_token(generator: torch.Generator) -> None:
    model = new_gpt2(vocab_size=9, length=6, hidden_size=8, num_blocks=1, num_heads=2, dropout=0.0)
    torch.nn.init.zeros_(model.transformer.wte.weight)
    total, count = autoregressive_objective()(model, torch.randint(8, (4, 6), generator=generator), generator)
    assert count == 4 * 5
    assert total.item() / count == pytest.approx(math.log(9), rel=1e-5)


@pytest.mark.parametrize("number", [0, 2, 4])
def test_an_autoregressive_model_reads_as_many_tokens_as_it_should(number: int, generator: torch.Generator) -> None:
    """What a model sees, and which of its predictions count."""
    seen: list[torch.Tensor] = []

    def network(sequences: torch.Tensor, *, use_cache: bool, logits_to_keep: int) -> Any:
        seen.append(sequences)
        return SimpleNamespace(logits=torch.zeros(len(sequences), logits_to_keep, 9))

    x0 = torch.randint(8, (50, 6), generator=generator)
    is_known = torch.tensor([True, False, False, False, False, True])
    objective = autoregressive_objective([number], is_known=is_known, mask_token_id=8)
    total, count = objective(network, x0, generator)  # type: ignore[arg-type]
    (sequences,) = seen
    read, written = sequences[:, :6], sequences[:, 6:]
    assert torch.equal(written, x0[:, :-1])
    assert torch.equal(read[read != 8], x0[read != 8])
    assert ((read != 8).sum(dim=1) == number + 2).all()
    assert (read[:, is_known] != 8).all()
    # Every place has its turn.
    assert number == 0 or (read != 8).any(dim=0).all()
    assert float(total) == pytest.approx(count * math.log(9))
    assert count == 50 * 5


def test_a_student_that_is_its_teacher_has_no_loss_when_one_step_is_all(generator: torch.Generator) -> None:
    """With dt = 1 the teacher's first step unmasks everything: its target is its prediction, as the student's."""
    teacher = Denoiser(CONFIG).eval()
    for parameter in teacher.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    objective = sdtt_objective(
        teacher.logits_at,
        TeacherSteps(1.0, 2, SCHEDULE),
        divergence=kl_student_teacher,
        min_time=1e-5,
        mask_token_id=8,
    )
    x0 = torch.randint(8, (16, 6), generator=generator)
    total, count = objective(teacher, x0, generator)
    assert count > 0
    assert total.item() / count == pytest.approx(0, abs=1e-6)


def test_the_mean_loss_is_repeatable_and_leaves_the_mode(generator: torch.Generator) -> None:
    model = Denoiser(CONFIG).train()
    objective = nelbo_objective(schedule=SCHEDULE, min_time=1e-3, mask_token_id=8)
    batches = [torch.randint(8, (4, 6), generator=generator) for _ in range(2)]
    losses = [mean_loss(objective, ModelLoss(model), batches, num_parts=1, seed=1) for _ in range(2)]
    assert losses[0] == losses[1] > 0
    # Five parts of four rows: one of them has none.
    in_parts = mean_loss(objective, ModelLoss(model), batches, num_parts=5, seed=1)
    assert in_parts == pytest.approx(losses[0], rel=1e-6)
    assert model.training


@pytest.mark.parametrize("kind", ["nelbo", "autoregressive", "distillation"])
def test_parts_of_a_batch_add_up_to_the_whole(kind: str, generator: torch.Generator) -> None:
    """The same noise in one go and in parts: sums and gradients to float32 rounding, counts exactly."""
    model = Denoiser(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    common = {"schedule": SCHEDULE, "min_time": 1e-3, "mask_token_id": 8}
    if kind == "nelbo":
        objective = nelbo_objective(**common)
    elif kind == "distillation":
        teacher = copy.deepcopy(model).eval()
        torch.nn.init.normal_(teacher.head.weight, std=0.3, generator=generator)
        common.pop("schedule")
        objective = sdtt_objective(teacher, TeacherSteps(0.2, 2, SCHEDULE), divergence=kl_student_teacher, **common)
    else:
        model = new_gpt2(vocab_size=9, length=6, hidden_size=8, num_blocks=1, num_heads=2, dropout=0.0)
        objective = autoregressive_objective()
    x0 = torch.randint(8, (12, 6), generator=generator)
    inputs = x0, *objective.draw(x0.shape, generator)

    def computed(num_parts: int) -> tuple[float, int, list[torch.Tensor]]:
        model.zero_grad()
        parts = [objective.loss(model, *(tensor[k::num_parts] for tensor in inputs)) for k in range(num_parts)]
        total = sum(loss for loss, _ in parts)
        total.backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        return float(total.detach()), sum(count for _, count in parts), gradients

    total, count, gradients = computed(1)
    assert count > 20
    for num_parts in (2, 3, 12):
        other_total, other_count, others = computed(num_parts)
        assert other_count == count
        assert other_total == pytest.approx(total, rel=1e-5)
        for a, b in zip(gradients, others, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("clock", ["even", "cosine"])
def test_own_states_are_what_a_student_writes_in_steps_to_the_same_masks(
    clock: Clock, generator: torch.Generator
) -> None:
    """Against a loop over rows, steps and positions, by the same numbers."""
    student = Denoiser(CONFIG).eval()
    for parameter in student.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    x0 = torch.randint(8, (20, 6), generator=generator)
    t = torch.rand(20, dtype=torch.float64, generator=generator)
    u_mask, u_token = torch.rand(2, 20, 6, dtype=torch.float64, generator=generator)
    common = {"clock": clock, "schedule": SCHEDULE, "mask_token_id": 8}
    found = own_states(student, x0, t, u_mask, u_token, num_steps=3, **common)
    assert torch.equal(found == 8, mask_tokens_at(x0, SCHEDULE.alpha(t), 8, u_mask) == 8)
    expected = torch.full_like(x0, 8)
    for row, xs in enumerate(expected):
        for end in (0, 5):
            if u_mask[row, end] < SCHEDULE.alpha(t[row]):
                xs[end] = x0[row, end]
        for i in (1, 2, 3):
            until = 1 - (1 - t[row]) * i / 3 if clock == "even" else (t[row].acos() * i / 3).cos()
            log_p = masked_log_probs(student(xs[None])[0], 8)
            for place in range(6):
                if xs[place] == 8 and u_mask[row, place] < SCHEDULE.alpha(until):
                    xs[place] = draw_categorical(log_p[place], u_token[row, place])
    assert torch.equal(found, expected)
    objective = sdtt_objective(
        student, TeacherSteps(0.2, 2, SCHEDULE, clock), divergence=kl_student_teacher, min_time=1e-3, mask_token_id=8,
        num_own_steps=3,
    )  # fmt: skip
    inputs = objective.draw(x0.shape, generator)
    total, count = objective.loss(student, x0, *inputs)
    assert count > 0
    # Of the data nothing but its ends is seen.
    other = x0.clone()
    other[:, 1:-1] = 7 - other[:, 1:-1]
    assert objective.loss(student, other, *inputs) == (total, count)


@pytest.mark.parametrize("clock", ["even", "cosine"])
def test_a_teacher_is_asked_at_the_times_at_which_its_steps_begin(clock: Clock, generator: torch.Generator) -> None:
    """No model of ours is conditioned on time; one that is would be asked so."""
    teacher, times = Denoiser(CONFIG).eval(), []
    hidden_at = teacher.hidden_at

    def recorded(xt: torch.Tensor, at: torch.Tensor, *, t: torch.Tensor, **more: Any) -> torch.Tensor:
        times.append(t)
        return hidden_at(xt, at, **more)

    teacher.hidden_at = recorded  # type: ignore[method-assign, assignment]
    t = 0.5 + torch.rand(40, dtype=torch.float64, generator=generator) / 2
    xs = torch.full((40, 6), 8)
    u_time = torch.rand(40, 6, dtype=torch.float64, generator=generator)
    steps = [
        (taken.rows, xs.masked_fill_(taken.writes, 0))
        for taken in TeacherSteps(0.2, 3, SCHEDULE, clock).taken(teacher, xs, 8, t, u_time)
    ]
    assert len(steps) == len(times) == 3
    for before, ((rows, _), found) in enumerate(zip(steps, times, strict=True)):
        begun = t - 0.2 * before if clock == "even" else (t.acos() + math.pi / 2 * 0.2 * before).cos()
        torch.testing.assert_close(found, begun[rows].clamp(min=0))
