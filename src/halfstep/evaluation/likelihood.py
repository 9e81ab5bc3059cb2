"""How likely a model finds held-out text."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from halfstep.data.seeds import derive_seed
from halfstep.diffusion.nelbo import nelbo_per_token
from halfstep.diffusion.noise import antithetic_times, mask_tokens
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.diffusion.subs import masked_log_probs
from halfstep.evaluation.loss_by_time import TimeBucket, loss_by_time
from halfstep.evaluation.scorer import token_nlls
from halfstep.metrics.estimate import Estimate, mean_estimate, perplexity_estimate
from halfstep.run.errors import UserError
from halfstep.run.work import Arrays, Remember, anew
from halfstep.samplers.base import LogitsAt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Likelihood:
    """Likelihood of held-out sequences; counts of estimates are in sequences.

    Attributes:
        nlls: negative log-likelihood of each sequence, nats.
        num_tokens: tokens that each sum covers.
        num_draws: noise levels behind each sum, where the model is a denoiser and they are upper bounds; None where it
            is autoregressive and they are exact.
        by_time: of a denoiser, the bound's integrand by time.
    """

    nlls: tuple[float, ...]
    num_tokens: tuple[int, ...]
    num_draws: int | None
    by_time: tuple[TimeBucket, ...] | None = None

    @property
    def is_bound(self) -> bool:
        """Whether these are upper bounds."""
        return self.num_draws is not None

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

    def as_dict(self, text: "DecodedText") -> dict[str, Any]:
        """Plain values for a metrics file; `text` is what the sequences decode to."""
        bits = self.bits_per_byte(text.num_bytes)
        return {
            "nll_per_token": self.nll_per_token.as_dict(),
            "perplexity": self.perplexity.as_dict(),
            "bits_per_byte": bits and bits.as_dict(),
            "is_bound": self.is_bound,
            "num_draws": self.num_draws,
            "num_tokens": sum(self.num_tokens),
            "num_bytes": sum(text.num_bytes),
            "num_unknown_tokens": text.num_unknown_tokens,
        }


@dataclass(frozen=True)
class DecodedText:
    """How much text sequences of tokens stand for.

    Attributes:
        num_bytes: of each sequence, decoded.
        num_unknown_tokens: tokens that stand for text the tokenizer does not know. Their bytes are lost and their cost
            is that of one word for many, so bits per byte compare tokenizers only where this is 0.
    """

    num_bytes: tuple[int, ...]
    num_unknown_tokens: int


def decoded_bytes(tokenizer: "PreTrainedTokenizerBase", tokens: np.ndarray) -> DecodedText:
    """Count the bytes in UTF-8 of the text that each sequence decodes to by itself, special tokens left out.

    BOS, EOS (between documents too), mask and unknown tokens add no bytes. White space that the tokenizer does not keep
    is not there to count, and a character cut in two at a sequence's edge decodes to replacement characters of three
    bytes.

    Args:
        tokenizer: the sequences' own.
        tokens: integers [num_sequences, length].
    """
    texts = tokenizer.batch_decode(tokens.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
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
    remember: Remember = anew,
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
        remember: keeps the batches, see `halfstep.run.work`.
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

    batches = iter(lambda: list(islice(looks, batch_size)), [])
    pieces = ([torch.stack(part) for part in zip(*batch, strict=True)] for batch in batches)
    for parts, kept in remember("nelbos", pieces, lambda parts: [part.tolist() for part in parts], nelbos_of):
        times += parts[2].tolist()
        nelbos += kept["nelbos"].tolist()
    per_look = np.asarray(nelbos).reshape(len(tokens), num_draws)
    likelihood = _likelihood(per_look.mean(axis=1).tolist(), [tokens.shape[1]] * len(tokens), num_draws)
    by_time = loss_by_time(np.asarray(times).reshape(per_look.shape), per_look / tokens.shape[1])
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


def autoregressive_likelihood(
    model: "PreTrainedModel", tokens: np.ndarray, *, batch_size: int, remember: Remember = anew
) -> Likelihood:
    """The negative log-likelihood of an autoregressive model, per scored token: all but the first.

    Args:
        model: causal language model in evaluation mode.
        tokens: held-out sequences, integers [num_sequences, length].
        batch_size: sequences per forward pass.
        remember: keeps the batches, see `halfstep.run.work`.
    Raises:
        UserError: the network gives NaN or infinity.
    """
    scored = token_nlls(model, tokens.tolist(), batch_size=batch_size, remember=remember)
    return _likelihood(scored.nlls, scored.num_tokens, None)


def _likelihood(nlls: Sequence[float], num_tokens: Sequence[int], num_draws: int | None) -> Likelihood:
    bad = [row for row, nll in enumerate(nlls) if not math.isfinite(nll)]
    if bad:
        raise UserError(
            f"the model gives {nlls[bad[0]]} for {len(bad)} of {len(nlls)} sequences, the first in row {bad[0]}: its"
            " weights are broken, train it again with a lower learning rate"
        )
    return Likelihood(tuple(nlls), tuple(num_tokens), num_draws)
