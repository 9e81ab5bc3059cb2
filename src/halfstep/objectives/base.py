"""Losses as the loop wants them: a batch's randomness first, then sum and number of terms of any part of it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from halfstep.diffusion.noise import antithetic_times
from halfstep.diffusion.projection import Terms, chunks, projected_loss, rows_per_chunk
from halfstep.diffusion.subs import exclude_mask
from halfstep.samplers.base import Predictor


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


def uniforms(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)


def mask_noise(shape: Sequence[int], min_time: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(antithetic times t [batch], the uniform numbers [batch, length] that say which tokens are masked then)."""
    t = antithetic_times(shape[0], min_time, generator=generator, device=generator.device)
    return t, uniforms(shape, generator)


def masked_loss(model: nn.Module, xt: Tensor, is_masked: Tensor, mask_token_id: int, terms: Terms) -> Tensor:
    """Sum of losses of the logits at the masked positions, which a model in two parts makes as the terms need them."""
    if isinstance(model, Predictor):
        bias = exclude_mask(model.head.bias, mask_token_id)
        return projected_loss(model.hidden_at(xt, is_masked), model.head.weight, bias, terms)
    logits = exclude_mask(model(xt, at=is_masked), mask_token_id)
    return sum((loss_of(logits[rows]) for rows, loss_of in terms), logits[:0].sum())


def row_chunks(model: nn.Module, num_rows: int, device: torch.device) -> Iterator[Tensor]:
    """Rows 0..num_rows - 1, as many at once as memory should hold; all of them where a model makes them all anyway."""
    size = rows_per_chunk(model.head.out_features, device) if isinstance(model, Predictor) else max(num_rows, 1)
    return chunks(num_rows, size, device)


def log_softmax(logits: Tensor) -> Tensor:
    return logits.log_softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
