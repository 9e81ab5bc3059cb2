"""The likelihood of the next token."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from halfstep.objectives.base import PRODUCT, Objective


def autoregressive_objective(
    num_givens: Sequence[int] = (), *, is_known: Tensor | None = None, mask_token_id: int = -1
) -> Objective:
    """Negative log-likelihood of each token after the first, unless it is given, in nats per token.

    Args:
        num_givens: where there are any, the model first reads each sequence with one of these numbers of tokens, at
            random places, and the mask token elsewhere; then comes what it is to predict, the whole.
        is_known: positions that are always read beside these, bool [length].
        mask_token_id: id of the mask token.
    """

    def draw(shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
        is_counted = torch.zeros(shape, device=generator.device)
        if not num_givens:
            return (is_counted,)
        places, number = (torch.rand(size, generator=generator, device=generator.device) for size in (shape, shape[:1]))
        return is_counted, places, number

    def loss(model: nn.Module, x0: Tensor, is_counted: Tensor, *noise: Tensor) -> tuple[Tensor, int]:
        sequences = torch.cat([_with_givens(x0, *noise), x0], dim=1) if noise else x0
        # Keys and values of earlier tokens are for those who write the next one.
        logits = model(sequences[:, :-1], use_cache=False, logits_to_keep=x0.shape[1] - 1).logits
        targets = x0[:, 1:].masked_fill(is_counted[:, 1:] < 0, -100)
        total = nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")
        return total, int((targets >= 0).sum())

    def _with_givens(x0: Tensor, u_place: Tensor, u_number: Tensor) -> Tensor:
        numbers = torch.tensor(num_givens, device=x0.device)[(u_number * len(num_givens)).long()]
        known = torch.zeros_like(x0[0], dtype=torch.bool) if is_known is None else is_known.to(x0.device)
        places = u_place.masked_fill(known, -1).argsort(dim=1).argsort(dim=1)
        return torch.where(places < numbers[:, None] + known.sum(), x0, mask_token_id)

    return Objective(draw, {PRODUCT: loss}, masking=(0,))
