"""Text from models: batches of samples, decided by seed and index."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from halfstep.model.denoiser import Denoiser
from halfstep.model.gpt2 import next_logits
from halfstep.run.work import Arrays, Remember, anew
from halfstep.samplers.ancestral import sample
from halfstep.samplers.autoregressive import sample_autoregressive
from halfstep.samplers.base import Samples, sample_uniforms

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Sampler = Callable[[Tensor, int, Sequence[int], int], Samples]
"""(prefix int64 [batch, prefix_length], length, sample indices, num_steps) -> Samples of that length."""


def denoiser_sampler(denoiser: Denoiser, *, seed: int, device: torch.device) -> Sampler:
    """A sampler that continues prefixes, possibly empty, with a denoiser in evaluation mode on `device`."""
    mask_token_id = denoiser.config.mask_token_id

    def draw(prefix: Tensor, length: int, indices: Sequence[int], num_steps: int) -> Samples:
        u_time, u_token = sample_uniforms(seed, indices, length)
        x_init = torch.full((len(indices), length), mask_token_id, dtype=torch.int64)
        x_init[:, : prefix.shape[1]] = prefix
        return sample(
            denoiser,
            x_init.to(device),
            num_steps=num_steps,
            mask_token_id=mask_token_id,
            u_time=u_time,
            u_token=u_token,
        )

    return draw


def autoregressive_sampler(
    model: "PreTrainedModel", *, mask_token_id: int, bos_token_id: int, seed: int, device: torch.device
) -> Sampler:
    """A sampler that continues prefixes, an empty one from BOS, left to right with a KV cache.

    Its `num_steps` is ignored: it makes one step a token.
    """

    def draw(prefix: Tensor, length: int, indices: Sequence[int], num_steps: int) -> Samples:
        _, u_token = sample_uniforms(seed, indices, length)
        if not prefix.shape[1]:
            prefix = torch.full((len(indices), 1), bos_token_id, dtype=torch.int64)
        return sample_autoregressive(
            partial(next_logits, model),
            prefix.to(device),
            length=length,
            mask_token_id=mask_token_id,
            u_token=u_token,
        )

    return draw


@dataclass(frozen=True)
class Batch:
    """Samples drawn together, on the CPU.

    Attributes:
        indices: which samples.
        num_steps: denoising steps asked for.
        prefix_rows: row of the validation tokens each continues; -1 for none.
        samples: what was drawn.
    """

    indices: Sequence[int]
    num_steps: int
    prefix_rows: Sequence[int]
    samples: Samples


def draw_batches(
    sampler: Sampler,
    prefixes: Tensor,
    prefix_rows: Sequence[int],
    *,
    length: int,
    num_steps: Iterable[int],
    batch_size: int,
    remember: Remember = anew,
) -> Iterator[Batch]:
    """Draw one sample per row of `prefixes` at every number of steps.

    Args:
        sampler: see `Sampler`; sample i is decided by its seed and i.
        prefixes: tokens given, int64 [num_samples, prefix_length]; prefix_length may be 0.
        prefix_rows: where each prefix comes from, -1 for none.
        length: tokens per sample, the prefix included.
        num_steps: numbers of denoising steps.
        batch_size: samples drawn together; it does not change them.
        remember: keeps the batches of a run that may be cut off, see `halfstep.run.work`.
    Yields:
        batches, ordered by number of steps, then index.
    """

    def draw(piece: tuple[int, range]) -> Arrays:
        steps, indices = piece
        samples = sampler(prefixes[indices.start : indices.stop], length, indices, steps)
        return {name: tensor.cpu().numpy() for name, tensor in vars(samples).items()}

    def inputs_of(piece: tuple[int, range]) -> list[Any]:
        steps, indices = piece
        return [steps, length, list(indices), prefixes[indices.start : indices.stop].tolist()]

    pieces = (
        (steps, range(start, min(start + batch_size, len(prefixes))))
        for steps in num_steps
        for start in range(0, len(prefixes), batch_size)
    )
    for (steps, indices), kept in remember("samples", pieces, inputs_of, draw):
        samples = Samples(**{name: torch.from_numpy(array) for name, array in kept.items()})
        yield Batch(indices, steps, prefix_rows[indices.start : indices.stop], samples)
