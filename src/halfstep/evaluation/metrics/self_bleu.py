"""Self-BLEU: how much the continuations of one prefix share."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from halfstep.evaluation.evaluated import Evaluated, rows_of
from halfstep.metrics.estimate import Estimate, mean_estimate
from halfstep.metrics.record import Row


def measure(evaluated: Evaluated) -> Iterator[Row]:
    """self_bleu, of the continuations without their prefixes."""
    for _, samples in evaluated.sample_sets:
        by_prefix: dict[int, list[str]] = defaultdict(list)
        for row, token_ids in zip(samples.prefix_rows, evaluated.new(samples), strict=True):
            new = token_ids[samples.prefix_length :]
            by_prefix[row].append(evaluated.tokenizer.decode(new, skip_special_tokens=True))
        yield from rows_of(samples, self_bleu=self_bleu(by_prefix.values()))


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
