"""`halfstep repro` is `dvc repro` with the place of each stage: of a small pipeline of DVC's own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

STAGES = """
stages:
  first: {cmd: cp source one, deps: [source], outs: [one]}
  second: {cmd: cat one > two, deps: [one], outs: [two]}
  report: {cmd: cat two > three, deps: [two], outs: [three]}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "source").write_text("a")
    (tmp_path / "dvc.yaml").write_text(STAGES)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def repro(project: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from halfstep.tools.cli import main; main()", "repro"]
    environment = os.environ | {"DVC_ROOT": str(project)}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


def places(result: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.startswith("stage ")]


def test_each_stage_that_runs_says_its_place_and_how_long_the_rest_took_last_time(project: Path) -> None:
    result = repro(project)
    assert result.returncode == 0, result.stderr
    assert "Running stage 'second'" in result.stdout
    assert [line.split(": ")[0] for line in places(result)] == [
        "stage 1 of 3, first", "stage 2 of 3, second", "stage 3 of 3, report",
    ]  # fmt: skip
    assert "to go" not in result.stderr
    for stage, seconds in (("first", 600), ("second", 60), ("second-one", 6000)):
        path = project / ".halfstep" / "stages" / f"{stage}-{'0' * 16}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"seconds": seconds, "hardware": "", "versions": ""}))
    (project / "source").write_text("b")
    first, second, report = places(repro(project))
    assert "11.0 min to go" in first
    assert "1.0 min to go" in second
    assert "to go" not in report
    # What did not change counts as done, and is not announced.
    (project / "dvc.yaml").write_text(STAGES.replace("cat two", "cat two two"))
    assert [line.split(":")[0] for line in places(repro(project))] == ["stage 3 of 3, report"]


def test_a_failed_stage_and_a_broken_dvc_yaml_give_dvcs_exit_code_and_words(project: Path) -> None:
    (project / "dvc.yaml").write_text(STAGES.replace("cat one > two", "exit 3"))
    failed = repro(project)
    assert failed.returncode == 255
    assert "failed to run: exit 3" in failed.stderr
    (project / "dvc.yaml").write_text("stages: {first: 1}")
    broken = repro(project)
    assert broken.returncode == 255
    assert "dvc.yaml" in broken.stderr
