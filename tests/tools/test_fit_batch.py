"""The search for a batch that fits, against trials that are known, and once in earnest at toy size."""

import json
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from halfstep.run.device import peak_memory_bytes
from halfstep.run.errors import UserError
from halfstep.settings import load_params
from halfstep.tools import fit_batch as fit
from halfstep.tools.cli import app
from halfstep.tools.fit_batch import (
    fit_batch,
    largest_that_fits,
    memory_limit,
    round_numbers,
    try_batch,
    vocab_size_for,
)
from halfstep.tools.trial import EXIT_TOO_MUCH

ROOT = Path(__file__).parents[2]
GIB = 2**30
LIBRARIES = 100 * 2**20
"""Less than what a process has in RAM once it has imported torch; toy sizes add next to nothing."""


@pytest.fixture
def params_path(tmp_path: Path) -> Path:
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values["model"].update(hidden_size=16, num_blocks=1, num_heads=2, cond_dim=8)
    values["runtime"].update(device="cpu", num_threads=1)
    for stage in ("pretrain", "baseline", "distill"):
        values[stage].update(batch_size=12, num_accumulation_steps=2)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.mark.parametrize("candidates", [[1], [1, 2], [1, 2, 3, 4, 6, 12], list(range(1, 40)), [3, 5, 200, 1000]])
def test_the_largest_that_fits_is_found_wherever_the_border_is(candidates: list[int]) -> None:
    for border in range(len(candidates) + 1):
        tried: list[int] = []

        def fits(n: int, border: int = border, tried: list[int] = tried) -> bool:
            tried.append(n)
            return n in candidates[:border]

        assert largest_that_fits(candidates, fits) == (candidates[border - 1] if border else None)
        assert len(tried) == len(set(tried)), "nothing is tried twice"
        assert len(tried) <= 2 * len(candidates).bit_length()


def test_no_trial_is_more_than_twice_what_fitted() -> None:
    tried: list[int] = []
    largest_that_fits(range(1, 1000), lambda n: tried.append(n) or n <= 37)
    assert max(tried) == 64


def test_numbers_to_try_are_close_and_end_at_the_most() -> None:
    assert round_numbers(5) == [1, 2, 3, 4, 5]
    numbers = round_numbers(1000)
    assert numbers[:16] == list(range(1, 17))
    assert numbers[-1] == 1000
    assert all(b / a <= 1.125 for a, b in pairwise(numbers[8:]))


def _known(monkeypatch: pytest.MonkeyPatch, peak_of) -> None:
    def known(params_path, stage, *, batch_size, num_accumulation_steps, limit_bytes, vocab_size):
        peak = peak_of(batch_size, num_accumulation_steps)
        return peak if peak <= limit_bytes else None

    monkeypatch.setattr(fit, "try_batch", known)


