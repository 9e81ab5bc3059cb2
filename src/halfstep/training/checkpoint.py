"""Checkpoints of a training run: written whole, checked by hash, the newest few kept."""

import logging
import shutil
from pathlib import Path

from filelock import FileLock

from halfstep.run import ranks
from halfstep.run.files import atomic_path, file_hash, read_json, write_json, written_by_all
from halfstep.training.state import TrainState

NUM_KEPT = 2
HASHES_FILE = "hashes.json"

_LOG = logging.getLogger(__name__)


class CheckpointFolder:
    """The checkpoints of one run, newest last, in the folder of its unfinished work (`halfstep.run.work`)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, state: TrainState) -> None:
        """Write a checkpoint whole or not at all, and drop all but the newest; of several processes, all must."""
        with written_by_all(self._path_of(state)) as folder:
            if ranks.is_main():
                folder.mkdir()
            if state.is_sharded:
                ranks.wait()
                state.save_parts(folder)
            else:
                state.save(folder)
            if ranks.is_main():
                _write_hashes(folder)
        if ranks.is_main():
            for old in self._steps()[:-NUM_KEPT]:
                shutil.rmtree(old, ignore_errors=True)

    def save_alone(self, state: TrainState) -> None:
        """Write a checkpoint of a state that is not sharded, after another process was lost; the first one does."""
        path = self._path_of(state)
        with FileLock(self.path / "alone.lock"):
            if not path.exists():
                with atomic_path(path) as folder:
                    folder.mkdir()
                    state.save(folder, is_alone=True)
                    _write_hashes(folder)

    def restore(self, state: TrainState) -> bool:
        """Load the newest checkpoint that is whole into `state`; False if there is none.

        One that is torn or was changed is passed over with a warning.
        """
        newest = ranks.from_main(self._newest() if ranks.is_main() else None)
        if newest is not None:
            state.load(newest)
        return newest is not None

    def _newest(self) -> Path | None:
        for folder in reversed(self._steps()):
            if _is_whole(folder):
                return folder
            _LOG.warning("the checkpoint %s is damaged and not used", folder)
        return None

    def _path_of(self, state: TrainState) -> Path:
        return self.path / f"step-{state.step:09d}"

    def _steps(self) -> list[Path]:
        return sorted(self.path.glob("step-*")) if self.path.is_dir() else []


def _write_hashes(folder: Path) -> None:
    write_json(folder / HASHES_FILE, {file.name: file_hash(file) for file in sorted(folder.iterdir())})


def _is_whole(folder: Path) -> bool:
    try:
        return all(file_hash(folder / name) == expected for name, expected in read_json(folder / HASHES_FILE).items())
    except PermissionError:
        raise
    except (OSError, ValueError, AttributeError):
        return False
