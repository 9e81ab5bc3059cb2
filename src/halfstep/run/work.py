"""Work that goes on where a killed run left off.

DVC deletes a stage's outputs before it runs it, so what a stage has done so far lies outside them, in
`.halfstep/work` of the real project, under a key that changes with everything the result depends on: parameters,
the contents of the files read, the code, torch's version.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock, Timeout

from halfstep.run import ranks
from halfstep.run.console import console
from halfstep.run.errors import UserError
from halfstep.run.files import atomic_path, file_hash, project_root, read_json, write_json
from halfstep.run.inputs import Inputs, fingerprint
from halfstep.run.provenance import code_hashes, refuse_changes
from halfstep.run.signals import stops_at_signals
from halfstep.settings.base import flat

Arrays = dict[str, np.ndarray]
"""What a piece of work gave, by name."""

Piece = TypeVar("Piece")

DESCRIPTION_FILE = "work.json"
FINISHED_FILE = "finished"
NUM_NAMED = 3
"""Differences to another run's work that are named in a line."""


def cached(
    folder: Path | None, pieces: Iterable[Piece], compute: Callable[[Piece], Arrays]
) -> Iterator[tuple[Piece, Arrays]]:
    """Yield each piece of work with what it gives, in order, computing only what no file in `folder` has.

    Where several processes share a stage's work each computes its share of the pieces; the main one keeps the files.

    Args:
        folder: for these pieces alone, see `Work.batches`; its files are named by the number of the piece. None
            computes all.
        pieces: the same ones in every run, none of which needs what another one gives.
        compute: a piece -> what it gives.
    Raises:
        UserError, FloatingPointError: `compute` raised it, in whichever process.
    """
    numbered = enumerate(pieces)
    while some := list(islice(numbered, ranks.num_ranks())):
        paths = [folder and folder / f"{number:06d}.npz" for number, _ in some]
        kept = ranks.from_main([_read(path) for path in paths])
        mine = None
        if ranks.rank() < len(some) and kept[ranks.rank()] is None:
            mine = _tried(partial(compute, some[ranks.rank()][1]))
        for (_, piece), path, found, made in zip(some, paths, kept, ranks.gather(mine), strict=False):
            if isinstance(made, Exception):
                raise made
            if made is not None and path is not None and ranks.is_main():
                with atomic_path(path) as temporary:
                    np.savez(temporary, **made)  # type: ignore[arg-type]
            arrays = found if made is None else made
            assert arrays is not None, "what was not kept is computed by the process whose turn it is"
            yield piece, arrays


def batched(items: Iterable[Piece], size: int) -> Iterator[list[Piece]]:
    """Lists of so many items, the last one of those that are left."""
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


def _read(path: Path | None) -> Arrays | None:
    """What a piece gave; None where it was not kept, or another program damaged the file."""
    if path is None or not path.is_file():
        return None
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except (OSError, EOFError, ValueError, BadZipFile):
        return None


@dataclass(frozen=True)
class Work:
    """The unfinished work of a stage, such as `distill-2`, in a folder that outlives the run.

    `check_inputs` raises a `MachineFault` if they are no longer what the work was begun with.
    """

    name: str
    path: Path
    check_inputs: Callable[[], None] = lambda: None

    @contextmanager
    def batches(self) -> Iterator[Path]:
        """A folder for `cached`; within the block SIGINT and SIGTERM stop the command with a line."""
        folder = self.path / "batches"

        def num_kept() -> int:
            # Not those that a killed process was writing.
            return sum(not file.parent.name.startswith(".") for file in folder.rglob("*.npz"))

        if num_kept():
            console.print(f"{self.name}: goes on after {num_kept()} batches")
        stopped = f"{self.name}: stopped; the same command goes on after"
        with stops_at_signals(lambda: f"{stopped} {num_kept()} batches"):
            yield folder

    def finish(self) -> None:
        """Say that the result is written, if no input changed meanwhile.

        What was kept stays until another stage begins: only then has DVC taken the result.
        """
        if ranks.is_main():
            self.check_inputs()
            (self.path / FINISHED_FILE).touch()


