"""What the house asks of a network: samplers, objectives and measures know masked models by this protocol alone."""

from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F


class MaskedConfig(Protocol):
    """What is known of a masked model beside its weights.

    Attributes:
        vocab_size: rows of the projection, the mask token included.
        num_tokens: of the tokenizer; rows beyond them are never predicted.
        mask_token_id: id of the absorbing state, anywhere in the vocabulary.
        length: tokens of the sequences it was trained on.
        noise_epsilon: epsilon of the log-linear schedule it was trained with.
        num_blocks: its layers, by which the costs of networks are compared.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def mask_token_id(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def noise_epsilon(self) -> float: ...
    @property
    def num_blocks(self) -> int: ...


@runtime_checkable
class MaskedModel(Protocol):
    """A network that predicts masked tokens, in two parts, so that logits are made for a few positions at a time."""

    @property
    def config(self) -> MaskedConfig: ...
    def to(self, device: torch.device) -> Self: ...

    def hidden_at(self, xt: Tensor, at: Tensor, *, t: Tensor | None = None, latent: Tensor | None = None) -> Tensor:
        """The body: what the projection makes logits of.

        Args:
            xt: tokens at time t, int64 [batch, length].
            at: positions wanted, bool [batch, length].
            t: times, float64 [batch]; a model that is not conditioned on time passes over them.
            latent: a further input, by which positions depend on each other, see the model's own `hidden_at`; None
                where it has none, or is asked without.
        Returns:
            float [at.sum(), hidden_size], row-major.
        """

    def projection(self) -> tuple[Tensor, Tensor]:
        """(weight [vocab, hidden_size], bias [vocab], zeros where the head has none and -inf at ids never predicted).

        The mask token need not be among those: whoever asks excludes it.
        """


def logits_at(model: MaskedModel, xt: Tensor, at: Tensor) -> Tensor:
    """Raw logits of some positions at an unknown time, float [at.sum(), vocab] in row-major order."""
    return F.linear(model.hidden_at(xt, at), *model.projection())
