"""The commands of docs/tutorial.md, from the page: each is one that there is; and they run, at the size of `smoke`."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from halfstep.samplers.sampler import sampler_of
from halfstep.tools.cli import app
from halfstep.tools.generate import settings_in
from halfstep.tools.planning.compose import composed_params
from tests.pipeline.project import IDENTITY, Project

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
COMMANDS = "set -e\n" + "\n".join(re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
pytestmark = pytest.mark.system

# What makes it small: parameters after those of the page, and `make run` without its installation.
SMALL = (
    "preset=smoke", "pretrain.num_train_steps=30", "baseline.num_train_steps=30", "distill.num_train_steps=10",
    "data.context_length=64", "frontier.samplers=[{name: ancestral, num_steps: [4]}]", "rivals=[]",
)  # fmt: skip
FAKE_MAKE = "mkdir -p .venv/bin && touch .venv/bin/activate && dvc exp run && halfstep summary"


def write_command(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(0o755)


def run_page(folder: Path, repository: str) -> None:
    """Run all commands of the page in a folder, which has texts and, in `bin`, commands that go before others."""
    (folder / "home/texts").mkdir(parents=True)
    text = "".join(f"The cat number {n} sat on a mat with {7 * n} others.\n\n\n" for n in range(2000))
    (folder / "home/texts/cats.txt").write_text(text)
    path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | IDENTITY | {"HOME": str(folder / "home"), "PATH": path, "HF_HUB_OFFLINE": "1"}
    command = ["bash", "-c", COMMANDS.replace("<this repository>", shlex.quote(repository))]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def check_dvc(arguments: list[str]) -> None:
    from dvc.cli import parse_args

    options = parse_args(arguments)
    if arguments[:2] == ["exp", "run"]:
        composed_params(options.set_param, ROOT)


def check_halfstep(arguments: list[str]) -> None:
    group = typer.main.get_command(app)
    context = group.commands[arguments[0]].make_context(arguments[0], arguments[1:])  # type: ignore[attr-defined]
    if sampler := context.params.get("sampler"):
        sampler_of(sampler, settings_in(context.args), "--sampler")
    if overrides := context.params.get("overrides"):
        composed_params(overrides, ROOT)


def check_make(arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert [target for target in arguments if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_each_command_has_such_options_and_composes(tmp_path: Path) -> None:
    for name in ("git", "make", "dvc", "halfstep"):
        write_command(tmp_path / "bin", name, f"printf '%q ' {name} \"$@\" >> ~/calls; echo >> ~/calls")
    (tmp_path / "halfstep/.venv/bin").mkdir(parents=True)
    (tmp_path / "halfstep/.venv/bin/activate").touch()
    run_page(tmp_path, "repository")
    calls = [shlex.split(line) for line in (tmp_path / "home/calls").read_text().splitlines()]
    assert {name for name, *_ in calls} == {"git", "make", "dvc", "halfstep"}
    for name, *arguments in calls:
        if check := {"dvc": check_dvc, "halfstep": check_halfstep, "make": check_make}.get(name):
            check(arguments)


@pytest.mark.slow
def test_it_runs_from_the_clone_to_the_exported_model(tmp_path: Path) -> None:
    project = Project(tmp_path / "repository")
    small = " ".join(f"-S {shlex.quote(override)}" for override in SMALL)
    dvc = f'if [ "$1 $2" = "exp run" ]; then set -- "$@" {small}; fi\nexec {sys.executable} -m dvc "$@"'
    write_command(tmp_path / "bin", "dvc", dvc)
    write_command(tmp_path / "bin", "make", FAKE_MAKE)
    run_page(tmp_path, str(project.path))
    here = tmp_path / "halfstep"
    compared = (here / "compare.html").read_text(encoding="utf-8")
    assert "distill.objective" in compared
    assert {"model.safetensors", "tokenizer.json", "README.md"} <= {file.name for file in (here / "my-model").iterdir()}
