"""What the samples of one number of denoising steps are worth: quality beside diversity, always."""

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from halfstep.evaluation.diversity import distinct_ngrams, self_bleu
from halfstep.evaluation.generative_perplexity import SampleQuality, sample_quality
from halfstep.evaluation.mauve import Mauve, mauve_score
from halfstep.evaluation.scorer import Scorer, text_features
from halfstep.metrics.estimate import Estimate, mean_estimate, perplexity_of, with_interval
from halfstep.run.errors import UserError
from halfstep.run.files import atomic_path
from halfstep.samples.table import SampleSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DISTINCT_NGRAM_SIZES = (1, 2, 3, 4)


@dataclass(frozen=True)
class SampleMetrics:
    """Measures of one model's samples in one number of steps; None is what could not be measured.

    Attributes:
        num_steps: denoising steps asked for.
        nfe: network evaluations per unconditional sample.
        quality: of the unconditional samples.
        mauve: of the continuations against the references.
        self_bleu: among the continuations of one prefix.
        distinct: share of distinct n-grams among the unconditional samples, by n.
        copied: share of the unconditional samples with a long span of the training text.
    """

    num_steps: int
    nfe: Estimate
    quality: SampleQuality
    mauve: Mauve | None
    self_bleu: Estimate | None
    distinct: dict[int, float | None]
    copied: Estimate

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a metrics file."""
        return {
            "num_steps": self.num_steps,
            "nfe": self.nfe.as_dict(),
            "generative_perplexity": self.quality.generative_perplexity.as_dict(),
            "entropy": self.quality.entropy.as_dict(),
            "mauve": self.mauve and self.mauve.as_dict(),
            "self_bleu": self.self_bleu and self.self_bleu.as_dict(),
            "distinct_ngrams": {str(n): share for n, share in self.distinct.items()},
            "copied": self.copied.as_dict(),
            "num_truncated": self.quality.scored.num_truncated,
        }


@dataclass(frozen=True)
class SampleJudge:
    """Judges sets of samples.

    Attributes:
        tokenizer: the samples' own.
        scorer: see `halfstep.evaluation.scorer`.
        references: features of the texts whose beginnings the continuations continue, float [m, hidden_size].
        batch_size: samples per forward pass of the scorer.
        num_resamples: of the bootstrap intervals.
        seed: of the bootstrap.
        mauve_scaling_factor, mauve_num_buckets, mauve_seeds: see `mauve_score`.
    """

    tokenizer: "PreTrainedTokenizerBase"
    scorer: Scorer
    references: np.ndarray
    batch_size: int
    num_resamples: int
    seed: int
    mauve_scaling_factor: float
    mauve_num_buckets: int | Literal["auto"]
    mauve_seeds: Sequence[int]

    def quality(self, samples: Sequence[Sequence[int]]) -> SampleQuality:
        """See `sample_quality`."""
        return sample_quality(
            samples,
            self.tokenizer,
            self.scorer,
            batch_size=self.batch_size,
            num_resamples=self.num_resamples,
            seed=self.seed,
        )

    def measure(self, unconditional: SampleSet, continuations: SampleSet, copied: Estimate) -> SampleMetrics:
        """All measures of two sets that were drawn in the same way; `copied` is of `copied_share`."""
        by_prefix: dict[int, list[str]] = defaultdict(list)
        for row, token_ids in zip(continuations.prefix_rows, continuations.token_ids, strict=True):
            new = token_ids[continuations.prefix_length :]
            by_prefix[row].append(self.tokenizer.decode(new, skip_special_tokens=True))
        return SampleMetrics(
            num_steps=unconditional.num_steps,
            nfe=mean_estimate(unconditional.nfe, "1", name="nfe"),
            quality=self.quality(unconditional.token_ids),
            mauve=mauve_score(
                self.references,
                text_features(continuations.token_ids, self.tokenizer, self.scorer, batch_size=self.batch_size),
                scaling_factor=self.mauve_scaling_factor,
                num_buckets=self.mauve_num_buckets,
                seeds=self.mauve_seeds,
            ),
            self_bleu=self_bleu(by_prefix.values()),
            distinct={n: distinct_ngrams(unconditional.token_ids, n) for n in DISTINCT_NGRAM_SIZES},
            copied=copied,
        )


def write_samples_table(path: Path, measured: Sequence[SampleMetrics]) -> None:
    """Write what each unconditional sample scored to CSV, so that sets can be compared sample by sample."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["num_steps", "sample_index", "nll_nats", "num_tokens", "entropy_nats"])
        for metrics in measured:
            scored = metrics.quality.scored
            columns = zip(scored.nlls, scored.num_tokens, metrics.quality.entropies, strict=True)
            writer.writerows([metrics.num_steps, index, *row] for index, row in enumerate(columns))


def paired_perplexity_ratio(
    ours: Path, theirs: Path, num_steps: int, *, num_resamples: int, seed: int
) -> Estimate | None:
    """Our generative perplexity over theirs in one number of steps, with a bootstrap interval over pairs of samples.

    Samples of one index are drawn from the same random numbers by every model, so they are paired: what chance does
    to both cancels.

    Args:
        ours, theirs: tables of `write_samples_table`.
        num_steps: which samples.
        num_resamples, seed: of the bootstrap.
    Returns:
        the ratio; None where either has no samples in so many steps, or they are not the same ones.
    Raises:
        UserError: a table is missing or broken.
    """
    tables = [_read_samples_table(path, num_steps) for path in (ours, theirs)]
    (indices, *our_numbers), (their_indices, *their_numbers) = tables
    if not len(indices) or not np.array_equal(indices, their_indices):
        return None

    def ratio(*numbers: np.ndarray, axis: int = -1) -> np.ndarray:
        our_nlls, our_tokens, their_nlls, their_tokens = numbers
        return perplexity_of(our_nlls, our_tokens, axis) / perplexity_of(their_nlls, their_tokens, axis)

    numbers = [*our_numbers, *their_numbers]
    estimate = Estimate(float(ratio(*numbers)), None, len(indices), "1")
    return with_interval(estimate, ratio, numbers, num_resamples=num_resamples, seed=seed)


def _read_samples_table(path: Path, num_steps: int) -> list[np.ndarray]:
    """(sample indices, nats, tokens) of the samples in one number of steps, each float [num_samples]."""
    columns = ("sample_index", "nll_nats", "num_tokens")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if int(row["num_steps"]) == num_steps]
        return [np.array([float(row[name]) for row in rows]) for name in columns]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): the stage evaluate writes it, dvc repro") from None
