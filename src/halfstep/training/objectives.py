"""Losses as the loop wants them: a batch's randomness first, then sum and number of terms of any part of it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from halfstep import ranks
from halfstep.diffusion.divergences import Divergence
from halfstep.diffusion.nelbo import nelbo_weight, weighted_cross_entropy
from halfstep.diffusion.noise import antithetic_times, mask_tokens_at
from halfstep.diffusion.projection import Terms, chunks, projected_loss, rows_per_chunk
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.diffusion.subs import exclude_mask
from halfstep.distillation import sdtt_loss, sdtt_target_chunks
from halfstep.sampling import LogitsAt, Predictor


@dataclass(frozen=True)
class Objective:
    """A loss: the quotient of a sum over terms and their number.

    Randomness is drawn for a whole batch, which is then computed in one go or in parts, by one process or by several,
    each of which reads only its part of the data: that changes neither the noise nor, sums and counts being added
    before they are divided, the loss.

    Attributes:
        draw: (the shape of a batch [batch, length], generator) -> tensors of `batch` rows each, all the randomness
            that the loss needs.
        loss: (model, x0 int64 [batch, length], those tensors; or the same rows of each) -> (sum over terms, number of
            terms).
    """

    draw: Callable[[Sequence[int], torch.Generator], tuple[Tensor, ...]]
    loss: Callable[..., tuple[Tensor, int]]

    def __call__(self, model: nn.Module, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
        """(sum over terms, number of terms) of a whole batch."""
        return self.loss(model, x0, *self.draw(x0.shape, generator))


def _uniforms(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)


def _noise(shape: Sequence[int], min_time: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(antithetic times t [batch], the uniform numbers [batch, length] that say which tokens are masked then)."""
    t = antithetic_times(shape[0], min_time, generator=generator, device=generator.device)
    return t, _uniforms(shape, generator)


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

    def draw(shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
        return _noise(shape, min_time, generator)

    def loss(model: nn.Module, x0: Tensor, t: Tensor, u_mask: Tensor) -> tuple[Tensor, int]:
        xt = mask_tokens_at(x0, schedule.alpha(t), mask_token_id, u_mask)
        is_masked = xt == mask_token_id
        targets = x0[is_masked]
        weight = nelbo_weight(t, schedule)[:, None].expand(x0.shape)[is_masked]

        def term(rows: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            return rows, lambda logits: weighted_cross_entropy(_log_softmax(logits), targets[rows], weight[rows]).sum()

        terms = map(term, _row_chunks(model, len(targets), x0.device))
        return _masked_loss(model, xt, is_masked, mask_token_id, terms), x0.numel()

    return Objective(draw, loss)


def autoregressive_objective() -> Objective:
    """Negative log-likelihood of each token after the first, given those before it, in nats per token."""

    def loss(model: nn.Module, x0: Tensor) -> tuple[Tensor, int]:
        # Keys and values of earlier tokens are for those who write the next one.
        logits = model(x0[:, :-1], use_cache=False).logits
        targets = x0[:, 1:]
        total = nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")
        return total, targets.numel()

    return Objective(lambda shape, generator: (), loss)


def distillation_objective(
    teacher: LogitsAt | Predictor,
    *,
    dt: float,
    num_teacher_steps: int,
    divergence: Divergence,
    schedule: LogLinearSchedule,
    min_time: float,
    mask_token_id: int,
    asks_in_every_step: bool = False,
) -> Objective:
    """The SDTT loss of a student against its teacher, in the divergence's unit per masked token.

    For `asks_in_every_step` see `sdtt_target_chunks`.

    Source: Deschenaux & Gulcehre 2024, arXiv:2410.21035v2, Algorithm 2.
    """

    def draw(shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
        t, u_mask = _noise(shape, min_time, generator)
        u_time, u_token = _uniforms((2, *shape), generator)
        return t, u_mask, u_time, u_token

    def loss(
        student: nn.Module, x0: Tensor, t: Tensor, u_mask: Tensor, u_time: Tensor, u_token: Tensor
    ) -> tuple[Tensor, int]:
        xt = mask_tokens_at(x0, schedule.alpha(t), mask_token_id, u_mask)
        is_masked = xt == mask_token_id
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
            asks_in_every_step=asks_in_every_step,
        )

        def term(rows: Tensor, target_log_p: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            return rows, lambda logits: sdtt_loss(_log_softmax(logits), target_log_p, divergence)[0]

        terms = (term(rows, target_log_p) for rows, target_log_p in targets)
        return _masked_loss(student, xt, is_masked, mask_token_id, terms), int(is_masked.sum())

    return Objective(draw, loss)


@torch.no_grad()
def mean_loss(
    objective: Objective, model_loss: nn.Module, batches: Iterable[Tensor], *, num_parts: int, seed: int
) -> float:
    """The objective's mean over some batches, in evaluation mode, always with the same noise.

    Args:
        objective: which loss.
        model_loss: of which model, see `halfstep.training.runtime.ModelLoss`; its mode is restored.
        batches: clean tokens, each int64 [batch, length], the same in every process; they divide the parts.
        num_parts: parts a batch is computed in, as in training: one has as much room as the other.
        seed: of the noise.
    Returns:
        the loss per term.
    """
    was_training = model_loss.training
    model_loss.eval()
    sums: list[tuple[float, int]] = []
    parts = _noised_parts(objective, batches, num_parts, seed)
    while some := list(islice(parts, ranks.num_ranks())):
        # A network that lies in parts is computed by all processes or by none: one without a part repeats another's.
        loss_sum, num_terms = model_loss(objective.loss, *some[min(ranks.rank(), len(some) - 1)])
        sums += ranks.gather((float(loss_sum), num_terms))[: len(some)]
    model_loss.train(was_training)
    return sum(loss_sum for loss_sum, _ in sums) / max(sum(num_terms for _, num_terms in sums), 1)


def _noised_parts(
    objective: Objective, batches: Iterable[Tensor], num_parts: int, seed: int
) -> Iterator[tuple[Tensor, ...]]:
    """(x0, its noise) of every part that has a row; the noise is drawn for whole batches."""
    generator: torch.Generator | None = None
    for x0 in batches:
        generator = generator or torch.Generator(device=x0.device).manual_seed(seed)
        inputs = x0, *objective.draw(x0.shape, generator)
        for part in range(min(num_parts, len(x0))):
            yield tuple(tensor[part::num_parts] for tensor in inputs)
