"""Losses as the loop wants them: a batch's randomness first, then sum and number of terms of any part of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


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
