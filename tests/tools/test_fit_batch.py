"""The search for a batch that fits, against trials that are known, and once in earnest at toy size."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from halfstep.run.device import peak_memory_bytes
from halfstep.run.errors import UserError
from halfstep.settings import Params, load_params
from halfstep.tools import fit_batch as fit
from halfstep.tools.cli import app
from halfstep.tools.fit_batch import fit_batch, memory_limit, try_batch
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


def _known(monkeypatch: pytest.MonkeyPatch, peak_of) -> None:
    def known(params, stage, limit_bytes, vocab_size):
        settings = getattr(params, stage)
        peak = peak_of(settings.batch_size, getattr(settings, "num_accumulation_steps", 1))
        return peak if peak <= limit_bytes else None

    monkeypatch.setattr(fit, "try_batch", known)


@pytest.mark.parametrize(
    ("stage", "limit", "found", "num_trials"),
    [
        ("pretrain", 100, {"num_accumulation_steps": 1}, 6),
        ("pretrain", 20, {"num_accumulation_steps": 3}, 5),  # 12 + 4 fit; of 6 at once, 12 + 6 do and 8 do not
        ("distill", 13, {"num_accumulation_steps": 12}, 2),
        ("distill", 9, {"batch_size": 8, "num_accumulation_steps": 8}, 5),
        ("baseline", 1, {}, 2),
        ("sample", 53, {"batch_size": 32}, 7),
        ("sample", 10**6, {"batch_size": 128}, 8),  # all that there are
    ],
)
def test_the_largest_batch_that_fits_is_found_from_below(
    params_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, limit: int, found: dict[str, int], num_trials: int
) -> None:
    """Memory here is the batch, which validation holds at once, and twice what a step holds beyond the first."""
    beyond = 0 if stage == "sample" else 2
    _known(monkeypatch, lambda batch, parts: batch + (beyond * (batch // parts) if batch > parts else 1))
    trials, sizes = fit_batch(load_params(params_path), stage, limit_bytes=limit, vocab_size=20)
    assert sizes == found
    assert len(trials) == num_trials
    assert all(trial.batch_size % trial.num_accumulation_steps == 0 for trial in trials)


def _sized(params_path: Path, stage: str, **sizes: int) -> Params:
    params = load_params(params_path)
    return params.model_copy(update={stage: getattr(params, stage).model_copy(update=sizes)})


# `baseline` is measured below.
@pytest.mark.parametrize(
    "stage", ["distill", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pretrain", "sample"))]
)
def test_a_stage_at_toy_size_is_measured_and_its_limit_kept(params_path: Path, stage: str) -> None:
    peak = try_batch(_sized(params_path, stage, batch_size=4), stage, limit_bytes=8 * GIB, vocab_size=20)
    assert peak is not None
    assert LIBRARIES < peak < 2 * GIB


def test_more_at_once_takes_more_memory_and_a_limit_between_them_is_kept(
    params_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 sequences of 64 tokens over 4096 words: their logits alone are 64 MiB, and 4 sequences' 4 MiB.

    Validation holds the logits of the batch once, a step those of its part with their gradients.
    """
    whole, in_parts = (_sized(params_path, "baseline", batch_size=64, num_accumulation_steps=n) for n in (1, 16))
    most, least = (try_batch(params, "baseline", limit_bytes=8 * GIB, vocab_size=4096) for params in (whole, in_parts))
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
    assert try_batch(whole, "baseline", limit_bytes=between, vocab_size=4096) is None
    assert codes == [EXIT_TOO_MUCH], "the process ended itself, before it had all that it wanted"


def test_the_command_prints_trials_and_the_override(params_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _known(monkeypatch, lambda batch, parts: GIB * (batch // parts))
    arguments = ["fit-batch", "--params", str(params_path), "--limit", "4.5"]
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
    done = CliRunner().invoke(app, ["fit-batch", "--params", str(params_path), *options])
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)


def test_the_limit_is_the_users_or_below_what_is_available(params_path: Path, tmp_path: Path) -> None:
    params = load_params(params_path)
    assert memory_limit(params, 0.5) == GIB // 2
    assert memory_limit(params, None) > peak_memory_bytes() / 10
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("300\n")
    assert fit._left_by_control_group(tmp_path) == 700
    (tmp_path / "memory.max").write_text("max\n")
    assert fit._left_by_control_group(tmp_path) == float("inf")
