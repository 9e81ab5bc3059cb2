"""What this machine reaches: the arithmetic by a clock of our own, the process that measures, and the command."""

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.model.hub_folders import published
from typer.testing import CliRunner

from halfstep.run.errors import UserError
from halfstep.settings import Params
from halfstep.tools import speed
from halfstep.tools.cli import app
from halfstep.tools.planning import here
from halfstep.tools.planning.compose import composed_params
from halfstep.tools.planning.here import Here, measure_here
from halfstep.tools.planning.networks import forward_flops
from halfstep.tools.planning.works import (
    Networks,
    Work,
    bounding,
    denoising,
    reading,
    training_flops,
    works_of,
)
from halfstep.tools.speed import Speed

ROOT = Path(__file__).parents[3]
VOCAB_SIZE = 203
LINES = [["start", 5.0], ["metrics", 3.0], ["texts", 0.5], ["draw", 10.0], ["score", 4.0]]


def composed(*overrides: str) -> Params:
    return composed_params(["preset=smoke", "runtime.device=cpu", *overrides], ROOT)


def work(num_texts: int = 0, **parts: float) -> Work:
    return Work("frontier@0", 2, None, 0, parts, num_texts=num_texts)


def test_a_stage_takes_its_start_its_texts_and_each_kind_of_work() -> None:
    found = Here({"draw": 10.0, "score": 4.0}, start_seconds=5, metrics_seconds=3, seconds_per_text=0.5)
    assert found.seconds(work(draw=20.0, score=2.0)) == 5 + 2 + 0.5
    assert found.seconds(work(num_texts=8, draw=20.0)) == 5 + 2 + 3 + 4


@pytest.mark.stage
def test_a_rate_is_what_is_planned_over_the_seconds_that_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that is looked at once a second: a step, an evaluation, a token and a batch take a second each.

    Two evaluations make five looks, so that what is beside them takes three seconds; where a sampler chooses as well,
    the draw has all of these, and a tenth is taken for the choice.
    """
    published(tmp_path, "llama")
    looks = iter(range(10**6))
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: next(looks)))
    params = composed("rivals=[1]", f"evaluate.scorer={tmp_path}", "evaluate.batch_size=6")
    networks = Networks.of(params, VOCAB_SIZE)
    kinds = {kind for work in works_of(params, networks) for kind in work.parts}
    rates = dict(Speed(params, VOCAB_SIZE, torch.device("cpu")).rates(sorted(kinds)))
    assert networks.scorer is not None
    some, more = (denoising(networks.denoiser, sampler, 16, 64, 62) for sampler in speed.SAMPLERS)
    of_steps = {
        "pretrain": training_flops(params, networks.denoiser, "pretrain"),
        "distill": training_flops(params, networks.denoiser, "distill"),
        "baseline": training_flops(params, networks.autoregressive, "baseline"),
        "rival@1": training_flops(params, networks.of_depth(1), "baseline"),
    }
    assert rates == pytest.approx(
        of_steps
        | {"denoise": some["denoise"] / 2, "draw": some["draw"] / 3, "choose": more["choose"] / 0.3}
        | {f"write@{name}": 16 * forward_flops(networks.of_depth(n), 1, 1, 32) for name, n in (("ar", 2), ("ar-1", 1))}
        # Three sequences, two looks at each.
        | bounding(params, networks.denoiser, 6)
        | reading(networks.autoregressive, "read@ar", 6, 64)
        | reading(networks.scorer, "score", 6, 64)
    )


def test_what_takes_long_is_done_once_and_what_does_not_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of several only warms up."""
    now = 0.0

    def taking(seconds: Iterator[float]) -> list[float]:
        nonlocal now
        took = next(seconds)
        now += took
        return [took]

    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: now))
    assert speed._repeated(lambda: taking(iter([9.0]))) == [9.0]
    several = iter([2.0, 0.25, 0.5, 0.75, 9.0])
    assert speed._repeated(lambda: taking(several)) == [0.5]


