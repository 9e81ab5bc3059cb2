"""How varied the tokens within a sample are: low entropy unmasks the repetition that perplexity rewards."""

import math
from collections import Counter
from collections.abc import Sequence

from halfstep.evaluation.estimates import Estimate, mean_estimate


def unigram_entropy(token_ids: Sequence[int]) -> float:
    """Entropy of the token frequencies within one sample.

    Args:
        token_ids: the sample, at least one token.
    Returns:
        nats, from 0 (one token repeated) to log(len(token_ids)) (all different).
    Raises:
        ValueError: the sample is empty.
    Source: Zheng et al. 2024, arXiv:2409.02908, Section 5.1 and Appendix H.1.
    """
    if not len(token_ids):
        raise ValueError("the entropy of an empty sample is undefined")
    total = len(token_ids)
    return math.fsum(-n / total * math.log(n / total) for n in Counter(token_ids).values())


def entropy_estimate(samples: Sequence[Sequence[int]]) -> Estimate:
    """Mean `unigram_entropy` over samples, nats."""
    return mean_estimate([unigram_entropy(token_ids) for token_ids in samples], "nats", name="entropy")
