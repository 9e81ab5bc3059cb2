"""Losses as the loop wants them: (model, clean tokens, generator) -> (sum over terms, number of terms)."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from halfstep.diffusion.divergences import Divergence
from halfstep.diffusion.nelbo import nelbo_weight, weighted_cross_entropy
from halfstep.diffusion.noise import antithetic_times, mask_tokens
from halfstep.diffusion.projection import Terms, chunks, projected_loss, rows_per_chunk
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.diffusion.subs import exclude_mask
from halfstep.distillation import sdtt_loss, sdtt_target_chunks
from halfstep.sampling import LogitsAt, Predictor

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


def _masked_loss(model: nn.Module, xt: Tensor, is_masked: Tensor, mask_token_id: int, terms: Terms) -> Tensor:
    """Sum of losses of the logits at the masked positions, which a model in two parts makes as the terms need them."""
    if isinstance(model, Predictor):
        bias = exclude_mask(model.head.bias, mask_token_id)
        return projected_loss(model.hidden_at(xt, is_masked), model.head.weight, bias, terms)
    logits = exclude_mask(model(xt, at=is_masked), mask_token_id)
    return sum((loss_of(logits[rows]) for rows, loss_of in terms), logits[:0].sum())


def _row_chunks(model: nn.Module, num_rows: int, device: torch.device) -> Iterator[Tensor]:
    """Rows 0..num_rows - 1, as many at once as memory should hold; all of them where a model makes them all anyway."""
    size = rows_per_chunk(model.head.out_features, device) if isinstance(model, Predictor) else max(num_rows, 1)
    return chunks(num_rows, size, device)


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.log_softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def nelbo_objective(*, schedule: LogLinearSchedule, min_time: float, mask_token_id: int) -> Objective:
    """The continuous-time negative ELBO of a denoiser, in nats per token (masked or not).

    Source: Sahoo et al. 2024, arXiv:2406.07524, Section 3.5, Eq. 11.
    """

    def objective(model: nn.Module, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
        xt, is_masked, t = _noised(
            x0, schedule=schedule, min_time=min_time, mask_token_id=mask_token_id, generator=generator
        )
        targets = x0[is_masked]
        weight = nelbo_weight(t, schedule)[:, None].expand(x0.shape)[is_masked]

        def term(rows: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            return rows, lambda logits: weighted_cross_entropy(_log_softmax(logits), targets[rows], weight[rows]).sum()

        terms = map(term, _row_chunks(model, len(targets), x0.device))
        return _masked_loss(model, xt, is_masked, mask_token_id, terms), x0.numel()

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
    teacher: LogitsAt | Predictor,
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
        targets = sdtt_target_chunks(
            teacher,
            xt,
            t,
            dt=dt,
            num_teacher_steps=num_teacher_steps,
            mask_token_id=mask_token_id,
            schedule=schedule,
            u_time=u_time,
            u_token=u_token,
        )

        def term(rows: Tensor, target_log_p: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            return rows, lambda logits: sdtt_loss(_log_softmax(logits), target_log_p, divergence)[0]

        terms = (term(rows, target_log_p) for rows, target_log_p in targets)
        return _masked_loss(student, xt, is_masked, mask_token_id, terms), int(is_masked.sum())

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
