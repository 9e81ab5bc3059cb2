"""Stages that start themselves several times: what a person sees of it, and what is kept when a process is lost."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from halfstep.run import launch
from halfstep.run.errors import UserError
from halfstep.run.launch import _failure
from halfstep.settings import load_params

ROOT = Path(__file__).parents[2]
TOY_STAGE = Path(__file__).parent / "toy_stage.py"


def params_with(path: Path, **changes: Any) -> Path:
    """The project's parameters on the CPU, with another layout."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values["runtime"] |= {"device": "cpu", "num_threads": 1}
    values["launch"] |= changes
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the toy stage with some layout and options: (exit code, what it printed)."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))

    def run(layout: dict[str, Any], *options: str, **environment: str) -> tuple[int, str]:
        params = params_with(tmp_path / "params.yaml", **layout)
        command = [sys.executable, str(TOY_STAGE), str(params), str(tmp_path / "curve.json")]
        command += options
        done = subprocess.run(
            command, env=os.environ | environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        return done.returncode, done.stderr + done.stdout

    return run


def goes_on_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process goes on to the end, which is that of one left alone."""
    run_here = runpy.run_path(str(TOY_STAGE))["main"]
    run_here(params_with(tmp_path / "params.yaml"), tmp_path / "curve.json")
    alone = tmp_path / "alone"
    alone.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(alone))
    run_here(params_with(alone / "params.yaml"), alone / "curve.json")
    disturbed, undisturbed = (json.loads((folder / "curve.json").read_text()) for folder in (tmp_path, alone))
    assert disturbed == pytest.approx(undisturbed, rel=1e-5)
    assert len(disturbed) == 14


def checkpoint_after_a_loss(tmp_path: Path, code: int, printed: str) -> int:
    """The step of the checkpoint that was written when a process was lost for good; the stage ended in one line."""
    assert code == 1
    line = printed.strip().splitlines()[-1]
    assert line.startswith("error: one of 2 processes was ended from outside (SIGKILL, perhaps for want of memory); ")
    assert "Traceback" not in printed
    lost = re.search(r"stopped after step (\d+) of 14", line)
    assert lost, printed
    [work] = (tmp_path / ".halfstep" / "work").glob("toy-*/")
    assert (work / f"step-{int(lost[1]):09d}").is_dir()
    return int(lost[1])


def test_a_lost_process_ends_the_stage_with_a_checkpoint(
    stage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = checkpoint_after_a_loss(tmp_path, *stage({"processes_per_node": 2}, "--kill-at", "5"))
    assert step in (4, 5)
    goes_on_alone(tmp_path, monkeypatch)


@pytest.mark.slow
def test_lost_processes_and_a_signal_change_nothing(
    stage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Process 1 is lost at step 4. All start again, and are stopped by a signal after step 8.
    code, printed = stage({"processes_per_node": 2, "max_restarts": 1}, "--kill-at", "4", "--stop-at", "8")
    assert code == 143, printed
    assert re.search(r"toy: goes on after step [34] of 14", printed)
    assert "stopped after step 8 of 14; the same command goes on from there" in printed
    assert "Traceback" not in printed
    # Lost again, with no restarts left.
    step = checkpoint_after_a_loss(tmp_path, *stage({"processes_per_node": 2}, "--kill-at", "11"))
    assert step in (10, 11)
    goes_on_alone(tmp_path, monkeypatch)


def test_a_command_starts_the_stage_on_every_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command of `start_with` gets this process's own command line, and its exit code is the stage's."""
    starter = tmp_path / "start"
    starter.write_text(f'#!/bin/sh\necho "$HALFSTEP_ON_NODE" "$@" > {tmp_path}/started\nexit 7\n')
    starter.chmod(0o755)
    monkeypatch.setattr(sys, "argv", ["stage.py", "3", "--curve", "c.csv"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    layout = {"num_nodes": 2, "start_with": [str(starter), "--once"]}
    params = load_params(params_with(tmp_path / "params.yaml", **layout))
    with pytest.raises(SystemExit) as ended:
        launch.enter(params.launch, params.runtime)
    assert ended.value.code == 7
    assert (tmp_path / "started").read_text() == f"1 --once {sys.executable} stage.py 3 --curve c.csv\n"


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"num_nodes": 2}, "launch.num_nodes is 2, but nothing says where they meet: set launch.rendezvous=HOST:PORT"),
        ({"num_nodes": 2, "start_with": ["no-such-command"]}, "begins with 'no-such-command', which cannot be started"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(
    layout: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MASTER_ADDR", "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    params = load_params(params_with(tmp_path / "params.yaml", **layout))
    with pytest.raises(UserError, match=re.escape(message)):
        launch.enter(params.launch, params.runtime)


def test_the_line_for_a_failure(tmp_path: Path) -> None:
    """That of the process that failed first; where none left one, which process failed and where its output is."""
    full = "error: no space is left", 1
    assert _failure(1, 2, full, tmp_path) == full
    assert _failure(1, 2, None, tmp_path)[0].endswith(f"failed with exit code 1; its output is in {tmp_path}")
    outside = "error: one of 2 processes was ended from outside (SIGKILL, perhaps for want of memory)"
    assert _failure(-9, 2, ("error: stopped after step 3", 1), tmp_path) == (f"{outside}; stopped after step 3", 1)
    assert _failure(-9, 2, None, tmp_path)[0].endswith("; the same command goes on from the last checkpoint")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start_with": ["srun"]}, "start_with starts the command on other nodes, but num_nodes is 1"),
        ({"rendezvous": "host"}, "launch.rendezvous is 'host'"),
    ],
)
def test_a_layout_that_is_none_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        load_params(params_with(tmp_path / "params.yaml", **changes))
