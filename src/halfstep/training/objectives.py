"""Losses as the loop wants them: (model, clean tokens, generator) -> (sum over terms, number of terms)."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from halfstep.diffusion.divergences import Divergence
from halfstep.diffusion.nelbo import nelbo_per_token
from halfstep.diffusion.noise import antithetic_times, mask_tokens
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.diffusion.subs import masked_log_probs
from halfstep.distillation import sdtt_loss, sdtt_targets
from halfstep.sampling import LogitsAt

Objective = Callable[[nn.Module, Tensor, torch.Generator], tuple[Tensor, int]]
"""The loss is the quotient; sums and counts let gradient accumulation divide once, by the whole batch's count."""


def _noised(
    x0: Tensor,
    *,
    schedule: LogLinearSchedule,
    min_time: float,
    mask_token_id: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """(xt, is_masked, t) at antithetic times; the chance of a mask is what the schedule says, in float64."""
    t = antithetic_times(x0.shape[0], min_time, generator=generator, device=x0.device)
    xt = mask_tokens(x0, schedule.alpha(t), mask_token_id, generator=generator)
    return xt, xt == mask_token_id, t


def nelbo_objective(*, schedule: LogLinearSchedule, min_time: float, mask_token_id: int) -> Objective:
    """The continuous-time negative ELBO of a denoiser, in nats per token (masked or not).

    Source: Sahoo et al. 2024, arXiv:2406.07524, Section 3.5, Eq. 11.
    """

    def objective(model: nn.Module, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
        xt, is_masked, t = _noised(
            x0, schedule=schedule, min_time=min_time, mask_token_id=mask_token_id, generator=generator
        )
        log_p = masked_log_probs(model(xt, at=is_masked), mask_token_id)
        return nelbo_per_token(log_p, x0, is_masked, t, schedule).sum(), x0.numel()

    return objective


def autoregressive_objective() -> Objective:
    """Negative log-likelihood of each token after the first, given those before it, in nats per token."""

    def objective(model: nn.Module, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
        logits = model(x0[:, :-1]).logits
        targets = x0[:, 1:]
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")
        return loss, targets.numel()

    return objective


def distillation_objective(
    teacher_logits_at: LogitsAt,
    *,
    dt: float,
    num_teacher_steps: int,
    divergence: Divergence,
    schedule: LogLinearSchedule,
    min_time: float,
    mask_token_id: int,
) -> Objective:
    """The SDTT loss of a student against its teacher, in the divergence's unit per masked token.

    Source: Deschenaux & Gulcehre 2024, arXiv:2410.21035v2, Algorithm 2.
    """

    def objective(student: nn.Module, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
        xt, is_masked, t = _noised(
            x0, schedule=schedule, min_time=min_time, mask_token_id=mask_token_id, generator=generator
        )
        u_time, u_token = torch.rand(2, *x0.shape, generator=generator, device=x0.device, dtype=torch.float64)
        target_log_p = sdtt_targets(
            teacher_logits_at,
            xt,
            t,
            dt=dt,
            num_teacher_steps=num_teacher_steps,
            mask_token_id=mask_token_id,
            schedule=schedule,
            u_time=u_time,
            u_token=u_token,
        )
        student_log_p = masked_log_probs(student(xt, at=is_masked), mask_token_id)
        return sdtt_loss(student_log_p, target_log_p, divergence)

    return objective


@torch.no_grad()
def mean_loss(objective: Objective, model: nn.Module, batches: Iterable[Tensor], *, seed: int) -> float:
    """The objective's mean over some batches, in evaluation mode, always with the same noise.

    Args:
        objective: which loss.
        model: whose loss; its mode is restored.
        batches: clean tokens, each int64 [batch, length].
        seed: of the noise.
    Returns:
        the loss per term.
    """
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    generator: torch.Generator | None = None
    for x0 in batches:
        generator = generator or torch.Generator(device=x0.device).manual_seed(seed)
        loss_sum, num_terms = objective(model, x0, generator)
        total += float(loss_sum)
        count += num_terms
    model.train(was_training)
    return total / max(count, 1)
