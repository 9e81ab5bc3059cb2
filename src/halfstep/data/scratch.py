"""A folder for the intermediate files of one command."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from halfstep.run.files import make_folder, project_root


def datasets_cache() -> Path:
    """Where downloaded data sets stay between commands; deleting it costs a download."""
    return project_root() / ".halfstep" / "cache" / "datasets"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield an empty folder that is deleted at the end, and delete what killed commands left behind.

    Tokenized corpora are large, and a killed process cannot clean up. So each folder has a lock beside it
    that its process holds while it lives; a folder whose lock is free is nobody's.
    """
    root = datasets_cache() / "scratch"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / "sweep.lock"):
        for folder in sorted(path for path in root.iterdir() if path.is_dir()):
            _remove_if_free(folder)
        scratch = make_folder(root)
        lock = FileLock(_lock_path(scratch))
        lock.acquire()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        lock.release()
        _lock_path(scratch).unlink(missing_ok=True)


def _lock_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _remove_if_free(folder: Path) -> None:
    try:
        with FileLock(_lock_path(folder), timeout=0):
            shutil.rmtree(folder, ignore_errors=True)
    except (Timeout, PermissionError):  # in use, or another user's
        return
    _lock_path(folder).unlink(missing_ok=True)
