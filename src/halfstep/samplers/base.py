"""What samplers share: the network as they see it, their randomness, and what they return."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from halfstep.data.seeds import derive_seed
from halfstep.diffusion.projection import rows_per_chunk
from halfstep.diffusion.subs import exclude_mask

LogitsAt = Callable[[Tensor, Tensor], Tensor]
"""(xt int64 [batch, length], at bool [batch, length]) -> logits at those positions, row-major [at.sum(), vocab]."""


@runtime_checkable
class Predictor(Protocol):
    """A denoiser in two parts, body and projection, so that logits can be made for a few positions at a time."""

    @property
    def head(self) -> nn.Linear:
        """The projection, hidden_size to vocab."""

    def hidden_at(self, xt: Tensor, at: Tensor) -> Tensor:
        """(xt int64 [batch, length], at bool [batch, length]) -> what `head` projects, row-major [at.sum(), hidden]."""


@dataclass(frozen=True)
class Samples:
    """What a sampler returns.

    Attributes:
        tokens: int64 [batch, length].
        nfe: network evaluations made for each sequence, int64 [batch].
        unmask_step: denoising step, from 1, in which each position unmasked; 0 where it was given, int64
            [batch, length].
    """

    tokens: Tensor
    nfe: Tensor
    unmask_step: Tensor


def sample_uniforms(seed: int, sample_indices: Sequence[int], length: int) -> tuple[Tensor, Tensor]:
    """All the randomness of some samples: a function of the seed and each sample's index alone.

    Sampling a given index therefore gives the same text whatever else is in the batch.

    Args:
        seed: seed shared by all samples, 0 or more.
        sample_indices: which samples, each 0 or more.
        length: tokens per sample.
    Returns:
        (u_time, u_token), each float64 [len(sample_indices), length], uniform in [0, 1), on the CPU.
    """
    rows = torch.empty(len(sample_indices), 2, length, dtype=torch.float64)
    for row, index in zip(rows, sample_indices, strict=True):
        generator = torch.Generator().manual_seed(derive_seed(seed, "sample", index))
        row.copy_(torch.rand(2, length, dtype=torch.float64, generator=generator))
    return rows[:, 0], rows[:, 1]


def logit_chunks(network: LogitsAt | Predictor, xt: Tensor, at: Tensor, mask_token_id: int) -> Iterator[Tensor]:
    """Logits at some positions, the mask token excluded, as many positions at once as memory should hold.

    Args:
        network: in two parts, or a function that gives all logits at once, which then are the only piece.
        xt: tokens at time t, int64 [batch, length].
        at: positions wanted, bool [batch, length].
        mask_token_id: id of the absorbing state.
    Yields:
        float32 or wider [n, vocab], -inf at the mask token; together row-major [at.sum(), vocab].
    """
    if isinstance(network, Predictor):
        head = network.head
        bias = exclude_mask(head.bias, mask_token_id)
        hidden = network.hidden_at(xt, at)
        for rows in hidden.split(rows_per_chunk(head.out_features, hidden.device)):
            logits = F.linear(rows, head.weight, bias)
            yield logits.to(torch.promote_types(logits.dtype, torch.float32))
    else:
        logits = network(xt, at)
        yield exclude_mask(logits.to(torch.promote_types(logits.dtype, torch.float32)), mask_token_id)