@contextmanager
def open_work(
    name: str, values: Mapping[str, Any], files: Iterable[Path], inputs: Inputs | None = None
) -> Iterator[Work]:
    """The unfinished work of a stage, no other process's while the block lasts.

    A second process with the same work waits until the first is done, and then finds it done; of several that share
    the stage's work the main one holds it for all. Work of other runs of the same stage is mentioned, with what is
    different, and not used.

    Args:
        name: of the stage, such as `distill-2`; part of a folder's name.
        values: parameters the result depends on, as plain values.
        files: files and folders the result depends on.
        inputs: those that parameters name.
    """
    if not ranks.is_main():
        yield Work(name, ranks.from_main(Path()))
        return
    files = list(files)

    def read_now() -> dict[str, dict[str, Any]]:
        return {"files": {str(path): _content_hash(path) for path in files}, "inputs": fingerprint(inputs or {})}

    before = read_now()
    description = {
        "name": name,
        "parameters": values,
        **before,
        "code": code_hashes(name.partition("-")[0]),
        "torch": version("torch"),
    }
    text = json.dumps(description, sort_keys=True, default=str)
    root = project_root() / ".halfstep" / "work"
    path = root / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(_lock_path(path))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        console.print(f"{name}: another process is at the same work; waiting for it to end")
        lock.acquire()
    try:
        # Whoever held the lock may have swept the folder.
        path.mkdir(parents=True, exist_ok=True)
        if not (path / DESCRIPTION_FILE).is_file():
            write_json(path / DESCRIPTION_FILE, json.loads(text))
            _mention_others(name, path, json.loads(text))
        _sweep_finished(root)

        def check_inputs() -> None:
            now = read_now()
            refuse_changes(before["files"] | before["inputs"], now["files"] | now["inputs"])

        yield Work(name, ranks.from_main(path), check_inputs)
    finally:
        if not _holds_work(path):
            shutil.rmtree(path, ignore_errors=True)
        lock.release()


def _content_hash(path: Path) -> str:
    """Hash of a file's content, or of a folder's file names and contents."""
    digest = hashlib.sha256()
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    for file in files:
        digest.update(f"{file.relative_to(path).as_posix()}\0{file_hash(file)}\n".encode())
    return digest.hexdigest()


def _holds_work(path: Path) -> bool:
    """Whether anything was kept; a command that refused its input leaves nothing."""
    files = (file for file in path.rglob("*") if file.is_file() and file.name != DESCRIPTION_FILE)
    return (path / FINISHED_FILE).exists() or any(file.stat().st_size for file in files)


def _lock_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _mention_others(name: str, path: Path, description: Mapping[str, Any]) -> None:
    ours = dict(flat(description))
    for other in sorted(path.parent.glob(f"{name}-{'[0-9a-f]' * 16}")):
        if other == path or (other / FINISHED_FILE).exists():
            continue
        try:
            theirs = dict(flat(read_json(other / DESCRIPTION_FILE)))
        except (OSError, ValueError):
            continue
        keys = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
        named = ", ".join(_difference(key, theirs.get(key), ours.get(key)) for key in keys[:NUM_NAMED])
        more = f" and {len(keys) - NUM_NAMED} more" if len(keys) > NUM_NAMED else ""
        console.print(
            f"{name}: starts over; the unfinished work in {other} is not used, for it differs in {named}{more}"
        )


def _difference(key: str, theirs: Any, ours: Any) -> str:
    kind, _, rest = key.partition(".")
    if kind == "parameters":
        return f"{rest} ({theirs}, now {ours})"
    names = {"files": f"the file {rest}", "code": f"the file {rest}", "inputs": f"the content of {rest}"}
    return names.get(kind, kind)


def _sweep_finished(root: Path) -> None:
    for marker in sorted(root.glob(f"*/{FINISHED_FILE}")):
        folder = marker.parent
        # The lock of the work at hand is not free either.
        try:
            with FileLock(_lock_path(folder), timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
        except (Timeout, PermissionError):  # in use, or another user's
            continue


def _tried(compute: Callable[[], Arrays]) -> Arrays | Exception:
    """What a piece of work gives, or what it says is wrong with its model: all processes are to hear that."""
    try:
        return compute()
    except (UserError, FloatingPointError) as error:
        return error
