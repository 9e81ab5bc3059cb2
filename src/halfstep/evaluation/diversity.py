"""How varied samples are, within one and among many: what low perplexity can hide, repetition and copying.

A sample that repeats itself has low entropy, samples that repeat each other have few distinct n-grams and a high
self-BLEU, and samples that repeat the training text have long copied spans.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from halfstep.metrics.estimate import Estimate, mean_estimate

HASH_BASE = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that no power of it vanishes modulo 2^64."""


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


def distinct_ngrams(samples: Iterable[Sequence[int]], n: int) -> float | None:
    """Share of different n-grams among all n-grams of all samples.

    It falls with the number of samples, so it compares sets of one size only.

    Args:
        samples: token ids.
        n: tokens per n-gram, 1 or more.
    Returns:
        in (0, 1]; None where no sample has n tokens.
    Source: Li et al. 2016, arXiv:1510.03055 (distinct-n).
    """
    counts = Counter(tuple(ids[i : i + n]) for ids in samples for i in range(len(ids) - n + 1))
    return len(counts) / counts.total() if counts else None


def self_bleu(groups: Iterable[Sequence[str]]) -> Estimate | None:
    """Mean BLEU of each text against the other texts of its group: the continuations of one prefix.

    Args:
        groups: texts; groups of fewer than two have nothing to compare and do not count.
    Returns:
        0 (nothing shared) to 100 (copies); `count` is the number of groups, which are the independent units. None
        where no group has two texts.
    Source: Zhu et al. 2018, arXiv:1802.01886 (self-BLEU); on continuations of one prefix as in Deschenaux & Gulcehre
        2024, arXiv:2410.21035v2, Section 4. BLEU up to 4-grams by `sacrebleu`, with effective order for short texts.
    """
    from sacrebleu.metrics import BLEU

    bleu = BLEU(effective_order=True)
    scores = []
    for group in groups:
        texts = list(group)
        if len(texts) < 2:
            continue
        of_texts = [bleu.sentence_score(text, texts[:i] + texts[i + 1 :]).score for i, text in enumerate(texts)]
        scores.append(math.fsum(of_texts) / len(of_texts))
    return mean_estimate(scores, "1", name="self-BLEU") if scores else None


def copied_share(
    sample_sets: Sequence[Sequence[Sequence[int]]], training_rows: Iterable[np.ndarray], num_tokens: int
) -> list[Estimate]:
    """Share of samples that copy a span of more than num_tokens tokens from the training text.

    A longest copied span exceeds num_tokens exactly if some num_tokens + 1 tokens in a row occur in the training
    text; windows are compared by a 64-bit hash, so two different ones pass for equal with chance 2^-64 a pair. Spans
    that cross the end of a training row are not seen.

    Args:
        sample_sets: token ids of the samples, set by set.
        training_rows: the training text in pieces, integers [num_rows, length]; read once, never held whole.
        num_tokens: longest span that does not count, 0 or more.
    Returns:
        one estimate per set; counts are in samples.
    Raises:
        ValueError: a set is empty.
    """
    window = num_tokens + 1
    hashes = [[_window_hashes(np.asarray(ids)[None], window) for ids in samples] for samples in sample_sets]
    known = np.unique(np.concatenate([h for of_set in hashes for h in of_set] or [np.empty(0, np.uint64)]))
    is_copied = np.zeros(len(known) + 1, dtype=bool)
    for rows in training_rows:
        of_rows = _window_hashes(rows, window)
        places = np.searchsorted(known, of_rows)
        hits = places < len(known)
        hits[hits] = known[places[hits]] == of_rows[hits]
        is_copied[places[hits]] = True
    return [
        mean_estimate([bool(is_copied[np.searchsorted(known, h)].any()) for h in of_set], "1", name="copied samples")
        for of_set in hashes
    ]


def _window_hashes(rows: np.ndarray, window: int) -> np.ndarray:
    """Polynomial hash modulo 2^64 of every window within a row, uint64 [num_windows]."""
    values = rows.astype(np.uint64) + np.uint64(1)
    num_windows = values.shape[1] - window + 1
    if num_windows < 1:
        return np.empty(0, np.uint64)
    total = np.zeros((len(values), num_windows), dtype=np.uint64)
    for i in range(window):
        total = total * HASH_BASE + values[:, i : i + num_windows]
    # The low bits of such a sum see only the low bits of the tokens.
    total ^= total >> np.uint64(32)
    return (total * HASH_BASE).ravel()
