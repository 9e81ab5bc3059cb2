"""Files that are written whole or not at all, and where the project's root is."""

import csv
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from halfstep.run import ranks
from halfstep.run.errors import UserError
from halfstep.run.faults import storage_fault
from halfstep.run.retries import with_retries


def project_root() -> Path:
    """The user's working copy, also when a stage runs in DVC's temporary copy of it.

    DVC's queue runs stages in a copy under `.dvc/tmp/exps` and names the real root in `DVC_ROOT`. Relative
    paths that a user gives as parameters, and files that outlive an experiment, belong to the real root.
    """
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def resolve_user_path(path: str | Path) -> Path:
    """A path given as a parameter: `~` expanded, relative paths taken from the project's root."""
    # os.path leaves the home of an unknown user as it is; pathlib raises.
    return project_root() / os.path.expanduser(path)


def make_folder(parent: Path, prefix: str = "") -> Path:
    """Make a folder under a name that no other has, for whom the umask says; those of tempfile are for its owner."""
    folder = parent / f"{prefix}{uuid.uuid4().hex[:12]}"
    folder.mkdir()
    return folder


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` that is renamed to it when the block succeeds.

    On an exception nothing is left behind and an existing file or directory at `path` stays as it was. The
    block may create a file or a directory at the yielded path; parents of `path` are created. It is synced to the
    disk before it gets its name: a power cut leaves the whole of it, or what was there before. Whoever the umask lets
    read it can, whatever mode a library gave its files.

    Raises:
        OSError: the disk is full, read-only, broken or not ours to write to, whatever the library raised; it names
            `path`.
    """
    with storage_faults_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = make_folder(path.parent, f".{path.name}.")
        try:
            temporary = folder / path.name
            yield temporary
            _finish_tree(temporary, stat.S_IMODE(folder.stat().st_mode))
            if temporary.is_dir() and path.exists():
                path.rename(folder / "replaced")
            temporary.replace(path)
            _sync(path.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def written_by_main(path: Path) -> Iterator[Path]:
    """`atomic_path` in the main process; in the others a path that leads nowhere, to which the same is written."""
    if ranks.is_main():
        with atomic_path(path) as temporary:
            yield temporary
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / path.name


@contextmanager
def written_by_all(path: Path) -> Iterator[Path]:
    """One `atomic_path` for all processes, each of which may write to it; it is there when all have left the block."""
    if ranks.is_main():
        with atomic_path(path) as temporary:
            yield ranks.from_main(temporary)
            ranks.wait()
    else:
        yield ranks.from_main(path)
        ranks.wait()


@contextmanager
def storage_faults_named(path: Path) -> Iterator[None]:
    """Within the block a fault of the disk is an `OSError` that names `path`, or what was already named elsewhere.

    Writes that fail name no file, and libraries name the temporary one.
    """
    try:
        yield
    except Exception as error:
        found = storage_fault(error)
        if found is None:
            raise
        number, name = found
        is_ours = name is None or f".{path.name}." in name or path.is_relative_to(name)
        raise OSError(number, os.strerror(number), str(path) if is_ours else name) from error


@contextmanager
def unchanged(path: Path) -> Iterator[None]:
    """Refuse a file that changes while the block reads it.

    Raises:
        UserError: its size or the time of its last change differs after the block.
    """
    before = path.stat()
    yield
    try:
        after = path.stat()
    except FileNotFoundError:
        raise UserError(f"{path} was removed while it was read: put it back, then the same command goes on") from None
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise UserError(
            f"{path} changed while it was read ({before.st_size} bytes before, {after.st_size} after): wait until"
            " nothing writes to it, then give the same command again"
        )


def _finish_tree(path: Path, mode: int) -> None:
    """Have a file, or a folder and all in it, reach the disk, for all whom `mode` lets at a folder.

    safetensors writes files for their owner alone. A file that has another name as well stays as it is.
    """
    if path.is_symlink():
        return
    if is_folder := path.is_dir():
        for entry in path.iterdir():
            _finish_tree(entry, mode)
    status = path.stat()
    lacking = mode & (0o777 if is_folder else 0o666) & ~status.st_mode
    if lacking and (is_folder or status.st_nlink == 1):
        path.chmod(stat.S_IMODE(status.st_mode) | lacking)
    _sync(path)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name != "posix":
        return  # a folder cannot be opened there
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot do this for folders, or at all; that is no fault of what was written.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file that is never changed again a second name, or a copy where the file system has no such names."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys, whole or not at all; NaN and infinity are refused (ValueError)."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write CSV with a header, whole or not at all; None is empty."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(with_retries(str(path), lambda: path.read_text(encoding="utf-8")))


def is_there(path: Path) -> bool:
    """Whether there is such a file or folder; a name that no file can have is none.

    Raises:
        PermissionError: this cannot be seen.
    """
    try:
        path.stat()
    except PermissionError:
        raise
    except (OSError, ValueError):
        return False
    return True


def local_or_hub(source: str) -> str:
    """A model or data set named in the parameters: a path if there is one from the project's root, else a hub id."""
    path = resolve_user_path(source)
    return str(path) if path.exists() else source
