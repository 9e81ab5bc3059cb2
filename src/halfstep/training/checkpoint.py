"""Checkpoints of a training run: written whole, told whole from torn, the newest few kept."""

import logging
import shutil
from pathlib import Path

from halfstep.files import atomic_path, file_hash, read_json, write_json
from halfstep.training.state import TrainState

NUM_KEPT = 2
HASHES_FILE = "hashes.json"

_LOG = logging.getLogger(__name__)


class CheckpointFolder:
    """The checkpoints of one run, newest last.

    Args:
        path: of the run's unfinished work, see `halfstep.resumption`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, state: TrainState) -> None:
        """Write a checkpoint whole or not at all, and drop all but the newest."""
        with atomic_path(self.path / f"step-{state.step:09d}") as folder:
            folder.mkdir()
            state.save(folder)
            write_json(folder / HASHES_FILE, {file.name: file_hash(file) for file in sorted(folder.iterdir())})
        for old in self._steps()[:-NUM_KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def restore(self, state: TrainState) -> bool:
        """Load the newest checkpoint that is whole into `state`; False if there is none.

        One that is torn or was changed is passed over with a warning.
        """
        for folder in reversed(self._steps()):
            if _is_whole(folder):
                state.load(folder)
                return True
            _LOG.warning("the checkpoint %s is damaged and not used", folder)
        return False

    def _steps(self) -> list[Path]:
        return sorted(self.path.glob("step-*")) if self.path.is_dir() else []


def _is_whole(folder: Path) -> bool:
    try:
        return all(file_hash(folder / name) == expected for name, expected in read_json(folder / HASHES_FILE).items())
    except (OSError, ValueError, AttributeError):
        return False
