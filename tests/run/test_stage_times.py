"""The record of how long a stage took belongs to what the stage made."""

import errno
import json
import os
import time
from pathlib import Path

import pytest

from halfstep.run.stage_times import find_stage_time, last_stage_time, record_stage


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr("halfstep.run.stage_times.STARTED", time.monotonic() - 12)
    path = tmp_path / "1.csv"
    path.write_text("step,loss\n1,5.0\n")
    return path


def test_a_record_is_found_by_stage_and_output(output: Path) -> None:
    record_stage("distill@1", output)
    found = find_stage_time("distill@1", output)
    assert found is not None
    assert found.seconds == pytest.approx(12, abs=2)
    assert "cores" in found.hardware
    assert "Python 3" in found.versions
    assert find_stage_time("distill@2", output) is None


def test_another_output_has_no_record_until_the_first_one_is_restored(output: Path) -> None:
    record_stage("distill@1", output)
    kept = output.read_text()
    output.write_text("step,loss\n1,6.0\n")
    assert find_stage_time("distill@1", output) is None
    output.write_text(kept)
    assert find_stage_time("distill@1", output) is not None


def test_a_broken_record_counts_as_none(output: Path) -> None:
    record_stage("distill@1", output)
    (record,) = output.parent.glob(".halfstep/stages/*.json")
    record.write_text("{")
    assert find_stage_time("distill@1", output) is None
    assert last_stage_time("distill@1") is None


def test_the_last_time_of_a_stage_is_found_whatever_it_made(output: Path) -> None:
    assert last_stage_time("distill@1") is None
    for number, seconds in enumerate((300, 600)):
        record = output.parent / f".halfstep/stages/distill@1-{number:016x}.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps({"seconds": seconds, "hardware": "", "versions": ""}))
        os.utime(record, (number, number))
    last = last_stage_time("distill@1")
    assert last is not None
    assert last.seconds == 600
    assert last_stage_time("distill@2") is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_refuses_the_record_does_not_fail_the_stage(
    output: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: int
) -> None:
    def refuse(path: Path, value: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("halfstep.run.stage_times.write_json", refuse)
    record_stage("distill@1", output)
    assert "distill@1: its time was not recorded" in capfd.readouterr().err
    assert find_stage_time("distill@1", output) is None
