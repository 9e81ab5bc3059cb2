"""Text from models: batches of samples, decided by seed and index, and the table they are kept in."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from halfstep.model import Denoiser
from halfstep.model.gpt2 import next_logits
from halfstep.run.errors import UserError
from halfstep.run.files import atomic_path
from halfstep.run.work import Arrays, Remember, anew
from halfstep.samplers.ancestral import sample
from halfstep.samplers.autoregressive import sample_autoregressive
from halfstep.samplers.base import Samples, sample_uniforms

if TYPE_CHECKING:
    from transformers import PreTrainedModel

METADATA_KEY = b"halfstep"

Sampler = Callable[[Tensor, int, Sequence[int], int], Samples]
"""(prefix int64 [batch, prefix_length], length, sample indices, num_steps) -> Samples of that length."""


@contextmanager
def broken_weights_told(source: str | Path) -> Iterator[None]:
    """Within the block, a model that predicts NaN is the user's to mend: say which."""
    try:
        yield
    except FloatingPointError:
        raise UserError(f"{source} predicts NaN: its weights are broken; train it again, more slowly") from None


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


def write_samples(
    path: Path, batches: Iterable[Batch], *, decode: Callable[[list[int]], str], metadata: dict[str, Any]
) -> None:
    """Write samples to parquet, batch by batch, whole or not at all.

    Columns: sample_index, prefix_row, num_steps, nfe, token_ids, unmask_step (0 where given), text.

    Args:
        path: the file.
        batches: of `draw_batches`.
        decode: token ids to text.
        metadata: settings that go into the file's schema as JSON.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        {
            "sample_index": pa.int64(),
            "prefix_row": pa.int64(),
            "num_steps": pa.int64(),
            "nfe": pa.int64(),
            "token_ids": pa.list_(pa.int32()),
            "unmask_step": pa.list_(pa.int32()),
            "text": pa.string(),
        },
        metadata={METADATA_KEY: json.dumps(metadata, sort_keys=True).encode()},
    )
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for batch in batches:
            token_ids = batch.samples.tokens.tolist()
            columns = {
                "sample_index": list(batch.indices),
                "prefix_row": list(batch.prefix_rows),
                "num_steps": [batch.num_steps] * len(token_ids),
                "nfe": batch.samples.nfe.tolist(),
                "token_ids": token_ids,
                "unmask_step": batch.samples.unmask_step.tolist(),
                "text": [decode(ids) for ids in token_ids],
            }
            writer.write_table(pa.table(columns, schema=schema))
