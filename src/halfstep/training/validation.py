"""The loss on validation data."""

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from halfstep.objectives.base import Objective
from halfstep.run import ranks


@torch.no_grad()
def mean_loss(
    objective: Objective, model_loss: nn.Module, batches: Iterable[Tensor], *, num_parts: int, seed: int
) -> float:
    """The objective's mean over some batches, in evaluation mode, always with the same noise.

    Args:
        model_loss: of which model, see `halfstep.training.parallel.ModelLoss`; its mode is restored.
        batches: clean tokens, each int64 [batch, length], the same in every process; they divide the parts.
        num_parts: parts a batch is computed in, as in training: one has as much room as the other.
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
        inputs = objective.inputs(x0, generator)
        for part in range(min(num_parts, len(x0))):
            yield tuple(tensor[part::num_parts] for tensor in inputs)
