"""Text from models: batches of samples, decided by seed and index."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from halfstep.data.tokens.given import with_masks
from halfstep.model.base import MaskedModel
from halfstep.model.gpt2 import fills_in, next_logits
from halfstep.run.work import Arrays, cached
from halfstep.samplers.autoregressive import sample_autoregressive
from halfstep.samplers.base import Samples, Uniforms
from halfstep.samplers.sampler import Sampler
from halfstep.samples.table import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from halfstep.data.tokens.packed import PackedTokens
    from halfstep.settings.evaluation import SampleSettings

AUTOREGRESSIVE = Sampler("autoregressive", {})
"""The one sampler of a causal model."""


Prompt = Sequence[str | None]
"""A document token by token: text that is given, or None."""


@dataclass(frozen=True)
class Request:
    """Samples wanted of a model.

    Attributes:
        kind: `unconditional` or `continuations`.
        x_init: tokens given, and the mask token everywhere else, int64 [num_samples, length].
        prefix_rows: row of the validation tokens that each sample begins with, -1 for none.
        prefix_length: tokens that it has of that row.
    """

    kind: str
    x_init: Tensor
    prefix_rows: Sequence[int]
    prefix_length: int


def requests_of(
    settings: "SampleSettings",
    valid_tokens: "PackedTokens",
    context_length: int,
    tokenizer: "PreTrainedTokenizerBase",
) -> list[Request]:
    """What the settings ask for: texts from nothing, and continuations of the first validation sequences.

    Where prompts are given in these, both are answers to them.
    """
    rows = [row for row in range(settings.num_prefixes) for _ in range(settings.continuations_per_prefix)]
    unconditional, asked = to_be_written(
        settings.num_samples, valid_tokens, context_length, tokenizer, give_ends=settings.give_ends
    )
    if valid_tokens.has_given:
        continuations, prefix_length = from_prompts_in(valid_tokens, rows, tokenizer), 0
    else:
        prefix_length = settings.prefix_length
        continuations = from_nothing(len(rows), context_length, tokenizer, give_ends=settings.give_ends)
        continuations = continuations[:, : settings.continuation_length]
        continuations[:, :prefix_length] = torch.from_numpy(valid_tokens[rows][:, :prefix_length].astype(np.int64))
    return [
        Request("unconditional", unconditional, asked, 0),
        Request("continuations", continuations, rows, prefix_length),
    ]


def to_be_written(
    num_samples: int,
    valid_tokens: "PackedTokens",
    length: int,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    give_ends: bool,
) -> tuple[Tensor, list[int]]:
    """(what samples begin as, int64 [num_samples, length]; the validation row whose prompt each answers, -1 for none).

    Where prompts are given in validation rows each sample has the next one, from the first on; else see `from_nothing`.
    """
    if not valid_tokens.has_given:
        return from_nothing(num_samples, length, tokenizer, give_ends=give_ends), [-1] * num_samples
    rows = [row % len(valid_tokens) for row in range(num_samples)]
    return from_prompts_in(valid_tokens, rows, tokenizer), rows


def with_start(model: object, x_init: Tensor, tokenizer: "PreTrainedTokenizerBase") -> Tensor:
    """What a model is given, int64 [batch, length]: a causal one begins at BOS where nothing else is."""
    if isinstance(model, MaskedModel) or (x_init[:, 0] != tokenizer.mask_token_id).all():
        return x_init
    return x_init.index_fill(1, torch.tensor([0]), tokenizer.bos_token_id)


def from_nothing(num_samples: int, length: int, tokenizer: "PreTrainedTokenizerBase", *, give_ends: bool) -> Tensor:
    """Masks, int64 [num_samples, length], between BOS and EOS if the ends are given."""
    x_init = torch.full((num_samples, length), tokenizer.mask_token_id)
    if give_ends:
        x_init[:, 0], x_init[:, -1] = tokenizer.bos_token_id, tokenizer.eos_token_id
    return x_init


def from_prompts_in(valid_tokens: "PackedTokens", rows: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> Tensor:
    """The prompts that are given in some rows, and masks after them, int64 [num_rows, length]."""
    tokens = torch.from_numpy(valid_tokens.stored(rows).astype(np.int64))
    return with_masks(tokens, tokenizer.mask_token_id)


def from_prompts(prompts: Sequence[Prompt], tokenizer: "PreTrainedTokenizerBase") -> Tensor:
    """Sequences of one document each, between BOS and EOS, int64 [num_prompts, length]; all have as many tokens."""
    ids = tokenizer.get_vocab() | {None: tokenizer.mask_token_id}
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return torch.tensor([[bos, *(ids[piece] for piece in prompt), eos, eos] for prompt in prompts])


def draw(
    model: "MaskedModel | PreTrainedModel",
    sampler: Sampler,
    x_init: Tensor,
    *,
    mask_token_id: int,
    uniforms: Uniforms,
    **options: Any,
) -> Samples:
    """Write what is masked in some texts.

    Args:
        model: in evaluation mode.
        sampler: of a masked model. A causal one writes from left to right what comes after the tokens that a row
            begins with, one at least; it is not given later ones, but by a model that `fills_in`, which reads all.
        x_init: on the model's device, int64 [batch, length].
        mask_token_id: never drawn.
        uniforms: of these samples.
        options: adjust, likeliest and on_step, see `fill`.
    """
    if isinstance(model, MaskedModel):
        return sampler.sample(model, x_init, mask_token_id=mask_token_id, uniforms=uniforms, **options)
    if fills_in(model):
        return _filled_in(model, x_init, mask_token_id=mask_token_id, u_token=uniforms.first[1], **options)
    is_given = (x_init != mask_token_id).cumprod(dim=1).bool()
    return sample_autoregressive(
        partial(next_logits, model),
        x_init[:, : int(is_given.all(dim=0).sum())],
        length=x_init.shape[1],
        mask_token_id=mask_token_id,
        u_token=uniforms.first[1],
        given=torch.where(is_given, x_init, mask_token_id),
        **options,
    )


def _filled_in(
    model: "PreTrainedModel",
    x_init: Tensor,
    *,
    mask_token_id: int,
    u_token: Tensor,
    on_step: Callable[[int, Tensor], None] | None = None,
    **options: Any,
) -> Samples:
    """What a model that `fills_in` makes of x_init: it reads all, and writes from the first mask to the last.

    An evaluation is counted for each token that is drawn: one that is given could be read together with the next.
    """
    length, is_masked = x_init.shape[1], x_init == mask_token_id
    columns = is_masked.any(dim=0).nonzero()[:, 0].tolist() or [length - 1]
    start, stop = max(columns[0], 1), columns[-1] + 1

    def whole(tokens: Tensor) -> Tensor:
        return torch.cat([tokens[:, length:], x_init[:, stop:]], dim=1)

    drawn = sample_autoregressive(
        partial(next_logits, model),
        torch.cat([x_init, x_init[:, :start]], dim=1),
        length=length + stop,
        mask_token_id=mask_token_id,
        u_token=torch.cat([u_token, u_token[:, :stop]], dim=1),
        given=torch.cat([x_init, x_init[:, :stop]], dim=1),
        on_step=on_step and (lambda step, tokens: on_step(step, whole(tokens))),
        **options,
    )
    step = is_masked.cumsum(dim=1).masked_fill(~is_masked, 0)
    return Samples(whole(drawn.tokens), is_masked.sum(dim=1), step, drawn.head_passes)


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
    x_init, mask = with_start(model, request.x_init, tokenizer), tokenizer.mask_token_id

    def compute(piece: tuple[Sampler, range]) -> Arrays:
        sampler, indices = piece
        given = x_init[indices.start : indices.stop].to(device)
        uniforms = Uniforms(seed, indices, given.shape[1])
        samples = draw(model, sampler, given, mask_token_id=mask, uniforms=uniforms)
        return {name: tensor.cpu().numpy() for name, tensor in vars(samples).items()}

    ranges = [range(i, min(i + batch_size, len(x_init))) for i in range(0, len(x_init), batch_size)]
    for (sampler, indices), kept in cached(folder, product(samplers, ranges), compute):
        samples = Samples(**{name: torch.from_numpy(array) for name, array in kept.items()})
        yield Batch(
            sampler.name,
            sampler.setting,
            int(samples.nfe[0]) if sampler == AUTOREGRESSIVE else sampler.num_steps,
            indices,
            request.prefix_rows[indices.start : indices.stop],
            samples,
        )
