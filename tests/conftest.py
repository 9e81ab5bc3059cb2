"""Fixtures shared by all tests."""

import multiprocessing
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import settings

from halfstep.data.tokens.manifest import MANIFEST_FILE, Manifest, Shard, Split
from halfstep.run.files import file_hash, write_json

# Processes that run tests side by side share the cores, and so do the commands that tests start.
NUM_THREADS = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
torch.set_num_threads(NUM_THREADS)
os.environ.setdefault("OMP_NUM_THREADS", str(NUM_THREADS))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# It asks `uname` once, when MLflow is first imported: not in whichever test that happens to be.
platform.platform()
# No test depends on time, and a run repeats the one before it.
settings.register_profile("halfstep", deadline=None, derandomize=True)
settings.load_profile("halfstep")


@pytest.fixture(scope="session")
def published() -> Path:
    """A denoiser of random weights in the published layout, with inputs and outputs of the authors' networks."""
    return Path(__file__).parent / "fixtures" / "mdlm-tiny-a"


@pytest.fixture(scope="session")
def write_tokens() -> Callable[..., None]:
    """Writes rows of tokens, and a manifest that fits them, as `prepare` does."""

    def write(
        folder: Path, rows: Mapping[str, np.ndarray], *, rows_per_shard: int = 2**20, vocab_size: int = 12
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        splits = {name: _write_split(folder, name, array, rows_per_shard) for name, array in rows.items()}
        first = next(iter(rows.values()))
        manifest = Manifest(
            context_length=first.shape[1],
            vocab_size=vocab_size,
            mask_token_id=vocab_size - 1,
            dtype=first.dtype.name,
            **({"train": splits.get("valid"), "valid": splits.get("train")} | splits),
        )
        write_json(folder / MANIFEST_FILE, manifest.model_dump())

    return write


def _write_split(folder: Path, name: str, rows: np.ndarray, rows_per_shard: int) -> Split:
    shards = []
    for number, start in enumerate(range(0, len(rows), rows_per_shard)):
        part = rows[start : start + rows_per_shard]
        path = folder / f"{name}-{number:05}.npy"
        np.save(path, part)
        size = {"num_bytes": path.stat().st_size, "sha256": file_hash(path)}
        shards.append(Shard(file=path.name, num_sequences=len(part), **size))
    return Split(num_sequences=len(rows), shards=tuple(shards))


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def few_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of lm-eval's own tasks, which stand beside its manager, only those of one folder: all take seconds to list."""
    from lm_eval.tasks import manager

    monkeypatch.setattr(manager, "__file__", str(Path(manager.__file__).parent / "arc" / "manager.py"))


MARKS = ("unit", "stage", "system")
processes_started: list[str] = []


def _note_process(event: str, arguments: tuple[object, ...]) -> None:
    # Whoever draws first on a machine, matplotlib looks for its fonts.
    if event in ("subprocess.Popen", "os.fork", "os.posix_spawn") and arguments[:1] != ("fc-list",):
        processes_started.append(event)


sys.addaudithook(_note_process)


def mark_of(module: ModuleType) -> str:
    """Of a test without a mark: system if its file imports subprocess or multiprocessing; stage if a stage."""
    values = list(vars(module).values())
    if any(value is subprocess or value is multiprocessing for value in values):
        return "system"
    origins = (
        value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "") for value in values
    )
    return "stage" if any(str(origin).split(".")[0] == "stages" for origin in origins) else "unit"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test its mark; the longest first: processes that share the tests' files are busy to the end."""
    for item in items:
        if not any(map(item.get_closest_marker, MARKS)):
            item.add_marker(mark_of(item.module))
    items.sort(key=lambda item: (item.path.parent.name != "pipeline", item.get_closest_marker("system") is None))


@pytest.fixture(autouse=True)
def only_tests_of_the_system_start_processes(request: pytest.FixtureRequest) -> Iterator[None]:
    processes_started.clear()
    yield
    if not request.node.get_closest_marker("system"):
        assert processes_started == [], "@pytest.mark.system is missing"


TREE = pytest.StashKey[set[str]]()


def dirty_files() -> set[str]:
    """What git would commit or asks about, a line each; nothing without git."""
    command = ["git", "-C", str(Path(__file__).parents[1]), "status", "--porcelain", "--untracked-files=all"]
    try:
        return set(subprocess.run(command, capture_output=True, text=True).stdout.splitlines())
    except OSError:
        return set()


def pytest_sessionstart(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):
        session.config.stash[TREE] = dirty_files()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """The suite leaves the working tree as it was; among several processes the one that started them looks."""
    if stray := sorted(dirty_files() - session.config.stash.get(TREE, dirty_files())):
        print(f"\nThe working tree is not what it was before the tests: {', '.join(stray)}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
