"""How likely a model finds held-out text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from halfstep.diffusion.nelbo import nelbo_per_token
from halfstep.diffusion.noise import antithetic_times, mask_tokens
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.diffusion.subs import masked_log_probs
from halfstep.evaluation.estimates import Estimate, mean_estimate, perplexity_estimate
from halfstep.evaluation.loss_by_time import TimeBucket, loss_by_time
from halfstep.evaluation.scorer import token_nlls
from halfstep.sampling import LogitsAt
from halfstep.seeds import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Likelihood:
    """Likelihood of held-out sequences; counts are in sequences.

    Attributes:
        nll_per_token: nats.
        perplexity: its exponential.
        is_bound: whether both are upper bounds (denoisers) or exact (autoregressive models).
        by_time: of a denoiser, the bound's integrand by time.
    """

    nll_per_token: Estimate
    perplexity: Estimate
    is_bound: bool
    by_time: tuple[TimeBucket, ...] | None = None


@torch.inference_mode()
def validation_nelbo(
    logits_at: LogitsAt,
    tokens: np.ndarray,
    *,
    schedule: LogLinearSchedule,
    min_time: float,
    mask_token_id: int,
    num_draws: int,
    batch_size: int,
    seed: int,
    device: torch.device,
) -> Likelihood:
    """The negative ELBO of a denoiser, per token, all positions counted.

    Each sequence is looked at num_draws times, at times spread evenly over the whole interval. Its noise
    depends on the seed and its row alone, so batches do not change the result, and sequences are independent.

    Args:
        logits_at: the denoiser in evaluation mode, see `LogitsAt`.
        tokens: held-out sequences, integers [num_sequences, length].
        schedule: the noise schedule.
        min_time: smallest time.
        mask_token_id: id of the absorbing state.
        num_draws: times drawn per sequence.
        batch_size: noised sequences per forward pass.
        seed: of the noise.
        device: where the denoiser computes.
    Source: Sahoo et al. 2024, arXiv:2406.07524, Sections 3.4 and 3.5.
    """
    looks = _noised(tokens, schedule, min_time, mask_token_id, num_draws, seed)
    nelbos: list[float] = []
    times: list[float] = []
    while batch := list(islice(looks, batch_size)):
        x0, xt, t = (torch.stack(parts).to(device) for parts in zip(*batch, strict=True))
        is_masked = xt == mask_token_id
        times += t.tolist()
        log_p = masked_log_probs(logits_at(xt, is_masked), mask_token_id)
        nelbos += nelbo_per_token(log_p, x0, is_masked, t, schedule).double().sum(dim=1).tolist()
    per_look = np.asarray(nelbos).reshape(len(tokens), num_draws)
    by_time = loss_by_time(np.asarray(times).reshape(per_look.shape), per_look / tokens.shape[1])
    likelihood = _likelihood(per_look.mean(axis=1), [tokens.shape[1]] * len(tokens), is_bound=True)
    return replace(likelihood, by_time=tuple(by_time))


def _noised(
    tokens: np.ndarray,
    schedule: LogLinearSchedule,
    min_time: float,
    mask_token_id: int,
    num_draws: int,
    seed: int,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(x0, xt, t) of every look at every sequence, each without a batch dimension, on the CPU."""
    for row, ids in enumerate(tokens.astype(np.int64)):
        generator = torch.Generator().manual_seed(derive_seed(seed, "validation", row))
        x0 = torch.from_numpy(ids).expand(num_draws, -1)
        t = antithetic_times(num_draws, min_time, generator=generator)
        yield from zip(x0, mask_tokens(x0, schedule.alpha(t), mask_token_id, generator=generator), t, strict=True)


def validation_nll(model: "PreTrainedModel", tokens: np.ndarray, *, batch_size: int) -> Likelihood:
    """The negative log-likelihood of an autoregressive model, per scored token: all but the first.

    Args:
        model: causal language model in evaluation mode.
        tokens: held-out sequences, integers [num_sequences, length].
        batch_size: sequences per forward pass.
    """
    scored = token_nlls(model, tokens.tolist(), batch_size=batch_size)
    return _likelihood(np.asarray(scored.nlls), scored.num_tokens, is_bound=False)


def _likelihood(nlls: np.ndarray, num_tokens: Sequence[int], *, is_bound: bool) -> Likelihood:
    """From sums over sequences of equal length."""
    return Likelihood(
        nll_per_token=mean_estimate(nlls / np.asarray(num_tokens), "nats", name="validation nll"),
        perplexity=perplexity_estimate(nlls, num_tokens, name="validation perplexity"),
        is_bound=is_bound,
    )
