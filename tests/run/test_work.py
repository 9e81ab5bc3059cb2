"""What a killed run leaves is found by the next run of the same work, and by no other."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from halfstep.run import provenance
from halfstep.run import work as resumption
from halfstep.run.errors import Interrupted, MachineFault, UserError
from halfstep.run.signals import stops_at_signals
from halfstep.run.work import cached, open_work


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's root."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def arrays(value: float) -> dict[str, np.ndarray]:
    return {"a": np.array([value, 1 / 3, np.inf]), "b": np.arange(6, dtype=np.int32).reshape(2, 3), "c": np.array([])}


def never(piece: object) -> dict[str, np.ndarray]:
    raise AssertionError("done a second time")


def assert_kept(folder: Path, pieces: list[float], compute=never) -> None:
    for (piece, found), expected in zip(cached(folder, pieces, compute), pieces, strict=True):
        assert piece == expected
        assert found.keys() == arrays(piece).keys()
        for name, array in arrays(piece).items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)


def test_a_piece_of_work_is_done_once_and_without_a_folder_always(tmp_path: Path) -> None:
    assert_kept(tmp_path / "kind", [0.5, 1.5, 2.5], arrays)
    assert_kept(tmp_path / "kind", [0.5, 1.5, 2.5])
    assert_kept(tmp_path / "another kind", [7], arrays)
    with pytest.raises(AssertionError, match="a second time"):
        list(cached(None, [0], never))


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    assert_kept(tmp_path, [0, 1], arrays)
    whole = (tmp_path / "000001.npz").read_bytes()
    for damaged in (whole[:0], whole[:300], whole[:-1], whole.replace(np.array(1 / 3).tobytes(), bytes(8))):
        assert damaged != whole
        (tmp_path / "000001.npz").write_bytes(damaged)
        list(cached(tmp_path, [0], never))
        assert_kept(tmp_path, [0, 1], lambda piece: arrays(piece) if piece else never(piece))
        assert (tmp_path / "000001.npz").read_bytes() == whole


def test_work_goes_on_after_the_batches_that_are_whole(capsys) -> None:
    with open_work("stage", {}, []) as work, work.batches() as folder:
        list(cached(folder / "kind", [0, 1], arrays))
        # A process that was killed while it wrote leaves this.
        (folder / "kind" / ".000002.npz.123").mkdir()
        (folder / "kind" / ".000002.npz.123" / "000002.npz").write_bytes(b"PK")
    assert capsys.readouterr().err == ""

    def stopped() -> None:
        with open_work("stage", {}, []) as work, work.batches():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)

    with pytest.raises(Interrupted, match="the same command goes on after 2 batches"):
        stopped()
    assert "stage: goes on after 2 batches" in capsys.readouterr().err


def path_of(values: dict, inputs: list[Path]) -> Path:
    with open_work("stage", values, inputs) as work:
        (work.path / "kept").write_text("something")
        return work.path


def test_work_that_kept_nothing_leaves_nothing(root: Path) -> None:
    def refused() -> None:
        with open_work("stage", {}, []) as work, work.batches():
            raise UserError("no")

    with pytest.raises(UserError):
        refused()
    assert [path for path in (root / ".halfstep").rglob("*") if path.suffix != ".lock" and path.is_file()] == []


def test_work_is_found_by_the_same_parameters_files_and_code_only(tmp_path: Path, monkeypatch, capsys) -> None:
    file, folder = tmp_path / "tokens", tmp_path / "model"
    folder.mkdir()
    file.write_text("a")
    (folder / "weights").write_text("w")
    path = path_of({"rate": 1, "more": {"x": 2}}, [file, folder])
    assert path_of({"more": {"x": 2}, "rate": 1}, [file, folder]) == path
    assert capsys.readouterr().err == ""

    assert path_of({"rate": 1, "more": {"x": 3}}, [file, folder]) != path
    said = " ".join(capsys.readouterr().err.split())
    assert f"the unfinished work in {path} is not used, for it differs in more.x (2, now 3)" in said
    (folder / "weights").write_text("v")
    assert path_of({"rate": 1, "more": {"x": 2}}, [file, folder]) != path
    assert f"differs in the file {folder}" in " ".join(capsys.readouterr().err.split())
    (folder / "weights").write_text("w")
    (folder / "weights").rename(folder / "other")
    assert path_of({"rate": 1, "more": {"x": 2}}, [file, folder]) != path
    (folder / "other").rename(folder / "weights")
    assert path_of({"rate": 1, "more": {"x": 2}}, [file, folder]) == path
    monkeypatch.setattr(resumption, "code_hashes", lambda stage: {"halfstep/files.py": stage})
    assert path_of({"rate": 1, "more": {"x": 2}}, [file, folder]) != path


def test_the_code_that_dvc_watches_counts_and_the_file_that_differs_is_named(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    project = tmp_path / "project"
    for name in ("stages/distill.py", "src/halfstep/cli.py"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("x = 1\n")
    (project / "dvc.yaml").write_text("stages: {distill: {foreach: [1], do: {cmd: x, deps: [stages/distill.py]}}}")
    monkeypatch.setattr(provenance, "ROOT", project)

    def path_of_distill() -> Path:
        with open_work("distill-1", {}, []) as work:
            (work.path / "kept").write_text("something")
            return work.path

    path = path_of_distill()
    (project / "src/halfstep/cli.py").write_text("x = 2\n")
    assert path_of_distill() == path
    (project / "stages/distill.py").write_text("x = 2\n")
    assert path_of_distill() != path
    assert "differs in the file stages/distill.py" in " ".join(capsys.readouterr().err.split())


def test_work_whose_input_changed_meanwhile_is_not_finished(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("a")

    def work_and_edit() -> None:
        with open_work("stage", {}, [tokens]) as work:
            (work.path / "kept").write_text("something")
            tokens.write_text("b")
            work.finish()

    with pytest.raises(MachineFault, match="tokens changed while the stage ran"):
        work_and_edit()
    tokens.write_text("a")
    with open_work("stage", {}, [tokens]) as work:
        assert (work.path / "kept").is_file()
        work.finish()


def test_finished_work_is_kept_until_another_stage_begins(root: Path) -> None:
    with open_work("first", {}, []) as first:
        (first.path / "kept").touch()
        first.finish()
    with open_work("first", {}, []) as first:
        assert (first.path / "kept").is_file()
    with open_work("unfinished", {}, []) as unfinished:
        assert not first.path.exists()
        (unfinished.path / "kept").write_text("something")
    with open_work("third", {}, []):
        assert unfinished.path.exists()


def _hold(root: str, seconds: float, started) -> None:
    os.environ["DVC_ROOT"] = root
    with open_work("stage", {}, []) as work:
        started.set()
        time.sleep(seconds)
        (work.path / "done").write_text("all of it")


def test_a_second_process_with_the_same_work_waits_and_says_so(root: Path, capsys) -> None:
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    other = context.Process(target=_hold, args=(str(root), 2.0, started))
    other.start()
    assert started.wait(60)
    with open_work("stage", {}, []) as work:
        assert (work.path / "done").is_file()
    other.join()
    assert "another process is at the same work" in capsys.readouterr().err


def test_work_of_a_killed_process_is_free(root: Path) -> None:
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    other = context.Process(target=_hold, args=(str(root), 60.0, started))
    other.start()
    assert started.wait(60)
    other.kill()
    other.join()
    with open_work("stage", {}, []) as work:
        assert not (work.path / "done").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_with_a_line_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)

    def work() -> None:
        with stops_at_signals(lambda: "after 3 batches"):
            os.kill(os.getpid(), number)
            time.sleep(10)

    with pytest.raises(Interrupted, match="after 3 batches") as raised:
        work()
    assert raised.value.signal_number == number
    assert signal.getsignal(number) == before
