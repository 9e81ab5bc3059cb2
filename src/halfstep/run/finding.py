"""Which files of text a path of the user means."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from halfstep.run.errors import UserError, one_line, shown
from halfstep.run.files import project_root, resolve_user_path

SUFFIXES = (".txt", ".jsonl", ".parquet")

MACOS_COPIES = "__MACOSX"
"""The folder of a ZIP archive that holds what macOS keeps beside each file."""

LeftOut = dict[str, set[Path]]
"""Files and folders that were found and are not read, by the reason."""

NAMES_SHOWN = 3


def find_files(paths: Sequence[str]) -> list[Path]:
    """The files that the user's paths, folders and globs mean, in a fixed order, each once, under whatever names.

    Of a folder these are the `.txt`, `.jsonl` and `.parquet` files (in any case) in it and its subfolders, but for
    hidden ones; links to folders are not followed. A glob means the files that match it, chosen likewise. A file that
    is named is always meant.

    Raises:
        UserError: an entry matches nothing, or a file that cannot be read as text.
    """
    return look_up(paths)[0]


def look_up(paths: Sequence[str]) -> tuple[list[Path], LeftOut]:
    """(`find_files`, what was found and is not read)."""
    files: dict[tuple[int, int], Path] = {}
    left_out: LeftOut = {}
    for entry in paths:
        try:
            path = Path(os.path.abspath(resolve_user_path(entry)))
            if path.is_file():
                if path.suffix.lower() not in SUFFIXES:
                    raise UserError(f"data.path {entry!r}: {path} is none of {', '.join(SUFFIXES)}; name another file")
                found = [path]
            else:
                found = sorted(_walk(path, left_out) if path.is_dir() else _matching(path, entry, left_out))
            stats = [file.stat() for file in found]
        # A name too long, a loop of links, a pattern that is none, a folder that may not be read.
        except (OSError, RuntimeError, ValueError, re.error) as error:
            raise UserError(
                f"data.path {shown(entry)} cannot be looked up ({one_line(error)}); give .txt, .jsonl or .parquet"
                " files, a folder of them or a glob"
            ) from None
        if not found:
            raise UserError(
                f"data.path {entry!r} matches no file (looked for {one_line(path, 1000)}; a device or a broken link is"
                f" none{described(left_out)}); give .txt, .jsonl or .parquet files, a folder of them or a glob, from"
                " the project's root"
            )
        for file, stat in zip(found, stats, strict=True):
            if files.setdefault((stat.st_dev, stat.st_ino), file) != file:
                left_out.setdefault("known by another name", set()).add(file)
    read = set(files.values())
    return list(files.values()), {why: rest for why, found in left_out.items() if (rest := found - read)}


def _walk(folder: Path, left_out: LeftOut) -> Iterator[Path]:
    """The files to read in a folder and its subfolders."""

    def stop(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=stop):
        for name in sorted(folders):
            path = Path(parent, name)
            if _is_hidden(name) or path.is_symlink():
                folders.remove(name)
                left_out.setdefault("hidden" if _is_hidden(name) else "linked folders", set()).add(path)
        for name in names:
            path = Path(parent, name)
            if _is_read(path, _is_hidden(name), left_out):
                yield path


def _matching(whole: Path, pattern: str, left_out: LeftOut) -> Iterator[Path]:
    """The files to read that match a glob, which itself finds what begins with a dot only where it says so."""
    for name in glob.iglob(os.path.expanduser(pattern), root_dir=project_root(), recursive=True):
        path = Path(os.path.abspath(project_root() / name))
        # The folders that ** matches are on the way to their files.
        is_on_the_way = "**" in pattern and path.is_dir()
        if not is_on_the_way and _is_read(path, MACOS_COPIES in {*path.parts} - {*whole.parts}, left_out):
            yield path


def _is_read(path: Path, is_hidden: bool, left_out: LeftOut) -> bool:
    """Whether a file that was found is read; else it is added to those that are not."""
    if is_hidden:
        reason = "hidden"
    elif path.is_dir():
        reason = "folders"
    elif not path.is_file():
        reason = "broken links or devices"
    elif path.suffix.lower() not in SUFFIXES:
        reason = path.suffix or "without a suffix"
    else:
        return True
    left_out.setdefault(reason, set()).add(path)
    return False


def _is_hidden(name: str) -> bool:
    """Whether programs keep a file or folder of this name for themselves, such as the copies that editors make."""
    return name.startswith(".") or name == MACOS_COPIES


def described(left_out: LeftOut) -> str:
    parts = []
    for reason, paths in left_out.items():
        names = [one_line(os.path.relpath(path, project_root())) for path in sorted(paths)[:NAMES_SHOWN]]
        more = ", ..." if len(paths) > len(names) else ""
        parts.append(f"{len(paths)} {reason} ({', '.join(names)}{more})")
    return f"; left out: {', '.join(parts)}" if parts else ""


def is_local(source: str) -> bool:
    """Whether a source of text means files: it is one, is written as a path or a glob, or has a file's ending."""
    path = resolve_user_path(source)
    is_written_so = source.startswith((".", "/", "~")) or any(character in source for character in "*?[")
    return os.path.exists(path) or is_written_so or path.suffix.lower() in SUFFIXES