@pytest.fixture
def measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The script that runs in place of Python."""
    script = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(script))
    return script


def says(script: Path, end: str) -> None:
    lines = "\n".join(f"echo '{json.dumps(line)}'" for line in LINES)
    script.write_text(f"#!/bin/sh\ncat > /dev/null\n{lines}\n{end}\n")
    script.chmod(0o755)


@pytest.mark.system
def test_the_process_says_what_it_measured(measuring: Path) -> None:
    says(measuring, "exit 0")
    found = measure_here(composed(), [work(draw=1.0), work(score=1.0, draw=2.0)], VOCAB_SIZE)
    assert found == Here({"draw": 10.0, "score": 4.0}, 5.0, 3.0, 0.5)


@pytest.mark.system
@pytest.mark.parametrize("end", [f"exit {here.EXIT_TOO_MUCH}", f"kill -{signal.SIGKILL} $$"])
def test_what_needs_too_much_memory_is_named(measuring: Path, end: str) -> None:
    says(measuring, end)
    with pytest.raises(UserError, match="--here: distill needs more memory than there is"):
        measure_here(composed(), [work(draw=1.0, score=1.0, distill=1.0)], VOCAB_SIZE)


@pytest.mark.system
def test_another_failure_is_told_with_its_last_line(measuring: Path) -> None:
    says(measuring, "echo trouble >&2; echo worse >&2; exit 1")
    with pytest.raises(RuntimeError, match="measuring distill: worse"):
        measure_here(composed(), [work(draw=1.0, score=1.0, distill=1.0)], VOCAB_SIZE)


def test_one_process_is_measured() -> None:
    with pytest.raises(UserError, match="launch asks for 4"):
        measure_here(composed("launch.processes_per_node=4"), [], VOCAB_SIZE)


def planned(tmp_path: Path, *arguments: str) -> tuple[str, dict]:
    """(what the command prints, what it writes)."""
    file = tmp_path / "plan.json"
    result = CliRunner().invoke(app, ["plan", "-S", "preset=smoke", "--json", str(file), *arguments])
    assert result.exit_code == 0, result.output
    return result.output, json.loads(file.read_text())


def test_the_command_has_a_column_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "80")
    without, plain = planned(tmp_path)
    assert "here" not in plain["works"][0]["seconds"]
    assert plain["here"] is None
    assert " here" not in without

    def measured(params: Params, works: list[Work], vocab_size: int) -> Here:
        assert vocab_size == 1024
        return Here({kind: 1e9 for work in works for kind in work.parts}, 60.0, 0.0, 0.0)

    monkeypatch.setattr(here, "measure_here", measured)
    output, written = planned(tmp_path, "--here")
    assert max(map(len, output.splitlines())) <= 80
    assert "…" not in output
    for work in written["works"]:
        assert work["seconds"]["here"] == pytest.approx(60 + work["flops"] / 1e9)
    evaluate = next(work for work in written["works"] if work["stage"] == "evaluate@0..1")
    (row,) = (line for line in output.splitlines() if line.startswith("evaluate@0..1") and line.endswith("m"))
    assert row.split()[-2:] == [f"{2 * evaluate['seconds']['here'] / 60:.2f}", "m"]
    assert {name: value for name, value in written.items() if name not in ("works", "here")} == {
        name: value for name, value in plain.items() if name not in ("works", "here")
    }


@pytest.mark.slow
@pytest.mark.system
def test_every_kind_of_work_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _, written = planned(tmp_path, "--here", "-S", "runtime.device=cpu", "-S", "runtime.num_threads=1")
    rates = written["here"]["flops_per_second"]
    assert rates.keys() == {kind for work in written["works"] for kind in work["parts"]}
    assert min(rates.values()) > 0
    assert written["here"]["start_seconds"] > written["here"]["seconds_per_text"] > 0
