"""How likely a scorer finds samples, always beside their entropy: repetition is likely, and worthless."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from halfstep.data.tokens.given import without_filling
from halfstep.evaluation.evaluated import Evaluated, rows_of
from halfstep.evaluation.scorer import Reading
from halfstep.metrics.estimate import Estimate, mean_estimate, perplexity_estimate, perplexity_of, with_interval
from halfstep.metrics.record import Row


def measure(evaluated: Evaluated) -> Iterator[Row]:
    """generative_perplexity, entropy and num_windowed of the unconditional samples; the first two of held-out text.

    Source: Deschenaux & Gulcehre 2024, arXiv:2410.21035v2, Section 4 (under GPT-2 large; Llama 3 8B in 4.3).
    """
    resampling = {"num_resamples": evaluated.settings.num_bootstrap_resamples, "seed": evaluated.seed}
    data = without_filling(evaluated.held_out.tolist(), evaluated.tokenizer.eos_token_id)
    perplexity, entropy = quality(data, evaluated.scored(data, "held-out"), **resampling)
    yield from rows_of(None, data_generative_perplexity=perplexity, data_entropy=entropy)
    for (samples, _), scored in zip(evaluated.sample_sets, evaluated.scored_samples, strict=True):
        perplexity, entropy = quality(evaluated.whole(samples), scored, **resampling)
        yield from rows_of(samples, generative_perplexity=perplexity, entropy=entropy)
        yield from rows_of(samples, num_windowed=scored.num_windowed)


def quality(
    samples: Sequence[Sequence[int]], scored: Reading, *, num_resamples: int, seed: int
) -> tuple[Estimate, Estimate]:
    """Generative perplexity and entropy of samples, with bootstrap intervals over samples.

    Every token after the first counts that is not given, EOS included, as in the code of SDTT; that of MDLM leaves out
    EOS tokens and what is between a sample's first and second. A text that the scorer cuts into fewer than two
    tokens has none.

    Args:
        samples: token ids of their own tokenizer, see `halfstep.data.tokens.given`.
        scored: what the scorer makes of them.
        num_resamples: of the bootstrap; 0 determines no interval.
        seed: of the bootstrap.
    Returns:
        (perplexity per scored token of the scorer's tokenizer, unigram entropy within a sample, in nats).
    Raises:
        ValueError: there are no samples, or none has a token to score.
    """
    entropies = [unigram_entropy(token_ids) for token_ids in samples]
    perplexity = perplexity_estimate(scored.nlls, scored.num_tokens, name="generative perplexity")
    entropy = mean_estimate(entropies, "nats", name="entropy")
    return (
        with_interval(
            perplexity, perplexity_of, [scored.nlls, scored.num_tokens], num_resamples=num_resamples, seed=seed
        ),
        with_interval(entropy, np.mean, [entropies], num_resamples=num_resamples, seed=seed),
    )


def unigram_entropy(token_ids: Sequence[int]) -> float:
    """Entropy of the token frequencies within one sample.

    Args:
        token_ids: the sample, at least one token that is not given.
    Returns:
        nats, from 0 (one token repeated) to log(len(token_ids)) (all different).
    Raises:
        ValueError: the sample is empty.
    Source: Zheng et al. 2024, arXiv:2409.02908, Section 5.1 and Appendix H.1.
    """
    counts = Counter(token for token in token_ids if token >= 0)
    total = counts.total()
    if not total:
        raise ValueError("the entropy of an empty sample is undefined")
    return math.fsum(-n / total * math.log(n / total) for n in counts.values())