@pytest.mark.parametrize(
    ("stage", "limit", "overrides"),
    [
        ("pretrain", 100, ["pretrain.num_accumulation_steps=1"]),
        ("pretrain", 20, ["pretrain.num_accumulation_steps=3"]),  # 12 + 4 fit; of 6 at once, 12 + 6 do and 8 do not
        ("distill", 13, ["distill.num_accumulation_steps=12"]),
        ("distill", 9, ["distill.batch_size=8", "distill.num_accumulation_steps=8"]),
        ("baseline", 1, []),
    ],
)
def test_training_keeps_its_batch_where_accumulation_helps(
    params_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, limit: int, overrides: list[str]
) -> None:
    """Memory here is the batch, which validation holds at once, and twice what a step holds beyond the first."""
    _known(monkeypatch, lambda batch, parts: batch + (2 * (batch // parts) if batch > parts else 1))
    trials, found = fit_batch(load_params(params_path), params_path, stage, limit_bytes=limit, vocab_size=20)
    assert found == overrides
    assert all(trial.batch_size % trial.num_accumulation_steps == 0 for trial in trials)
    assert all(trial.fits == (trial.peak_bytes is not None) for trial in trials)


def test_sampling_gets_its_largest_batch(params_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _known(monkeypatch, lambda batch, parts: batch)
    params = load_params(params_path)
    _, found = fit_batch(params, params_path, "sample", limit_bytes=53, vocab_size=20)
    assert found == ["sample.batch_size=52"]
    _, found = fit_batch(params, params_path, "sample", limit_bytes=10**6, vocab_size=20)
    assert found == [f"sample.batch_size={params.sample.num_samples}"]


# `baseline` is measured below.
@pytest.mark.parametrize(
    "stage", ["distill", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pretrain", "sample"))]
)
def test_a_stage_at_toy_size_is_measured_and_its_limit_kept(params_path: Path, stage: str) -> None:
    options = {"batch_size": 4, "num_accumulation_steps": 2, "vocab_size": 20}
    peak = try_batch(params_path, stage, limit_bytes=8 * GIB, **options)
    assert peak is not None
    assert LIBRARIES < peak < 2 * GIB


def test_more_at_once_takes_more_memory_and_a_limit_between_them_is_kept(
    params_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 sequences of 64 tokens over 4096 words: their logits alone are 64 MiB, and 4 sequences' 4 MiB.

    Validation holds the logits of the batch once, a step those of its part with their gradients.
    """
    options = {"batch_size": 64, "vocab_size": 4096}
    most, least = (
        try_batch(params_path, "baseline", num_accumulation_steps=n, limit_bytes=8 * GIB, **options) for n in (1, 16)
    )
    assert most is not None
    assert least is not None
    assert LIBRARIES < least < 2 * GIB
    assert most > least + 32 * 2**20
    between = (most + least) // 2
    codes: list[int] = []

    def noted(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        done = run(*arguments, **options)
        codes.append(done.returncode)
        return done

    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", noted)
    assert try_batch(params_path, "baseline", num_accumulation_steps=1, limit_bytes=between, **options) is None
    assert codes == [EXIT_TOO_MUCH], "the process ended itself, before it had all that it wanted"


def test_the_command_prints_trials_and_the_override(params_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _known(monkeypatch, lambda batch, parts: GIB * (batch // parts))
    arguments = ["fit-batch", "--params", str(params_path), "--tokens", "nowhere", "--limit", "4.5"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "dvc exp run -S pretrain.num_accumulation_steps=3" in done.output
    assert "pretrain in 4.50 GiB" in done.output
    rows = [line for line in done.output.splitlines() if line.rstrip(" │").endswith(("yes", "no"))]
    assert len(rows) == 5
    assert "4.00 GiB" in done.output


@pytest.mark.parametrize(
    ("options", "message"), [(["--stage", "report"], "report"), (["--limit", "0.001"], "one sequence")]
)
def test_the_command_says_what_is_wrong(
    params_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    _known(monkeypatch, lambda batch, parts: GIB)
    done = CliRunner().invoke(app, ["fit-batch", "--params", str(params_path), "--tokens", "nowhere", *options])
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)


def test_the_vocabulary_is_the_corpus_or_the_tokenizers(params_path: Path, tmp_path: Path) -> None:
    params = load_params(params_path)
    assert vocab_size_for(params, tmp_path) == 1024
    (tmp_path / "manifest.json").write_text(json.dumps({"vocab_size": 77}))
    assert vocab_size_for(params, tmp_path) == 77


def test_the_limit_is_the_users_or_below_what_is_available(params_path: Path, tmp_path: Path) -> None:
    params = load_params(params_path)
    assert memory_limit(params, 0.5) == GIB // 2
    assert memory_limit(params, None) > peak_memory_bytes() / 10
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("300\n")
    assert min(fit._left_by_control_group(tmp_path)) == 700
    (tmp_path / "memory.max").write_text("max\n")
    assert min(fit._left_by_control_group(tmp_path)) == float("inf")
