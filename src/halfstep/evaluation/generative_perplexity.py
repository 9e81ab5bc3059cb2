"""How likely a scorer finds samples, always beside their entropy: repetition is likely, and worthless."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from halfstep.evaluation.diversity import entropy_estimate
from halfstep.evaluation.estimates import Estimate, perplexity_estimate
from halfstep.evaluation.scorer import Scorer, to_scorer_ids, token_nlls

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class SampleQuality:
    """Quality and diversity of one set of samples.

    Attributes:
        generative_perplexity: per scored token of the scorer's tokenizer; count is in samples.
        entropy: unigram entropy within a sample, over the samples' own tokens, nats.
        is_retokenized: whether the scorer cuts the text into tokens of its own.
        num_truncated: samples longer than the scorer's context, scored up to it.
    """

    generative_perplexity: Estimate
    entropy: Estimate
    is_retokenized: bool
    num_truncated: int


def sample_quality(
    samples: Sequence[Sequence[int]], tokenizer: "PreTrainedTokenizerBase", scorer: Scorer, *, batch_size: int
) -> SampleQuality:
    """Generative perplexity and entropy of samples.

    Args:
        samples: token ids of `tokenizer`.
        tokenizer: the samples' own.
        scorer: who judges.
        batch_size: samples per forward pass.
    Source: Deschenaux & Gulcehre 2024, arXiv:2410.21035v2, Section 4 (under GPT-2 large; Llama 3 8B in 4.3).
    Every token after the first counts, EOS included, as in the code of SDTT; that of MDLM leaves out EOS tokens and
    what stands between a sample's first and second.
    """
    ids, is_retokenized = to_scorer_ids(samples, tokenizer, scorer)
    scored = token_nlls(scorer.model, ids, batch_size=batch_size, max_length=scorer.max_length)
    return SampleQuality(
        generative_perplexity=perplexity_estimate(scored.nlls, scored.num_tokens, name="generative perplexity"),
        entropy=entropy_estimate(samples),
        is_retokenized=is_retokenized,
        num_truncated=scored.num_truncated,
    )
