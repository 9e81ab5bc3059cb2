"""How likely a model finds held-out text."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from halfstep.data.tokens.given import plain
from halfstep.data.tokens.seeds import derive_seed
from halfstep.diffusion.nelbo import nelbo_per_token
from halfstep.diffusion.noise import antithetic_times, mask_tokens
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.diffusion.subs import masked_log_probs
from halfstep.evaluation.loss_by_time import loss_by_time
from halfstep.evaluation.scorer import read_tokens
from halfstep.metrics.estimate import Estimate, mean_estimate, perplexity_estimate
from halfstep.model.base import MaskedModel
from halfstep.model.joint import JointModel
from halfstep.run.errors import UserError
from halfstep.run.work import Arrays, batched, cached
from halfstep.samplers.ancestral import unmask_steps
from halfstep.samplers.base import LogitsAt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Likelihood:
    """Likelihood of held-out sequences; counts of estimates are in sequences.

    Attributes:
        nlls: negative log-likelihood of each sequence, nats.
        num_tokens: tokens that each sum covers.
        by_time: of a denoiser, for which all this is an upper bound, the bound's integrand by time; else empty.
    """

    nlls: tuple[float, ...]
    num_tokens: tuple[int, ...]
    by_time: tuple[Mapping[str, Any], ...] = ()

    @property
    def nll_per_token(self) -> Estimate:
        """Mean over sequences of equal length, nats."""
        return mean_estimate(np.asarray(self.nlls) / np.asarray(self.num_tokens), "nats", name="nll per token")

    @property
    def perplexity(self) -> Estimate:
        """Per token, over all sequences together."""
        return perplexity_estimate(self.nlls, self.num_tokens)

    def bits_per_byte(self, num_bytes: Sequence[int]) -> Estimate | None:
        """Bits that the model takes for a byte of text, which does not depend on how text is cut into tokens.

        The cost of every scored token counts, that of special tokens too: of EOS, and with denoisers of BOS.

        Args:
            num_bytes: of each sequence, see `decoded_bytes`.
        Returns:
            total cost over total bytes with the standard error of such a ratio; None where there are no bytes.
        """
        if not any(num_bytes):
            return None
        per_byte = perplexity_estimate(self.nlls, num_bytes, name="bits per byte")
        error = per_byte.standard_error
        # The perplexity per byte is e^r, its error e^r times that of r, and the bits are r / log 2.
        return Estimate(
            value=math.log2(per_byte.value),
            standard_error=None if error is None else error / (per_byte.value * math.log(2)),
            count=per_byte.count,
            unit="bits",
        )


@dataclass(frozen=True)
class DecodedText:
    """How much text sequences of tokens represent.

    Attributes:
        num_bytes: of each sequence, decoded.
        num_unknown_tokens: tokens of text that the tokenizer does not know. Their bytes are lost and their cost
            is that of one word for many, so bits per byte compare tokenizers only where this is 0.
    """

    num_bytes: tuple[int, ...]
    num_unknown_tokens: int


def decoded_bytes(tokenizer: "PreTrainedTokenizerBase", tokens: np.ndarray) -> DecodedText:
    """Count the bytes in UTF-8 of the text that each sequence decodes to by itself, without special and given tokens.

    BOS, EOS (between documents too), mask and unknown tokens add no bytes. White space that the tokenizer does not keep
    is not there to count, and a character cut in two at a sequence's edge decodes to replacement characters of three
    bytes.

    Args:
        tokenizer: the sequences' own.
        tokens: integers [num_sequences, length], see `halfstep.data.tokens.given`.
    """
    rows = [row[row >= 0].tolist() for row in tokens]
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    unknown = tokenizer.unk_token_id
    # GPT-2's unknown token is its EOS, and nothing is unknown to it.
    is_own = unknown is not None and unknown not in (tokenizer.eos_token_id, tokenizer.bos_token_id)
    return DecodedText(
        num_bytes=tuple(len(text.encode("utf-8")) for text in texts),
        num_unknown_tokens=int((tokens == unknown).sum()) if is_own else 0,
    )


@torch.inference_mode()
def denoiser_likelihood(
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
    folder: Path | None = None,
) -> Likelihood:
    """The negative ELBO of a denoiser, per token, all positions counted that are not given.

    Each sequence is looked at num_draws times, at times spread evenly over the whole interval. Its noise
    depends on the seed and its row alone, so batches do not change the result, and sequences are independent.

    Args:
        logits_at: the denoiser in evaluation mode, see `LogitsAt`.
        tokens: held-out sequences, integers [num_sequences, length], see `halfstep.data.tokens.given`.
        schedule: the noise schedule.
        min_time: smallest time.
        mask_token_id: id of the absorbing state.
        num_draws: times drawn per sequence.
        batch_size: noised sequences per forward pass.
        seed: of the noise.
        device: where the denoiser computes.
        folder: for the batches, see `cached`.
    Raises:
        UserError: the network gives NaN or infinity.
    Source: Sahoo et al. 2024, arXiv:2406.07524, Eq. 10 and 11; the paper draws one time per sequence.
    """
    looks = _noised(tokens, schedule, min_time, mask_token_id, num_draws, seed)
    nelbos: list[float] = []
    times: list[float] = []

    def nelbos_of(parts: list[Tensor]) -> Arrays:
        x0, xt, t = (part.to(device) for part in parts)
        is_masked = xt == mask_token_id
        log_p = masked_log_probs(logits_at(xt, is_masked), mask_token_id)
        return {"nelbos": nelbo_per_token(log_p, x0, is_masked, t, schedule).double().sum(dim=1).cpu().numpy()}

    pieces = ([torch.stack(part) for part in zip(*batch, strict=True)] for batch in batched(looks, batch_size))
    for parts, kept in cached(folder, pieces, nelbos_of):
        times += parts[2].tolist()
        nelbos += kept["nelbos"].tolist()
    per_look = np.asarray(nelbos).reshape(len(tokens), num_draws)
    nlls = _finite(per_look.mean(axis=1).tolist())
    num_tokens = (tokens >= 0).sum(axis=1)
    by_time = loss_by_time(np.asarray(times).reshape(per_look.shape), per_look / num_tokens[:, None])
    return Likelihood(nlls, tuple(num_tokens.tolist()), tuple(by_time))


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
        given = torch.from_numpy(ids).expand(num_draws, -1)
        x0 = plain(given)
        t = antithetic_times(num_draws, min_time, generator=generator)
        xt = mask_tokens(x0, schedule.alpha(t), mask_token_id, generator=generator)
        yield from zip(x0, torch.where(given < 0, x0, xt), t, strict=True)


@torch.inference_mode()
def stepwise_likelihood(
    model: MaskedModel,
    tokens: np.ndarray,
    *,
    num_steps: int,
    together: bool,
    mask_token_id: int,
    num_draws: int,
    batch_size: int,
    seed: int,
    device: torch.device,
    folder: Path | None = None,
) -> Likelihood:
    """An upper bound on the negative log-likelihood of sequences as ancestral sampling in a few steps writes them.

    A sampler draws for each position the step in which it is written, and within a step an order; given these it writes
    x with a probability that is a product over the steps, and over these -log of it is the bound, by Jensen's
    inequality. Its sum over the steps is estimated from as many of them, evenly spread, as draws are made. Tokens of a
    step are independent, or those of a joint head in its order. With ever more steps both are the negative ELBO.

    Args:
        model: in evaluation mode, on `device`; with a joint head if `together`.
        tokens: held-out sequences, integers [num_sequences, length].
        num_steps: of the sampler.
        together: whether a step's tokens are drawn by the joint head.
        others: see `denoiser_likelihood`.
    """

    def looks() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for row, ids in enumerate(tokens.astype(np.int64)):
            generator = torch.Generator().manual_seed(derive_seed(seed, "steps", num_steps, row))
            given = torch.from_numpy(ids).expand(num_draws, -1)
            u_time = torch.rand(given.shape, generator=generator, dtype=torch.float64)
            start = torch.rand((), generator=generator, dtype=torch.float64)
            step = ((torch.arange(num_draws) + start) / num_draws * num_steps).long() + 1
            yield from zip(given, u_time, step, strict=True)

    def nlls_of(parts: list[Tensor]) -> Arrays:
        given, u_time, step = (part.to(device) for part in parts)
        x0 = plain(given)
        written_in = unmask_steps(u_time, num_steps).masked_fill(given < 0, 0)
        xt = torch.where(written_in < step[:, None], x0, mask_token_id)
        at = written_in == step[:, None]
        hidden = model.hidden_at(xt, at, t=1 - (step.double() - 1) / num_steps)
        weight, bias = model.projection()
        if together:
            assert isinstance(model, JointModel)
            arrangement = model.arrange(at, u_time)
            hidden = model.conditional(hidden, x0.gather(1, arrangement.columns), arrangement)
            hidden = arrangement.row_major(hidden)
        log_p = masked_log_probs(F.linear(hidden, weight, bias).float(), mask_token_id)
        of_tokens = torch.zeros(x0.shape, dtype=torch.float64, device=device)
        of_tokens[at] = log_p.gather(1, x0[at][:, None])[:, 0].double()
        return {"nlls": (-num_steps * of_tokens.sum(dim=1)).cpu().numpy()}

    pieces = ([torch.stack(part) for part in zip(*batch, strict=True)] for batch in batched(looks(), batch_size))
    nlls = np.concatenate([kept["nlls"] for _, kept in cached(folder, pieces, nlls_of)])
    means = nlls.reshape(len(tokens), num_draws).mean(axis=1)
    return Likelihood(_finite(means.tolist()), tuple((tokens >= 0).sum(axis=1).tolist()))


def autoregressive_likelihood(
    model: "PreTrainedModel", tokens: np.ndarray, *, batch_size: int, folder: Path | None = None
) -> Likelihood:
    """The negative log-likelihood of an autoregressive model, per scored token: all but the first and those given.

    Args:
        model: causal language model in evaluation mode.
        tokens: held-out sequences, integers [num_sequences, length], see `halfstep.data.tokens.given`.
        batch_size: sequences per forward pass.
        folder: for the batches, see `cached`.
    Raises:
        UserError: the network gives NaN or infinity.
    """
    scored = read_tokens(model, tokens.tolist(), batch_size=batch_size, folder=folder)
    return Likelihood(_finite(scored.nlls), tuple(scored.num_tokens))


def _finite(nlls: Sequence[float]) -> tuple[float, ...]:
    bad = [row for row, nll in enumerate(nlls) if not math.isfinite(nll)]
    if bad:
        raise UserError(
            f"the model gives {nlls[bad[0]]} for {len(bad)} of {len(nlls)} sequences, the first in row {bad[0]}: its"
            " weights are broken, train it again with a lower learning rate"
        )
    return tuple(nlls)
