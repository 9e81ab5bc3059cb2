"""What training minimizes: a batch's randomness first, then for each network a sum of terms and their number."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from halfstep.data.tokens.given import plain
from halfstep.settings.training import TrainingSettings

PRODUCT = "model"
"""Name of the network that a stage makes and writes; the curve shows its loss."""

Draw = Callable[[Sequence[int], torch.Generator], tuple[Tensor, ...]]
Loss = Callable[..., tuple[Tensor, int]]


@dataclass(frozen=True)
class Objective:
    """The losses of one step, each the quotient of a sum over terms and their number.

    Randomness is drawn for a whole batch, which is then computed in one go or in parts, by one process or by several:
    that changes neither the noise nor, sums and counts being added before they are divided, the loss. A network that is
    frozen, such as a teacher, belongs to the losses that ask it.

    Attributes:
        draw: (the shape of a batch [batch, length], generator) -> tensors of `batch` rows each, all the randomness
            that the losses need; see `inputs`.
        losses: by network, in the order in which they are updated within a step: (network, x0 int64 [batch, length],
            the drawn tensors; or the same rows of each) -> (sum over terms, number of terms).
        networks: what is trained beside the product, by name. Each has an optimizer, an average and a gradient clip of
            its own, and lies in the checkpoint under its name.
        settings: where a network's training differs from the stage's: network -> setting -> value, such as
            {"critic": {"learning_rate": 1e-4}}.
        masking: which of the drawn tensors say what is masked, each uniform in [0, 1), float64 [batch, length]: a token
            stays visible where its number is below some alpha, see `mask_tokens_at`.
    """

    draw: Draw
    losses: Mapping[str, Loss]
    networks: Mapping[str, nn.Module] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    masking: Sequence[int] = (1,)

    def __post_init__(self) -> None:
        if set(self.losses) != {PRODUCT, *self.networks} or PRODUCT in self.networks:
            raise ValueError(f"losses of {sorted(self.losses)}, but the networks are {[PRODUCT, *self.networks]}")

    def settings_of(self, network: str, settings: TrainingSettings) -> TrainingSettings:
        """The stage's settings as they are for a network."""
        return settings.model_copy(update=dict(self.settings.get(network, {})))

    @property
    def loss(self) -> Loss:
        """Of the product."""
        return self.losses[PRODUCT]

    def inputs(self, tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """What the losses of a batch take, (x0, the drawn tensors), of which those in `masking` are -1 where a token is
        given: there it is never masked.

        Args:
            tokens: int64 [batch, length], some of which may be given, see `halfstep.data.tokens.given`.
            generator: of all the randomness.
        """
        drawn = list(self.draw(tokens.shape, generator))
        is_given = tokens < 0
        if is_given.any():
            for index in self.masking:
                drawn[index] = drawn[index].masked_fill(is_given.to(drawn[index].device), -1.0)
        return plain(tokens), *drawn

    def __call__(self, model: nn.Module, tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
        """(sum over terms, number of terms) of the product, for a whole batch."""
        return self.loss(model, *self.inputs(tokens, generator))
