"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(2)
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
