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
from halfstep.run.work import Journal, Remember, open_work


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's root."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def arrays(value: float) -> dict[str, np.ndarray]:
    return {"a": np.array([value, 1 / 3, np.inf]), "b": np.arange(6, dtype=np.int32).reshape(2, 3), "c": np.array([])}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def never(piece: object) -> dict[str, np.ndarray]:
    raise AssertionError("done a second time")


def done(remember: Remember, kind: str, piece: object, compute=never) -> dict[str, np.ndarray]:
    """What one piece of work gives."""
    [(found, kept)] = remember(kind, [piece], lambda piece: piece, compute)
    assert found is piece
    return kept


def test_a_piece_of_work_is_done_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    for number in range(3):
        assert_same(done(journal.remember, "kind", [number, "x"], lambda piece: arrays(piece[0])), arrays(number))
    for again in (journal, Journal(tmp_path / "journal")):
        assert again.num_known == 3
        for number in range(3):
            assert_same(done(again.remember, "kind", [number, "x"]), arrays(number))
    assert_same(done(journal.remember, "another kind", [0, "x"], lambda piece: arrays(7)), arrays(7))
    assert_same(done(journal.memory_of("one"), "kind", [0, "x"], lambda piece: arrays(8)), arrays(8))
    assert_same(done(journal.memory_of("other"), "kind", [0, "x"], lambda piece: arrays(9)), arrays(9))


def test_cut_anywhere_a_journal_keeps_its_whole_lines_and_goes_on(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    journal = Journal(whole)
    ends = [0]
    for _ in journal.remember("kind", range(3), lambda number: number, arrays):
        ends.append(whole.stat().st_size)
    content = whole.read_bytes()
    for cut in range(len(content) + 1):
        file = tmp_path / "cut"
        file.write_bytes(content[:cut])
        journal = Journal(file)
        num_whole = sum(end <= cut for end in ends[1:])
        assert journal.num_known == num_whole
        if cut % 97 == 0:
            for number in range(3):
                compute = never if number < num_whole else arrays
                assert_same(done(journal.remember, "kind", number, compute), arrays(number))
            assert file.read_bytes() == content


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "journal"
    journal = Journal(file)
    done(journal.remember, "kind", 0, arrays)
    first = file.stat().st_size
    done(journal.remember, "kind", 1, arrays)
    content = bytearray(file.read_bytes())
    content[first + 60] ^= 1
    file.write_bytes(content)
    assert Journal(file).num_known == 1


def path_of(values: dict, inputs: list[Path]) -> Path:
    with open_work("stage", values, inputs) as work:
        (work.path / "kept").write_text("something")
        return work.path


def test_work_that_kept_nothing_leaves_nothing(root: Path) -> None:
    def refused() -> None:
        with open_work("stage", {}, []) as work, work.journal():
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
