"""`make setup` installs where there is no environment for this folder and these packages, and only then."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FAKE_PYTHON = """#!/bin/sh
# Stands for Python, pip and venv, and notes what it is asked for.
echo "$@" >> "$LOG"
case "$*" in "-m venv "*) mkdir -p .venv/bin && cp "$FAKE" .venv/bin/python ;; esac
"""


class Make:
    """`make setup` with a Python that installs nothing."""

    def __init__(self, folder: Path) -> None:
        self.fake, self.log = folder / "fake-python", folder / "log"
        self.fake.write_text(FAKE_PYTHON)
        self.fake.chmod(0o755)

    def installs(self, project: Path) -> bool:
        """Whether it installs the project; it does so into a new environment then, or into the one there is."""
        self.log.write_text("")
        environment = os.environ | {"FAKE": str(self.fake), "LOG": str(self.log)}
        command = ["make", "--no-print-directory", "setup", f"PYTHON={self.fake}"]
        subprocess.run(command, cwd=project, env=environment, check=True, capture_output=True)
        return "-m pip install" in self.log.read_text()


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return Make(tmp_path)


@pytest.fixture
def project(tmp_path: Path, make: Make) -> Path:
    """A project, installed."""
    project = tmp_path / "a project"
    project.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, project / name)
    assert make.installs(project)
    (project / ".venv/marker").touch()
    return project


def test_what_is_installed_stays_also_by_another_path_to_it(project: Path, make: Make) -> None:
    assert not make.installs(project)
    link = project.with_name("link")
    link.symlink_to(project)
    assert not make.installs(link)
    assert not make.installs(project)


def test_other_packages_go_into_the_same_environment(project: Path, make: Make) -> None:
    os.utime(project / ".venv/.installed", (0, 0))
    assert make.installs(project)
    assert (project / ".venv/marker").exists()
    assert not make.installs(project)


def test_a_moved_or_copied_folder_gets_an_environment_of_its_own(project: Path, make: Make) -> None:
    copy = project.with_name("copy")
    shutil.copytree(project, copy)
    moved = project.rename(project.with_name("moved"))
    for folder in (copy, moved):
        assert make.installs(folder)
        assert not (folder / ".venv/marker").exists()
        assert not make.installs(folder)


def test_an_environment_elsewhere_is_let_alone(project: Path, make: Make) -> None:
    environment = (project / ".venv").rename(project.with_name("environment"))
    other = project.with_name("other")
    other.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, other / name)
    (other / ".venv").symlink_to(environment)
    assert make.installs(other)
    assert not (other / ".venv").is_symlink()
    assert (environment / "marker").exists()
