"""Text from models: batches of samples, decided by seed and index."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from halfstep.model.base import MaskedModel
from halfstep.model.gpt2 import next_logits
from halfstep.run.work import Arrays, cached
from halfstep.samplers.autoregressive import sample_autoregressive
from halfstep.samplers.base import Sampler, Samples, sample_uniforms
from halfstep.samples.table import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from halfstep.data.tokens.packed import PackedTokens
    from halfstep.settings.evaluation import SampleSettings

AUTOREGRESSIVE = Sampler("autoregressive", {})
"""The one sampler of a causal model."""


@dataclass(frozen=True)
class Request:
    """Samples wanted of a model.

    Attributes:
        kind: `unconditional` or `continuations`.
        prefixes: tokens given, int64 [num_samples, prefix_length]; prefix_length may be 0.
        prefix_rows: row of the validation tokens that each prefix begins, -1 for none.
        length: tokens per sample, the prefix included.
    """

    kind: str
    prefixes: Tensor
    prefix_rows: Sequence[int]
    length: int


def requests_of(settings: "SampleSettings", valid_tokens: "PackedTokens", context_length: int) -> list[Request]:
    """What the settings ask for: texts from nothing, and continuations of the first validation sequences."""
    rows = [row for row in range(settings.num_prefixes) for _ in range(settings.continuations_per_prefix)]
    prefixes = torch.from_numpy(valid_tokens[rows][:, : settings.prefix_length].astype(np.int64))
    nothing = torch.empty(settings.num_samples, 0, dtype=torch.int64)
    return [
        Request("unconditional", nothing, [-1] * len(nothing), context_length),
        Request("continuations", prefixes, rows, settings.continuation_length),
    ]


def draw(
    model: "MaskedModel | PreTrainedModel",
    sampler: Sampler,
    given: Tensor,
    *,
    length: int,
    mask_token_id: int,
    u_time: Tensor,
    u_token: Tensor,
    **options: Any,
) -> Samples:
    """Continue texts to some length.

    Args:
        model: in evaluation mode.
        sampler: of a masked model; a causal one writes from left to right.
        given: tokens, on the model's device, int64 [batch, num_given]; a causal model needs one at least.
        length: tokens of the result.
        mask_token_id: never drawn.
        u_time, u_token: see `sample_uniforms`.
        options: adjust and on_step, see `fill`.
    """
    if not isinstance(model, MaskedModel):
        return sample_autoregressive(
            partial(next_logits, model), given, length=length, mask_token_id=mask_token_id, u_token=u_token, **options
        )
    x_init = given.new_full((len(given), length), mask_token_id)
    x_init[:, : given.shape[1]] = given
    return sampler.sample(model, x_init, mask_token_id=mask_token_id, u_time=u_time, u_token=u_token, **options)


def draw_batches(
    model: "MaskedModel | PreTrainedModel",
    samplers: Sequence[Sampler],
    request: Request,
    *,
    tokenizer: "PreTrainedTokenizerBase",
    seed: int,
    batch_size: int,
    device: torch.device,
    folder: Path | None = None,
) -> Iterator[Batch]:
    """Draw all samples of a request with every sampler; a sample is decided by its sampler, the seed and its index.

    Args:
        model: in evaluation mode, on `device`; a causal one begins at BOS where nothing is given.
        samplers: see `draw`.
        batch_size: samples drawn together; it does not change them.
        folder: for the batches of a run that may be cut off, see `cached`.
    Yields:
        batches, ordered by sampler, then index.
    """
    prefixes, length = request.prefixes, request.length
    if not isinstance(model, MaskedModel) and not prefixes.shape[1]:
        prefixes = prefixes.new_full((len(prefixes), 1), tokenizer.bos_token_id)

    def compute(piece: tuple[Sampler, range]) -> Arrays:
        sampler, indices = piece
        given = prefixes[indices.start : indices.stop].to(device)
        u_time, u_token = sample_uniforms(seed, indices, length)
        mask = tokenizer.mask_token_id
        samples = draw(model, sampler, given, length=length, mask_token_id=mask, u_time=u_time, u_token=u_token)
        return {name: tensor.cpu().numpy() for name, tensor in vars(samples).items()}

    ranges = [range(i, min(i + batch_size, len(prefixes))) for i in range(0, len(prefixes), batch_size)]
    for (sampler, indices), kept in cached(folder, product(samplers, ranges), compute):
        yield Batch(
            sampler.name,
            sampler.setting,
            length - prefixes.shape[1] if sampler == AUTOREGRESSIVE else sampler.num_steps,
            indices,
            request.prefix_rows[indices.start : indices.stop],
            Samples(**{name: torch.from_numpy(array) for name, array in kept.items()}),
        )
