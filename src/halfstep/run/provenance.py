"""What dvc.yaml says that a stage runs and reads, and that it stays the same until the stage has ended.

DVC hashes a stage's dependencies after the stage: what was edited meanwhile would be recorded as what made the result.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from halfstep.run.errors import MachineFault, UserError, first_of

ROOT = Path(__file__).parents[3]
"""The project whose code runs."""

CODE = ("src", "stages")
"""Folders of code; whatever else dvc.yaml lists is data."""

PARAMETER = re.compile(r"\$\{(?!item\.)(\w+)\.(\w+)\}")
"""By which dvc.yaml names the file of a plug-in, as `${distill.objective}`."""


def code_hashes(stage: str) -> dict[str, str]:
    """Hash of each file of code that dvc.yaml lists for a stage; for what is no stage, of the package."""
    code = [path for path in _dependencies(stage) if _is_code(path)]
    return _states(code or [Path(__file__).parents[1]])


@contextmanager
def recorded_is_what_ran(script: Path) -> Iterator[None]:
    """Within the block a stage's script runs; what dvc.yaml lists for it is to be the same before and after.

    Raises:
        UserError: the code beside the script is not the code that runs.
        MachineFault: something changed.
    """
    beside = script.parents[1] / "src"
    if (beside / "halfstep").is_dir() and not beside.samefile(ROOT / "src"):
        raise UserError(
            f"{script} would run the code in {ROOT / 'src'} instead of {beside}: set PYTHONPATH={beside}, then give the"
            " same command"
        )
    dependencies = _dependencies(script.stem)
    before = _states(dependencies)
    try:
        yield
    except SystemExit as end:  # by which the process that started those of all devices ends
        if end.code:
            raise
    refuse_changes(before, _states(dependencies))


def refuse_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """End a stage by a `MachineFault` if the state of a file, by its name, is another one than when it began."""
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed:
        raise MachineFault(
            f"{first_of(changed, 1)} changed while the stage ran, and its result would be recorded as made with the"
            " change: put it back, and the same command goes on from what is kept; or leave it, and the same command"
            " starts over"
        )


def _dependencies(stage: str) -> list[Path]:
    """What dvc.yaml lists for a stage, but for what `foreach` names; nothing for what is no stage."""
    try:
        text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    entry = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))["stages"].get(stage, {})
    paths = entry.get("do", entry).get("deps", [])
    if any(PARAMETER.search(path) for path in paths):
        params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        paths = [PARAMETER.sub(lambda key: str(params.get(key[1], {}).get(key[2], key[0])), path) for path in paths]
    return list(dict.fromkeys(ROOT / path for path in paths if "${" not in path))


def _is_code(path: Path) -> bool:
    return path.relative_to(ROOT).parts[0] in CODE


def _states(paths: Iterable[Path]) -> dict[str, str]:
    """What changes with each file, also in folders: of code a hash (whatever its line ends), of data size and time."""
    states = {}
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if not file.is_file() or "__pycache__" in file.parts:
                continue
            if _is_code(path):
                state = hashlib.sha256(file.read_bytes().replace(b"\r\n", b"\n")).hexdigest()
            else:
                state = f"{file.stat().st_size} {file.stat().st_mtime_ns}"
            states[file.relative_to(ROOT).as_posix()] = state
    return states
