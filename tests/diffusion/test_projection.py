"""The loss of a projection in chunks, against the same loss of the whole."""

import pytest
import torch

from halfstep.diffusion.divergences import DIVERGENCES
from halfstep.diffusion.projection import MAX_LOGITS, chunks, projected_loss, rows_per_chunk
from halfstep.diffusion.subs import exclude_mask, masked_log_probs

NUM_ROWS, HIDDEN, VOCAB, MASK = 23, 5, 11, 4


def _inputs(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(NUM_ROWS, HIDDEN), (VOCAB, HIDDEN), (VOCAB,)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def _targets(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    logits = torch.randn(NUM_ROWS, VOCAB, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return masked_log_probs(logits, MASK)


@pytest.mark.parametrize("chunk_size", [1, 7, NUM_ROWS, 100])
@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_loss_and_gradients_are_those_of_the_whole(
    dtype: torch.dtype, tolerance: float, name: str, chunk_size: int
) -> None:
    """Up to the rounding of sums of some tens of terms."""
    divergence, target = DIVERGENCES[name], _targets(dtype)
    hidden, weight, bias = _inputs(dtype)
    whole = divergence(masked_log_probs(hidden @ weight.T + bias, MASK), target).sum()
    expected = torch.autograd.grad(3 * whole, [hidden, weight, bias])
    # In any order of the rows.
    order = torch.randperm(NUM_ROWS, generator=torch.Generator().manual_seed(2))
    pieces = (order[rows] for rows in chunks(NUM_ROWS, chunk_size, hidden.device))
    terms = (
        (rows, lambda logits, rows=rows: divergence(logits.log_softmax(-1), target[rows]).sum()) for rows in pieces
    )
    loss = projected_loss(hidden, weight, exclude_mask(bias, MASK), terms)
    gradients = torch.autograd.grad(3 * loss, [hidden, weight, bias])
    torch.testing.assert_close(loss, whole, rtol=tolerance, atol=0)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))
    assert gradients[2][MASK] == 0


def test_no_more_logits_are_made_at_once_than_a_chunk_holds() -> None:
    seen: list[int] = []

    def term(rows: torch.Tensor):
        return rows, lambda logits: (seen.append(len(logits)), logits.square().sum())[1]

    hidden, weight, bias = _inputs()
    projected_loss(hidden, weight, bias, map(term, chunks(NUM_ROWS, 7, hidden.device)))
    assert seen == [7, 7, 7, 2]
    assert rows_per_chunk(50258, torch.device("cpu")) * 50258 <= MAX_LOGITS["cpu"]
    assert rows_per_chunk(2**40, torch.device("cpu")) == 1


@pytest.mark.parametrize("needs_gradient", [True, False])
def test_frozen_tensors_get_no_gradient_and_no_rows_cost_nothing(needs_gradient: bool) -> None:
    hidden, weight, bias = _inputs()
    weight.requires_grad_(False)
    with torch.set_grad_enabled(needs_gradient):
        loss = projected_loss(hidden, weight, bias, [(torch.arange(NUM_ROWS), lambda logits: logits.square().sum())])
        nothing = projected_loss(hidden[:0], weight, bias, [])
    torch.testing.assert_close(loss.detach(), (hidden @ weight.T + bias).square().sum().detach())
    assert nothing.item() == 0
    assert loss.requires_grad is needs_gradient
    if needs_gradient:
        (loss + nothing).backward()
        assert weight.grad is None
        torch.testing.assert_close(bias.grad, 2 * (hidden @ weight.T + bias).sum(0).detach())
