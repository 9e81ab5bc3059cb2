import math

import pytest
import torch

from halfstep.diffusion.divergences import kl_student_teacher
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.model import Denoiser, DenoiserConfig
from halfstep.model.autoregressive import new_gpt2
from halfstep.training.objectives import (
    autoregressive_objective,
    distillation_objective,
    mean_loss,
    nelbo_objective,
)

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


def test_a_uniform_autoregressive_model_costs_log_v_per_scored_token(generator: torch.Generator) -> None:
    model = new_gpt2(vocab_size=9, length=6, hidden_size=8, num_blocks=1, num_heads=2, dropout=0.0)
    torch.nn.init.zeros_(model.transformer.wte.weight)
    total, count = autoregressive_objective()(model, torch.randint(8, (4, 6), generator=generator), generator)
    assert count == 4 * 5
    assert total.item() / count == pytest.approx(math.log(9), rel=1e-5)


def test_a_student_that_is_its_teacher_has_no_loss_when_one_step_is_all(generator: torch.Generator) -> None:
    """With dt = 1 the teacher's first step unmasks everything: its target is its prediction, as the student's."""
    teacher = Denoiser(CONFIG).eval()
    for parameter in teacher.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    objective = distillation_objective(
        teacher.logits_at,
        dt=1.0,
        num_teacher_steps=2,
        divergence=kl_student_teacher,
        schedule=SCHEDULE,
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
    losses = [mean_loss(objective, model, batches, seed=1) for _ in range(2)]
    assert losses[0] == losses[1] > 0
    assert model.training
