"""Files that are written whole or not at all, and where the project's root is."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def project_root() -> Path:
    """The user's working copy, also when a stage runs in DVC's temporary copy of it.

    DVC's queue runs stages in a copy under `.dvc/tmp/exps` and names the real root in `DVC_ROOT`. Relative
    paths that a user gives as parameters, and files that outlive an experiment, belong to the real root.
    """
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def resolve_user_path(path: str | Path) -> Path:
    """A path given as a parameter: `~` expanded, relative paths taken from the project's root."""
    # os.path leaves the home of a user whom nobody knows as it is; pathlib raises.
    return project_root() / os.path.expanduser(path)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` that is renamed to it when the block succeeds.

    On an exception nothing is left behind and an existing file or directory at `path` stays as it was. The
    block may create a file or a directory at the yielded path; parents of `path` are created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        temporary = folder / path.name
        yield temporary
        if temporary.is_dir() and path.exists():
            path.rename(folder / "replaced")
        temporary.replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys, whole or not at all; NaN and infinity are refused (ValueError)."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def local_or_hub(source: str) -> str:
    """A model or data set named in the parameters: a path if there is one from the project's root, else a hub id."""
    path = resolve_user_path(source)
    return str(path) if path.exists() else source
