"""Gumbel noise as an input: at each position a number for each token, for a network that writes what the noise says.

An autoregressive model that draws by Gumbel's trick, argmax of log p + noise, is a function of the noise. Handled is
not the noise but exp(-noise), which is exponential: in the race that they run, token k arrives at exp(-noise_k) / p_k,
and the first is written.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

EARLIEST = 1e-30
"""A smaller number counts as this, so that its inverse is finite."""

SCALE = 10.0
"""Of the weights: a share is a few hundredths, and Adam moves small weights as fast as large ones."""

Pieces = Callable[[], Iterator[Tensor]]
"""Makes exp(-noise) of some positions after the other, float32 [n, vocab]; each call makes the same."""


def exponentials(u: Tensor, num_rows: int, num_columns: int, device: torch.device) -> Tensor:
    """Numbers of the exponential distribution, float32 [num_rows, num_columns], by a number u in [0, 1), float64 []."""
    generator = torch.Generator(device).manual_seed(int(u.item() * 2**53))
    return torch.empty(num_rows, num_columns, device=device).exponential_(generator=generator)


class NoiseEmbedding(nn.Module):
    """softmax(noise) W times `SCALE`, where W [vocab, hidden_size] begins at zero."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(vocab_size, hidden_size))

    def forward(self, pieces: Pieces) -> Tensor:
        """Float [n, hidden_size] of all pieces, each of which is made again for the gradient, and none kept."""
        embedded: Tensor = _Embedded.apply(SCALE * self.weight, pieces)
        return embedded


def _shares(exponential: Tensor) -> Tensor:
    """softmax(noise) of exp(-noise)."""
    inverse = exponential.clamp(min=EARLIEST).reciprocal()
    return inverse / inverse.sum(dim=-1, keepdim=True)


class _Embedded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, pieces: Pieces) -> Tensor:
        ctx.pieces, ctx.shape = pieces, weight.shape
        return torch.cat([weight[:0], *(_shares(piece) @ weight for piece in pieces())])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        total = slope.new_zeros(ctx.shape, dtype=torch.float32)
        for piece in ctx.pieces():
            now, slope = slope[: len(piece)], slope[len(piece) :]
            total += _shares(piece).T @ now.float()
        return total, None
