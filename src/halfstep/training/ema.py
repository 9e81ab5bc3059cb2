"""Exponential moving average of a model's weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from halfstep.training.parallel import shard_like, trained


class EMA:
    """Keeps decay * average + (1 - decay) * weight for every parameter that is not frozen, in float32.

    The first updates use the smaller decay (1 + n) / (10 + n), so that a short run is not held at its start.

    Args:
        model: whose parameters are averaged; the average starts at their values.
        decay: in [0, 1).
    Source: Deschenaux & Gulcehre 2024, arXiv:2410.21035v2, Section 4.1 (decay 0.9999); the warm-up is that of the
        code of MDLM and SDTT (`models/ema.py`).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}, expected a value in [0, 1)")
        self.decay = decay
        self.num_updates = 0
        self.average = {name: weight.detach().float().clone() for name, weight in trained(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the model's current weights."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        parameters = trained(model)
        averages = list(self.average.values())
        weights = [parameters[name].detach().float() for name in self.average]
        torch._foreach_lerp_(averages, weights, 1 - decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within the block the model has the averaged weights; afterwards its own again."""
        own = {name: parameter.detach().clone() for name, parameter in trained(model).items()}
        self.copy_to(model)
        try:
            yield
        finally:
            _copy(own, model)

    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the model's weights by the average."""
        _copy(self.average, model)

    def load(self, average: dict[str, Tensor], num_updates: int) -> None:
        """Go on from a saved average.

        Raises:
            ValueError: its names or shapes are not those of the model.
        """
        shapes = {name: tensor.shape for name, tensor in self.average.items()}
        if {name: tensor.shape for name, tensor in average.items()} != shapes:
            raise ValueError("the saved average belongs to another model")
        self.num_updates = num_updates
        for name, tensor in self.average.items():
            tensor.copy_(shard_like(average[name], tensor))


@torch.no_grad()
def _copy(tensors: dict[str, Tensor], model: nn.Module) -> None:
    for name, parameter in trained(model).items():
        parameter.copy_(tensors[name])
