"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Processes that run tests side by side share the cores, and so do the commands that tests start.
NUM_THREADS = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
torch.set_num_threads(NUM_THREADS)
os.environ.setdefault("OMP_NUM_THREADS", str(NUM_THREADS))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# No test depends on time, and a run repeats the one before it.
settings.register_profile("halfstep", deadline=None, derandomize=True)
settings.load_profile("halfstep")


@pytest.fixture(scope="session")
def published() -> Path:
    """A denoiser of random weights in the published layout, with inputs and outputs of the authors' networks."""
    return Path(__file__).parent / "fixtures" / "mdlm-tiny-a"


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def few_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of lm-eval's own tasks, which stand beside its manager, only those of one folder: all take seconds to list."""
    from lm_eval.tasks import manager

    monkeypatch.setattr(manager, "__file__", str(Path(manager.__file__).parent / "arc" / "manager.py"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The pipeline first: where processes share the files of tests, one of them is busy with it from start to end."""
    items.sort(key=lambda item: item.get_closest_marker("pipeline") is None)
