"""What the losses of denoisers share: noise for a whole batch, and the loss of the masked positions in chunks."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from halfstep.diffusion.noise import antithetic_times
from halfstep.diffusion.projection import Terms, chunks, projected_loss, rows_per_chunk
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.diffusion.subs import exclude_mask
from halfstep.model.base import MaskedModel


def uniforms(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)


def mask_noise(shape: Sequence[int], min_time: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(antithetic times t [batch], the uniform numbers [batch, length] that say which tokens are masked then)."""
    t = antithetic_times(shape[0], min_time, generator=generator, device=generator.device)
    return t, uniforms(shape, generator)


def num_maskable(u_mask: Tensor) -> int:
    """Tokens that are not given, see `Objective.inputs`."""
    return int((u_mask >= 0).sum())


def masked_share(min_time: float, schedule: LogLinearSchedule) -> float:
    """Share of the positions that are masked, on average over times evenly spread over [min_time, 1]."""
    return (1 - schedule.epsilon) * (1 + min_time) / 2


def masked_loss(
    model: nn.Module,
    xt: Tensor,
    is_masked: Tensor,
    mask_token_id: int,
    terms: Terms,
    *,
    t: Tensor,
    latent: Tensor | None = None,
) -> Tensor:
    """Sum of losses of the logits at the masked positions, which a model in two parts makes as the terms need them."""
    if isinstance(model, MaskedModel):
        weight, bias = model.projection()
        bias = exclude_mask(bias, mask_token_id)
        return projected_loss(model.hidden_at(xt, is_masked, t=t, latent=latent), weight, bias, terms)
    logits = exclude_mask(model(xt, at=is_masked), mask_token_id)
    return sum((loss_of(logits[rows]) for rows, loss_of in terms), logits[:0].sum())


def row_chunks(model: nn.Module, num_rows: int, device: torch.device) -> Iterator[Tensor]:
    """Rows 0..num_rows - 1, as many at once as memory should hold; all of them where a model makes them all anyway."""
    size = max(num_rows, 1)
    if isinstance(model, MaskedModel):
        size = rows_per_chunk(model.config.vocab_size, device)
    return chunks(num_rows, size, device)


def log_softmax(logits: Tensor) -> Tensor:
    return logits.log_softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
