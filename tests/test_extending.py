"""The recipes of docs/extending.md: their files in a copy of the project, their tests, what their commands compose."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
pytestmark = pytest.mark.system

COMPOSES = """
from pathlib import Path
from halfstep.tools.planning.compose import composed_params

def test_its_command_composes():
    composed_params({overrides!r}, Path({root!r}))
"""


def files_of(recipe: str) -> dict[str, str]:
    """The files that a recipe adds, by path."""
    return dict(re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)^```$", RECIPES[recipe], re.MULTILINE | re.DOTALL))


def overrides_of(recipe: str) -> list[str]:
    commands = re.findall(r"^dvc exp run (.+)$", RECIPES[recipe], re.MULTILINE)
    return [word for command in commands for word in shlex.split(command) if word != "-S"]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What pytest says of each test in a copy of the project that has all recipes: passed or failed, and why."""
    root = tmp_path_factory.mktemp("extended")
    for name in ("src", "pipeline"):
        shutil.copytree(ROOT / name, root / name)
    for number, recipe in enumerate(RECIPES):
        for name, text in files_of(recipe).items():
            assert not (root / name).exists(), f"{name}: a recipe adds files, it changes none"
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text, encoding="utf-8")
        if overrides := overrides_of(recipe):
            (root / f"tests/test_{number}.py").write_text(COMPOSES.format(overrides=overrides, root=str(root)))
    environment = os.environ | {"PYTHONPATH": str(root / "src")}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-rA",
        "--continue-on-collection-errors",
        "--import-mode=importlib",
        "tests",
    ]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    return {
        name: f"{outcome}\n{done.stdout}" if outcome != "PASSED" else ""
        for outcome, name in re.findall(r"^(PASSED|FAILED|ERROR) (tests/[^\s:]+)", done.stdout, re.MULTILINE)
    }


def test_there_is_a_recipe_for_each_seam() -> None:
    assert [*RECIPES] == ["An objective", "A sampler", "A model", "A metric", "A corpus"]
    assert {recipe: len(files_of(recipe)) for recipe in RECIPES} == dict(zip(RECIPES, (3, 3, 2, 2, 3), strict=True))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_works_as_it_is_written(recipe: str, outcomes: dict[str, str]) -> None:
    tests = [name for name in files_of(recipe) if name.startswith("tests/")]
    tests += [f"tests/test_{[*RECIPES].index(recipe)}.py"] if overrides_of(recipe) else []
    assert {name: outcomes.get(name, "did not run") for name in tests} == dict.fromkeys(tests, "")
