"""MAUVE: how close the distribution of continuations is to that of the references."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import numpy as np

from halfstep.data.tokens.given import without_filling
from halfstep.evaluation.evaluated import Evaluated, rows_of, samples_name
from halfstep.metrics.estimate import FEWEST_MAUVE_TEXTS, Estimate, mean_estimate
from halfstep.metrics.record import Row
from halfstep.run.console import console
from halfstep.run.errors import UserError


def measure(evaluated: Evaluated) -> Iterator[Row]:
    """mauve, of the continuations against the held-out texts whose beginnings they continue.

    Features are the scorer's last hidden state at the last token of prefix and continuation.
    """
    settings = evaluated.settings
    texts = [continuations for _, continuations in evaluated.sample_sets]
    prefix_rows, length = sorted(set(texts[0].prefix_rows)), len(texts[0].token_ids[0])
    rows = evaluated.valid_tokens.stored(prefix_rows)[:, :length].tolist()
    references = evaluated.scored(without_filling(rows, evaluated.tokenizer.eos_token_id), "references").features
    for samples in texts:
        mauve = mauve_score(
            references,
            evaluated.scored(evaluated.whole(samples), f"continuations {samples_name(samples)}").features,
            scaling_factor=settings.mauve_scaling_factor,
            num_buckets=settings.mauve_num_buckets,
            seeds=range(evaluated.seed, evaluated.seed + settings.mauve_num_seeds),
        )
        if samples is texts[0] and mauve is not None and mauve.count < FEWEST_MAUVE_TEXTS:
            console.print(
                f"MAUVE of {mauve.count} texts, fewer than {FEWEST_MAUVE_TEXTS}, says little by itself: raise"
                " sample.num_prefixes",
                markup=False,
                soft_wrap=True,
            )
        yield from rows_of(samples, mauve=mauve)


def mauve_score(
    p_features: np.ndarray,
    q_features: np.ndarray,
    *,
    scaling_factor: float,
    num_buckets: int | Literal["auto"],
    seeds: Sequence[int],
) -> Estimate | None:
    """MAUVE of two sets of texts, averaged over k-means seeds.

    Args:
        p_features: of the references, float [num_references, hidden_size].
        q_features: of the generated texts, float [num_texts, hidden_size].
        scaling_factor: constant c of the divergence curve.
        num_buckets: k-means clusters; "auto" is a tenth of the smaller set, at least 2.
        seeds: of the clusterings.
    Returns:
        the mean over the seeds in (0, 1], 1 for equal distributions, with the standard error of that mean: how much
        the clustering matters, not how much other samples would. `count` is the size of the smaller set. None where a
        set has fewer than 2 texts.
    Raises:
        UserError: a feature is NaN or infinite.
        ValueError: more buckets than texts.
    Source: Pillutla et al. 2021, arXiv:2102.01454, as implemented by its authors in `mauve-text`.
    """
    count = min(len(p_features), len(q_features))
    if count < 2:
        return None
    num_points = len(p_features) + len(q_features)
    if num_buckets != "auto" and num_buckets > num_points:
        raise ValueError(f"num_buckets is {num_buckets}, more than the {num_points} texts to sort into them")
    for name, array in (("references", p_features), ("generated texts", q_features)):
        if not np.isfinite(array).all():
            raise UserError(f"evaluate.scorer gives features of the {name} that are not finite: use another scorer")
    from mauve import compute_mauve
    from threadpoolctl import threadpool_limits

    def score(seed: int) -> float:
        result = compute_mauve(
            p_features=p_features,
            q_features=q_features,
            num_buckets=num_buckets,
            mauve_scaling_factor=scaling_factor,
            seed=seed,
            verbose=False,
        )
        # Of equal histograms the curve is a single point, and the area that mauve-text finds under it
        # depends on how its sort breaks ties; by definition it is 1.
        return 1.0 if np.array_equal(result.p_hist, result.q_hist) else float(result.mauve)

    # The clustering is many tiny steps: threads that wait for each other make it a hundred times slower. One
    # thread also sums in one order, so the result is the same every time.
    with _faiss_silenced(), threadpool_limits(limits=1):
        scores = [score(seed) for seed in seeds]
    return replace(mean_estimate(scores, "1", name="MAUVE over seeds"), count=count)


@contextmanager
def _faiss_silenced() -> Iterator[None]:
    """Drop what faiss writes to stderr: it asks for 39 points a cluster, MAUVE's own rule gives it 20."""
    saved = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(sink)
        os.close(saved)
