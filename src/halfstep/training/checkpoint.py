"""Checkpoints that outlive a killed stage.

DVC deletes a stage's outputs before it runs it, so checkpoints live outside them, in `.halfstep/checkpoints` of the
real project, under a key that changes with everything the result depends on.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from halfstep.files import atomic_path, project_root
from halfstep.training.state import TrainState

NUM_KEPT = 2


def run_key(values: dict[str, Any], inputs: Iterable[Path]) -> str:
    """A name for a run: the hash of its parameters and of the contents of the files it reads."""
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode())
    for path in inputs:
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in files:
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


class CheckpointFolder:
    """The checkpoints of one run, newest last.

    Args:
        stage: name of the stage, such as `distill-2`.
        key: of `run_key`.
    """

    def __init__(self, stage: str, key: str) -> None:
        self.path = project_root() / ".halfstep" / "checkpoints" / f"{stage}-{key}"

    def save(self, state: TrainState) -> None:
        """Write a checkpoint whole or not at all, and drop all but the newest."""
        with atomic_path(self.path / f"step-{state.step:09d}") as folder:
            folder.mkdir()
            state.save(folder)
        for old in self._steps()[:-NUM_KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def restore(self, state: TrainState) -> bool:
        """Load the newest checkpoint into `state`; False if there is none."""
        steps = self._steps()
        if not steps:
            return False
        state.load(steps[-1])
        return True

    def remove(self) -> None:
        """Forget the run: its result is written."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _steps(self) -> list[Path]:
        return sorted(self.path.glob("step-*")) if self.path.is_dir() else []
