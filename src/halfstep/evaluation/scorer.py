"""The scorer: an autoregressive model that judges samples and gives MAUVE its features."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from halfstep.data.tokenizer import num_ids
from halfstep.data.tokens.given import plain
from halfstep.model.gpt2 import load_autoregressive
from halfstep.run.device import autocast, select_precision
from halfstep.run.errors import UserError, one_line
from halfstep.run.faults import storage_fault
from halfstep.run.files import local_or_hub
from halfstep.run.retries import with_retries
from halfstep.run.work import Arrays, batched, cached
from halfstep.settings.evaluation import EvaluateSettings
from halfstep.settings.graph import scores_by_baseline

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Scorer:
    """A causal language model in evaluation mode with its tokenizer.

    Attributes:
        model: on its device.
        tokenizer: the model's own.
        precision: in which the model reads, fp32 or bf16.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    precision: str = "fp32"

    @property
    def max_length(self) -> int | None:
        """Tokens the model can read at once; None where its configuration states no limit."""
        return getattr(self.model.config, "max_position_embeddings", None)


@dataclass(frozen=True)
class Reading:
    """What a causal model makes of some sequences.

    Attributes:
        nlls: negative log-likelihood of the scored tokens of each sequence, nats.
        num_tokens: how many were scored: all but the first and those given.
        num_windowed: sequences longer than the model's context, read in windows.
        features: the last layer's hidden state at each sequence's last token, in its first window; float32
            [num_sequences, hidden_size]. Source: Pillutla et al. 2021, arXiv:2102.01454, Section 2 (embeddings); the
            last token as in `mauve-text`.
    """

    nlls: list[float]
    num_tokens: list[int]
    num_windowed: int
    features: np.ndarray


def scorer_of(settings: EvaluateSettings) -> tuple[str, list[Path]]:
    """(where `evaluate.scorer` is loaded from, its files as far as another stage made them).

    DVC's queue runs in a copy of the workspace, in which models/ar is built; all else is taken from the project.
    """
    if not scores_by_baseline(settings.scorer):
        return local_or_hub(settings.scorer), []
    # Where it is missing, loading says so.
    return settings.scorer, [path for path in [Path(settings.scorer)] if path.is_dir()]


