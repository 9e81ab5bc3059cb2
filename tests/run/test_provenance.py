"""A stage runs the code beside it, and ends well only if that and its inputs stayed the same."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from halfstep.run import provenance
from halfstep.run.errors import MachineFault, UserError
from halfstep.run.provenance import code_hashes, recorded_is_what_ran

ROOT = Path(__file__).parents[2]

DVC_YAML = """
stages:
  report:
    cmd: python -m stages.report
    deps: [stages/report.py, src/halfstep/files.py, src/halfstep/model, data/tokens, data/cloze.jsonl]
  distill:
    foreach: ${schedule}
    do:
      cmd: python -m stages.distill ${key}
      deps: [stages/distill.py, "src/halfstep/${distill.objective}.py", "models/${item.teacher}"]
"""
FILES = ("stages/report.py", "stages/distill.py", "src/halfstep/files.py", "src/halfstep/cli.py",
         "src/halfstep/model/layouts.py", "data/tokens/manifest.json", "models/0/config.json")  # fmt: skip


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with the code that runs."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    (tmp_path / "dvc.yaml").write_text(DVC_YAML)
    (tmp_path / "params.yaml").write_text("distill: {objective: cli}")
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    return tmp_path


def test_the_code_of_a_stage_is_what_dvc_watches(project: Path) -> None:
    assert list(code_hashes("report")) == ["stages/report.py", "src/halfstep/files.py", "src/halfstep/model/layouts.py"]
    assert list(code_hashes("distill")) == ["stages/distill.py", "src/halfstep/cli.py"]
    before = code_hashes("report")
    (project / "src/halfstep/model/layouts.py").write_text("x = 2\n")
    (project / "src/halfstep/model/new.py").touch()
    after = code_hashes("report")
    assert {name for name in after if after[name] != before.get(name)} == {
        "src/halfstep/model/layouts.py", "src/halfstep/model/new.py",
    }  # fmt: skip


def test_neither_line_ends_nor_times_nor_compiled_files_make_other_code(project: Path) -> None:
    before = code_hashes("report")
    (project / "stages/report.py").write_bytes(b"x = 1\r\n")
    os.utime(project / "src/halfstep/files.py", (0, 0))
    (project / "src/halfstep/model/__pycache__").mkdir()
    (project / "src/halfstep/model/__pycache__/layouts.pyc").write_text("compiled")
    assert code_hashes("report") == before


def write(path: Path) -> None:
    path.write_text("x = 23\n")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("stages/report.py", write),
        ("src/halfstep/files.py", Path.unlink),
        ("src/halfstep/model/layouts.py", write),
        ("src/halfstep/model/new.py", Path.touch),
        ("data/tokens/manifest.json", write),
        ("data/cloze.jsonl", Path.touch),
    ],
)
def test_what_changes_while_a_stage_runs_ends_it(project: Path, name: str, change: Callable[[Path], None]) -> None:
    with (
        pytest.raises(MachineFault, match=rf"^{name} changed while the stage ran.*put it back"),
        recorded_is_what_ran(project / "stages/report.py"),
    ):
        change(project / name)


@pytest.mark.parametrize(
    ("stage", "name"),
    [("report", "src/halfstep/cli.py"), ("report", "dvc.yaml"), ("distill", "models/0/config.json"), ("toy", FILES[0])],
)
def test_what_is_not_listed_may_change(project: Path, stage: str, name: str) -> None:
    with recorded_is_what_ran(project / f"stages/{stage}.py"):
        (project / name).write_text("{}")


def test_the_process_that_started_others_is_held_to_it_too(project: Path) -> None:
    def run(code: int) -> None:
        with recorded_is_what_ran(project / "stages/distill.py"):
            write(project / "stages/distill.py")
            sys.exit(code)

    with pytest.raises(SystemExit):
        run(3)
    (project / "stages/distill.py").write_text("x = 1\n")
    with pytest.raises(MachineFault):
        run(0)


def test_a_script_beside_another_copy_of_the_code_is_refused(project: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "src/halfstep").mkdir(parents=True)
    with (
        pytest.raises(UserError, match=f"PYTHONPATH={other / 'src'}"),
        recorded_is_what_ran(other / "stages/report.py"),
    ):
        pass


# --- python -m stages.NAME -------------------------------------------------------------------------------------------

PROBE = """
import multiprocessing, subprocess, sys
import halfstep

def show():
    print(halfstep.__file__, flush=True)

if __name__ == "__main__":
    show()
    child = multiprocessing.get_context("spawn").Process(target=show)
    child.start()
    child.join()
    subprocess.run([sys.executable, "-c", "import halfstep; print(halfstep.__file__)"])
    if "--again" in sys.argv:
        subprocess.run([sys.executable, "-m", "stages.probe"])
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A project with a stage that says whose code it runs, and its children."""
    copy = tmp_path / "a copy"
    for name in ("src/halfstep", "stages"):
        (copy / name).mkdir(parents=True)
    (copy / "src/halfstep/__init__.py").touch()
    (copy / "stages/probe.py").write_text(PROBE)
    for name in ("stages/__init__.py", "pyproject.toml"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def run_probe(folder: Path, *arguments: str, python: str = sys.executable, **environment: str):
    return subprocess.run(
        [python, "-m", "stages.probe", *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("place", ["copied", "moved", "linked"])
def test_a_stage_and_its_children_run_the_code_beside_it_and_say_so_once(copy: Path, place: str) -> None:
    folder = copy
    if place == "moved":
        folder = copy.rename(copy.with_name("moved"))
    elif place == "linked":
        folder = copy.with_name("linked")
        folder.symlink_to(copy)
    done = run_probe(folder, "--again", PYTHONPATH=str(ROOT / "src"))
    assert {Path(line).resolve() for line in done.stdout.splitlines()} == {
        (folder / "src/halfstep/__init__.py").resolve()
    }
    assert len(done.stdout.splitlines()) == 6
    [line] = done.stderr.splitlines()
    assert (
        line
        == f"runs the code in {folder.resolve() / 'src'}; this Python's own halfstep, in {ROOT / 'src'}, is not used"
    )


def test_nothing_is_said_where_the_environment_has_the_same_code(copy: Path) -> None:
    link = copy.with_name("link")
    link.symlink_to(copy)
    assert run_probe(copy, PYTHONPATH=str(link / "src")).stderr == ""


def test_stages_after_another_copy_of_the_library_are_refused(copy: Path) -> None:
    code = "import halfstep, stages.probe"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, env=environment, capture_output=True, text=True)
    assert "before the stages of" in done.stderr


def test_a_python_without_the_packages_is_named_in_one_line(copy: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    done = run_probe(copy, python=str(tmp_path / "bare/bin/python"), PYTHONPATH="")
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}/bare/bin/python (Python ")
    assert "lacks accelerate, datasets, dvc and " in line
    assert "make setup" in line


def test_one_missing_package_is_named(copy: Path) -> None:
    (copy / "pyproject.toml").write_text('[project]\ndependencies = ["some-package[extra]>=2"]\n')
    done = run_probe(copy, PYTHONPATH="")
    assert done.returncode == 2
    assert f"error: {sys.executable}" in done.stderr
    assert "lacks some-package: " in done.stderr


def test_a_python_too_old_is_refused(copy: Path) -> None:
    """No old Python is at hand: this one says it is older."""
    source = (copy / "stages/__init__.py").read_text().replace("sys.version_info < (3, 11)", "True")
    (copy / "stages/__init__.py").write_text(source)
    done = run_probe(copy)
    assert done.returncode == 2
    assert "is older than 3.11: give `make setup`" in done.stderr
