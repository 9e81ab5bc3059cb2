"""How likely a scorer finds samples, always beside their entropy: repetition is likely, and worthless."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from halfstep.evaluation.diversity import unigram_entropy
from halfstep.evaluation.scorer import Scorer, TokenNlls, to_scorer_ids, token_nlls
from halfstep.metrics.estimate import Estimate, mean_estimate, perplexity_estimate, perplexity_of, with_interval

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class SampleQuality:
    """Quality of one set of samples.

    Attributes:
        generative_perplexity: per scored token of the scorer's tokenizer; count is in samples.
        entropy: unigram entropy within a sample, over the samples' own tokens, nats.
        scored: what the two are made of: the likelihood of each sample
        entropies: and its entropy, nats.
        is_retokenized: whether the scorer cuts the text into tokens of its own.
    """

    generative_perplexity: Estimate
    entropy: Estimate
    scored: TokenNlls
    entropies: list[float]
    is_retokenized: bool


def sample_quality(
    samples: Sequence[Sequence[int]],
    tokenizer: "PreTrainedTokenizerBase",
    scorer: Scorer,
    *,
    batch_size: int,
    num_resamples: int,
    seed: int,
) -> SampleQuality:
    """Generative perplexity and entropy of samples, with bootstrap intervals over samples.

    Every token after the first counts, EOS included, as in the code of SDTT; that of MDLM leaves out EOS tokens and
    what stands between a sample's first and second. A text that the scorer cuts into fewer than two tokens has none.

    Args:
        samples: token ids of `tokenizer`.
        tokenizer: the samples' own.
        scorer: who judges.
        batch_size: samples per forward pass.
        num_resamples: of the bootstrap; 0 determines no interval.
        seed: of the bootstrap.
    Raises:
        ValueError: there are no samples, none has a token to score, or the scorer gives NaN.
    Source: Deschenaux & Gulcehre 2024, arXiv:2410.21035v2, Section 4 (under GPT-2 large; Llama 3 8B in 4.3).
    """
    ids, is_retokenized = to_scorer_ids(samples, tokenizer, scorer)
    scored = token_nlls(
        scorer.model, ids, batch_size=batch_size, max_length=scorer.max_length, remember=scorer.remember
    )
    entropies = [unigram_entropy(token_ids) for token_ids in samples]
    perplexity = perplexity_estimate(scored.nlls, scored.num_tokens, name="generative perplexity")
    entropy = mean_estimate(entropies, "nats", name="entropy")
    return SampleQuality(
        generative_perplexity=with_interval(
            perplexity, perplexity_of, [scored.nlls, scored.num_tokens], num_resamples=num_resamples, seed=seed
        ),
        entropy=with_interval(entropy, np.mean, [entropies], num_resamples=num_resamples, seed=seed),
        scored=scored,
        entropies=entropies,
        is_retokenized=is_retokenized,
    )
