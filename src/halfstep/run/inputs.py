"""Hashes of the files that parameters name: neither DVC nor the parameters' values change when these are edited.

The stage `inputs` writes them to a file on which the stages that read those files depend, and they are part of the key
under which work is resumed.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from halfstep.run.errors import UserError
from halfstep.run.files import file_hash, project_root, read_json, resolve_user_path, unchanged, write_json
from halfstep.run.finding import find_files, is_local
from halfstep.run.retries import with_retries
from halfstep.settings import Params, named_inputs
from halfstep.settings.plugins import plugin_module

Inputs = Mapping[str, Callable[[], Sequence[Path]]]
"""`parameter=value` -> the files it means now, in the order in which they are read; none where it is a hub id."""

ENDINGS = (".json", ".jsonl", ".txt", ".safetensors", ".ckpt", ".pt", ".pth", ".bin")
"""Of names that are no hub ids."""

NANOSECONDS_UNSURE = 2_000_000_000
"""A file may change twice within one tick of the clock of its file system: the hash of one this young is not kept."""

MADE_SCORER = "scorers/smollm2"
"""What `make scorer` writes; no hub id."""


def local_files(parameter: str, source: str) -> list[Path]:
    """A file, or the files of a folder; none where the name is a hub id.

    Hidden files are left out, and what Python compiles beside the code of a task.

    Raises:
        UserError: the name means a file or a folder, and there is none.
    """
    path = resolve_user_path(source)
    # os.path says no to a name that no file can have, where pathlib raises.
    if os.path.isdir(path):
        return sorted(file for file in path.rglob("*") if file.is_file() and not _is_left_out(file.relative_to(path)))
    is_folder = parameter == "evaluate.downstream_include_path"
    if os.path.isfile(path) and not is_folder:
        return [path]
    is_made = source == MADE_SCORER
    is_written_so = source.startswith((".", "/", "~")) or source.count("/") > 1 or source.endswith(ENDINGS) or is_made
    # A denoiser of the hub has an owner.
    if is_written_so or is_folder or (parameter == "pretrain.init_from" and "/" not in source):
        way_out = "make scorer makes it" if is_made else "give a file or a folder, from the project's root"
        raise UserError(f"{parameter} {source!r}: {path} is not there; {way_out}")
    return []


def find_input(parameter: str, value: Any) -> Sequence[Path]:
    """The files that a parameter means now, in the order in which they are read; none where it is a hub id.

    Raises:
        UserError: the value means a file, and there is none.
    """
    if parameter == "data.source":
        return list(plugin_module("halfstep.data.corpora", value).library_files())
    if parameter == "data.path":
        return find_files([value] if isinstance(value, str) else value)
    if parameter.startswith("evaluate.likelihood_on"):
        try:
            return find_files([value]) if is_local(value) else []
        except UserError as error:
            raise UserError(f"{parameter} ({value}): {error}") from None
    return local_files(parameter, value)


def _is_left_out(name: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in name.parts)


def inputs_of(params: Params, stage: str) -> Inputs:
    """What a stage reads of the user's own."""
    return {
        f"{key}={value if isinstance(value, str) else list(value)}": partial(find_input, key, value)
        for key, value in named_inputs(params)[stage].items()
    }


def fingerprint(inputs: Inputs) -> dict[str, list[str]]:
    """The content of some inputs: for each a line per file, as sha256sum writes them.

    Files are named from their common folder on, so that the same ones elsewhere have the same fingerprint.

    Raises:
        UserError: there is no such file, or it cannot be read or was written to meanwhile.
    """
    files_of = {name: list(find()) for name, find in inputs.items()}
    hashes = _content_hashes([file for files in files_of.values() for file in files])
    fingerprints = {}
    for name, files in files_of.items():
        common = os.path.commonpath([file.parent for file in files]) if files else ""
        fingerprints[name] = [f"{hashes[file]}  {file.relative_to(common).as_posix()}" for file in files]
    return fingerprints


def _content_hashes(files: Sequence[Path]) -> dict[Path, str]:
    """SHA-256 of files; one whose size and times are those of the last call is not read again."""
    cache = project_root() / ".halfstep" / "hashes.json"
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError, UserError):
        known = dict(read_json(cache))
    hashes, found = {}, {}
    for file in files:
        try:
            stat = file.stat()
            # The time of the last change of the entry itself cannot be set back, as that of the content can.
            mark = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
            if known.get(str(file), [])[:-1] != mark:
                with unchanged(file):
                    hashes[file] = with_retries(str(file), partial(file_hash, file))
                if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > NANOSECONDS_UNSURE:
                    found[str(file)] = [*mark, hashes[file]]
            else:
                hashes[file] = known[str(file)][-1]
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror}); make it readable, or name another") from None
    if found:
        with suppress(OSError):
            write_json(cache, known | found)
    return hashes
