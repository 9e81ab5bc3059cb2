"""Every measure, cut off after each of its batches and called again, gives what it gives in one go."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.evaluation.likelihood import autoregressive_likelihood, denoiser_likelihood
from halfstep.evaluation.lm_eval.autoregressive_lm import AutoregressiveLM
from halfstep.evaluation.lm_eval.denoiser_lm import DenoiserLM
from halfstep.evaluation.scorer import Reading, Scorer, read_texts
from halfstep.run.files import atomic_path

SEQUENCES = [[0, 3, 4, 5, 1], [0, 8], [0, 3, 3, 9, 10, 2, 7, 1], [5], [0, 4, 4], [6, 6, 6, 6]]
REQUESTS = [
    SimpleNamespace(args=pair)
    for pair in [("the cat", " saw a"), ("a red", " dog"), ("the", " house"), ("a bird", " ran"), ("the dog", " saw")]
]


class Killed(Exception):
    """Stands for the end of the process."""


@contextmanager
def kept_and_killed(path: Path) -> Iterator[Path]:
    with atomic_path(path) as temporary:
        yield temporary
    raise Killed


def in_many_calls(measure: Callable[[Path], Any], folder: Path) -> tuple[Any, int]:
    """(what a measure gives in the end, how often it was killed), each time with a batch that it has kept."""
    for num_killed in range(100):
        try:
            return measure(folder), num_killed
        except Killed:
            continue
    raise AssertionError("no progress")


def one_row(xt: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """A denoiser that looks at the position left of the one it predicts."""
    table = torch.randn(14, 14, generator=torch.Generator().manual_seed(0))
    return table[xt.roll(1, dims=1)[at]]


def denoiser_lm(tokenizer, folder):
    settings = {"max_length": 16, "mask_token_id": tokenizer.mask_token_id, "num_draws": 5, "batch_size": 3}
    return DenoiserLM(one_row, tokenizer, **settings, seed=0, device=torch.device("cpu"), folder=folder)


def held_out_nelbo(folder: Path | None):
    tokens = np.random.default_rng(0).integers(0, 13, size=(5, 12)).astype(np.uint16)
    settings = {"schedule": LogLinearSchedule(1e-3), "min_time": 1e-5, "mask_token_id": 13, "num_draws": 3}
    return denoiser_likelihood(
        one_row, tokens, **settings, batch_size=4, seed=0, device=torch.device("cpu"), folder=folder
    )


def of_texts(reading: Reading) -> tuple[Any, ...]:
    return reading.nlls, reading.num_tokens, reading.features.tolist()


@pytest.fixture
def measures(gpt2, tokenizer) -> dict[str, tuple[Callable[[Path | None], Any], int]]:
    """By name: a measure, and how many batches it has."""
    tokens = np.array([[0, 3, 4], [0, 5, 6], [0, 7, 8]])
    scorer = Scorer(gpt2, tokenizer)
    return {
        "scorer": (lambda at: of_texts(read_texts(SEQUENCES, tokenizer, scorer, batch_size=2, folder=at)), 3),
        "denoiser's likelihood": (held_out_nelbo, 4),
        "autoregressive likelihood": (
            lambda at: autoregressive_likelihood(gpt2, tokens, batch_size=2, folder=at), 2,
        ),
        "denoiser's tasks": (lambda at: denoiser_lm(tokenizer, at).loglikelihood(REQUESTS, disable_tqdm=True), 3),
        "autoregressive tasks": (
            lambda at: AutoregressiveLM(gpt2, tokenizer, batch_size=2, folder=at).loglikelihood(REQUESTS, True), 3,
        ),
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "scorer", "denoiser's likelihood", "autoregressive likelihood", "denoiser's tasks",
        "autoregressive tasks",
    ],
)  # fmt: skip
def test_cut_off_after_every_batch(measures, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halfstep.evaluation.lm_eval.autoregressive_lm.REQUESTS_AT_ONCE", 1)
    measure, num_batches = measures[name]
    monkeypatch.setattr("halfstep.run.work.atomic_path", kept_and_killed)
    found, num_killed = in_many_calls(measure, tmp_path / "batches")
    assert found == measure(None)
    assert num_killed == num_batches
