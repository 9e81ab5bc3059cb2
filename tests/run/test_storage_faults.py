"""Every kind of writer on a disk that is full, read-only, or takes no large files: one line, and nothing torn."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from halfstep.run.files import atomic_path

SCRIPT = Path(__file__).parent / "storage_writers.py"
TOLD = {
    "full": "no space is left on the disk: free space",
    "read-only": "the file system is read-only: make it writable",
    "limit": "the file is larger than may be written here: raise the limit",
}
WRITTEN = {
    "denoiser": "denoiser",
    "tokenizer": "tokenizer",
    "tokens": "tokens",
    "checkpoint": "work/step-000000007",
    "samples.parquet": "samples.parquet",
    "metrics.json": "metrics.json",
    "corpus": "tmp",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """(root, what each writer did by fault), of one process for all faults: it imports for seconds."""
    if sys.platform != "linux":
        pytest.skip("tmpfs and namespaces are Linux's")
    root = tmp_path_factory.mktemp("disk")
    command = [sys.executable, str(SCRIPT), str(root), "limit"]
    mounted = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", root], capture_output=True)
    if mounted.returncode == 0:
        command = ["unshare", "-rm", *command, "full", "read-only"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return root, json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module", params=list(TOLD))
def tried(
    request: pytest.FixtureRequest, run: tuple[Path, dict[str, dict[str, Any]]]
) -> tuple[str, Path, dict[str, Any]]:
    """(fault, folder, what each writer did)."""
    root, found = run
    if request.param not in found:
        pytest.skip("this system allows no mounts")
    return request.param, root / request.param, found[request.param]


@pytest.mark.parametrize("writer", list(WRITTEN))
def test_a_writer_on_a_disk_that_refuses(tried: tuple[str, Path, dict[str, Any]], writer: str) -> None:
    fault, folder, found = tried
    result = found[writer]
    assert result["line"] is not None, result["error"]
    assert result["line"].startswith(str(folder / WRITTEN[writer]))
    assert TOLD[fault] in result["line"]
    assert "\n" not in result["line"]
    for path, digest in result["left"].items():
        assert result["written"][path] == digest, f"{path} was left half-written"
    assert result["again"] is None
    assert writer == "corpus" or result["written"]


def test_what_has_the_name_was_synced_before_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of fsync and rename is what a power cut leaves whole files by."""
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(descriptor: int) -> None:
        events.append("sync " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def note_replace(path: Path, target: Path) -> Path:
        events.append("rename " + path.name)
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    with atomic_path(tmp_path / "model") as folder:
        (folder / "inner").mkdir(parents=True)
        (folder / "inner" / "weights").write_text("weights")
    assert events == ["sync weights", "sync inner", "sync model", "rename model", f"sync {tmp_path.name}"]


def test_a_sync_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems take a write and tell only at the sync that there was no room for it."""
    path = tmp_path / "metrics.json"
    path.write_text("old")

    def refuse(descriptor: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match=r"metrics\.json") as raised, atomic_path(path) as temporary:
        temporary.write_text("new")
    assert raised.value.errno == errno.EDQUOT
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["metrics.json"]


def test_a_file_system_that_cannot_sync_folders_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuse)
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("a")
    assert (tmp_path / "a").read_text() == "a"