def load_scorer(source: str, revision: str | None, device: torch.device, precision: str = "auto") -> Scorer:
    """Load a causal language model and its tokenizer, from safetensors, running no code that comes with it.

    Args:
        source: local folder or hub id.
        revision: branch, tag or commit of a hub id.
        device: where the model computes.
        precision: in which it reads, see `select_precision`.
    Raises:
        UserError: it is neither a causal model's folder nor to be had from the hub, or has no tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        model = load_autoregressive(source, revision)
    except UserError as error:
        raise UserError(f"evaluate.scorer: {error}, such as -S evaluate.scorer=models/ar") from None
    try:
        tokenizer = with_retries(
            f"tokenizer {source}",
            lambda: AutoTokenizer.from_pretrained(source, revision=revision or "main", trust_remote_code=False),
        )
    # The readers of the many kinds of tokenizers may raise anything on files that are not theirs.
    except Exception as error:
        if storage_fault(error):
            raise
        raise UserError(
            f"evaluate.scorer {source} brings no tokenizer ({one_line(error)}): give evaluate.scorer a local folder"
            " that holds one"
        ) from None
    if num_ids(tokenizer) > model.config.vocab_size:
        raise UserError(
            f"evaluate.scorer {source} knows {model.config.vocab_size} tokens, but its tokenizer has {len(tokenizer)}:"
            " give evaluate.scorer a model with its own tokenizer, such as -S evaluate.scorer=models/ar"
        )
    return Scorer(model.to(device), tokenizer, select_precision(precision, device))


@torch.inference_mode()
def read_tokens(
    model: "PreTrainedModel",
    sequences: Sequence[Sequence[int]],
    *,
    batch_size: int,
    max_length: int | None = None,
    folder: Path | None = None,
) -> Reading:
    """Negative log-likelihood of each sequence under a causal model, and its features.

    The first token has no context and is not scored, nor are tokens that are given. Batches are padded on the right,
    where a causal model does not look, and the padding is not counted.

    Args:
        model: causal language model in evaluation mode.
        sequences: token ids, at least one in each, see `halfstep.data.tokens.given`.
        batch_size: sequences per forward pass; it does not change the result.
        max_length: tokens the model can read; longer sequences are read in `windows`. None is no limit.
        folder: for the batches, see `cached`.
    Raises:
        UserError: the model gives NaN or infinity.
    """
    read = [windows(ids, max_length) for ids in sequences]
    kept = [
        arrays for _, arrays in cached(folder, batched(list(chain(*read)), batch_size), partial(_read_batch, model))
    ]
    ends = np.cumsum([0, *map(len, read)])
    found, states = (np.concatenate([arrays[key] for arrays in kept]) for key in ("nlls", "features"))
    nlls = [math.fsum(found[start:end]) for start, end in pairwise(ends)]
    num_tokens = [sum(token >= 0 for piece in pieces for token in piece[1:]) for pieces in read]
    for index, nll in enumerate(nlls):
        if not math.isfinite(nll):
            raise UserError(
                f"text {index} of {len(nlls)} has a log-likelihood of {-nll} under {model.name_or_path or 'the model'}:"
                " its weights are broken, or a token has no probability; use another evaluate.scorer"
            )
    return Reading(nlls, num_tokens, sum(len(pieces) > 1 for pieces in read), states[ends[:-1]])


def windows(ids: Sequence[int], max_length: int | None) -> list[list[int]]:
    """A sequence as a model of a limited context reads it: pieces of at most `max_length` tokens.

    Each begins with half its length of the tokens before, which are given there: every token but the first is scored
    once, with at least so much context.
    """
    if max_length is None or len(ids) <= max_length:
        return [list(ids)]
    context = max_length // 2
    starts = range(max_length, len(ids), max_length - context)
    later = (
        [*(min(token, ~token) for token in ids[start - context : start]), *ids[start : start - context + max_length]]
        for start in starts
    )
    return [list(ids[:max_length]), *later]


def _read_batch(model: "PreTrainedModel", sequences: Sequence[list[int]]) -> Arrays:
    tokens, is_token = _pad(sequences, model.device)
    output = model(input_ids=plain(tokens), attention_mask=is_token, output_hidden_states=True)
    nlls = []
    # Row by row: the log-softmax of a whole batch over a large vocabulary takes as much memory as the logits.
    for row_logits, row, ids in zip(output.logits, tokens, sequences, strict=True):
        end = len(ids)
        losses = F.cross_entropy(row_logits[: end - 1].float(), plain(row[1:end]), reduction="none")
        nlls.append(losses.double()[row[1:end] >= 0].sum().item())
    last = is_token.sum(dim=1) - 1
    states = output.hidden_states[-1][torch.arange(len(last), device=last.device), last]
    return {"nlls": np.array(nlls), "features": states.float().cpu().numpy()}


def read_texts(
    samples: Sequence[Sequence[int]],
    tokenizer: "PreTrainedTokenizerBase",
    scorer: Scorer,
    *,
    batch_size: int,
    folder: Path | None = None,
) -> Reading:
    """`read_tokens` of samples as the scorer reads them."""
    ids, _ = to_scorer_ids(samples, tokenizer, scorer)
    with autocast(scorer.model.device, scorer.precision):
        return read_tokens(scorer.model, ids, batch_size=batch_size, max_length=scorer.max_length, folder=folder)


@lru_cache(maxsize=1)
def shares_vocabulary(ours: "PreTrainedTokenizerBase", theirs: "PreTrainedTokenizerBase") -> bool:
    """Whether token ids of one tokenizer mean the same to a model trained with the other.

    They do if, apart from mask tokens, both have the same tokens at the same ids and the same way of cutting
    text into them (the backend's type, pieces and merges).
    """
    return _meaning(ours) == _meaning(theirs)


def to_scorer_ids(
    samples: Sequence[Sequence[int]], tokenizer: "PreTrainedTokenizerBase", scorer: Scorer
) -> tuple[list[list[int]], bool]:
    """Samples as the scorer reads them.

    Args:
        samples: token ids of `tokenizer`, see `halfstep.data.tokens.given`.
        tokenizer: the samples' own.
        scorer: who reads them.
    Returns:
        (token ids of the scorer's tokenizer, whether the text was tokenized again). Text is tokenized again,
        without special tokens, where the vocabularies differ, what is given at a sample's beginning by itself; else
        the ids are taken as they are. Of nothing it reads EOS alone.
    """
    nothing = [scorer.tokenizer.eos_token_id or 0]
    if shares_vocabulary(tokenizer, scorer.tokenizer):
        return [list(ids) or nothing for ids in samples], False

    def again(ids: Sequence[int]) -> list[int]:
        text = tokenizer.decode(list(ids), skip_special_tokens=True)
        # `verbose` would warn about texts longer than the scorer's context, which are read in windows.
        return scorer.tokenizer.encode(text, add_special_tokens=False, verbose=False)

    def read(ids: Sequence[int]) -> list[int]:
        num_given = next((place for place, token in enumerate(ids) if token >= 0), len(ids))
        given = [~token for token in again([~token for token in ids[:num_given]])] if num_given else []
        return given + again([max(token, ~token) for token in ids[num_given:]])

    return [read(ids) or nothing for ids in samples], True


def _meaning(tokenizer: "PreTrainedTokenizerBase") -> Any:
    vocabulary = {token: i for token, i in tokenizer.get_vocab().items() if token != tokenizer.mask_token}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        # A tokenizer in pure Python says nothing about its pieces: equal only to itself.
        return vocabulary, type(tokenizer)
    model = json.loads(backend.to_str())["model"]
    pieces = model.get("vocab")
    if isinstance(pieces, dict):
        pieces = {token: i for token, i in pieces.items() if token != tokenizer.mask_token}
    return vocabulary, (model["type"], pieces, model.get("merges"))


def _pad(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """(token ids padded on the right with id 0, which of them are tokens), each int64 [batch, longest]."""
    rows = [torch.tensor(ids, dtype=torch.int64) for ids in sequences]
    tokens, is_token = (pad_sequence(some, batch_first=True) for some in (rows, list(map(torch.ones_like, rows))))
    return tokens.to(device), is_token.to(device)
