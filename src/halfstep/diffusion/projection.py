"""Losses of the projection to the vocabulary, some positions at a time: memory does not grow with vocabulary x length.

The projection, its log-probabilities and their gradient are the only tensors with a vocabulary axis. A chunk's are
made, used for the loss and for the gradients of what the projection was made from, and dropped, so that no position
is projected twice.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

MAX_LOGITS = {"cpu": 6 * 2**20, "cuda": 2**27}
"""Logits held at once, by kind of device: 24 MiB and 512 MiB in float32."""

Terms = Iterable[tuple[Tensor, Callable[[Tensor], Tensor]]]
"""Pieces of a loss: (which rows, int64 [n]; their logits float [n, vocab] -> the sum of their losses, float [])."""


def rows_per_chunk(vocab_size: int, device: torch.device) -> int:
    """How many positions to project at once, 1 or more."""
    return max(1, MAX_LOGITS.get(device.type, MAX_LOGITS["cuda"]) // vocab_size)


def chunks(num_rows: int, chunk_size: int, device: torch.device) -> Iterator[Tensor]:
    """Row numbers 0..num_rows - 1 in pieces of chunk_size, each int64 [n] on `device`; nothing if there are no rows."""
    for start in range(0, num_rows, chunk_size):
        yield torch.arange(start, min(start + chunk_size, num_rows), device=device)


def projected_loss(hidden: Tensor, weight: Tensor, bias: Tensor, terms: Terms) -> Tensor:
    """Sum of losses of hidden @ weight.T + bias, which is never formed as a whole.

    Gradients with respect to hidden, weight and bias are computed along with the loss, chunk by chunk, so the
    backward pass only scales them. A loss of other tensors that need gradients must not be computed with it.

    Args:
        hidden: rows to project, float [num_rows, hidden_size].
        weight, bias: the projection, float [vocab, hidden_size] and [vocab].
        terms: the losses; each row belongs to at most one of them. Consumed as the loss is computed, one term after
            the other, without recording gradients: terms may be a generator that makes its targets on the way.
    Returns:
        the sum, float32 or wider [].
    """
    needs_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (hidden, weight, bias))
    if not needs_gradient:
        return _sum(hidden, (loss_of(F.linear(hidden[rows], weight, bias)) for rows, loss_of in terms))
    return _ProjectedLoss.apply(hidden, weight, bias, terms)


def _sum(like: Tensor, losses: Iterable[Tensor]) -> Tensor:
    total = like.new_zeros((), dtype=torch.promote_types(like.dtype, torch.float32))
    for loss in losses:
        total = total + loss
    return total


class _ProjectedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, terms: Terms) -> Tensor:
        gradients = [torch.zeros_like(x) if x.requires_grad else None for x in (hidden, weight, bias)]
        hidden_gradient, weight_gradient, bias_gradient = gradients

        def losses() -> Iterator[Tensor]:
            for rows, loss_of in terms:
                inputs = hidden[rows]
                logits = F.linear(inputs, weight, bias).requires_grad_()
                with torch.enable_grad():
                    loss = loss_of(logits)
                (slope,) = torch.autograd.grad(loss, logits)
                if hidden_gradient is not None:
                    hidden_gradient[rows] = (slope @ weight).to(hidden.dtype)
                if weight_gradient is not None:
                    _add_product(weight_gradient, slope.T, inputs)
                if bias_gradient is not None:
                    bias_gradient.add_(slope.sum(dim=0))
                yield loss.detach()

        total = _sum(hidden, losses())
        ctx.gradients = gradients
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        return *(None if x is None else x.mul_(slope) for x in gradients), None


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, in the same pass where the data types allow it (under autocast they differ)."""
    if total.dtype == a.dtype == b.dtype:
        total.addmm_(a, b)
    else:
        total.add_(a @ b)
