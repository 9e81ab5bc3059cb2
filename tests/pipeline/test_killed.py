"""Stages killed on their way, started again, and compared with those of a run that was left alone."""

import json
import sys
from pathlib import Path

import pytest

from tests.pipeline.project import ROOT, Project

pytestmark = pytest.mark.system


@pytest.mark.parametrize(
    ("target", "num_kills", "outs"),
    [
        ("distill", 1, ["data/tokens", "models/0", "models/1"]),
        pytest.param(
            "evaluate",
            3,
            ["data/tokens", "models/0", "models/ar", "models/1", "samples/1", "metrics/1.json"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_killed_at_random_moments_a_second_clone_gives_the_same_bytes(
    tmp_path: Path, target: str, num_kills: int, outs: list[str]
) -> None:
    """Tokens, models, curves, samples and metrics; from a path of another length, and so at another time."""
    for name in ("undisturbed", "killed"):
        project = Project(tmp_path / name)
    script = str(ROOT / "tests/soak/soak.py")
    options = ["--preset", "smoke", "--target", target, "--num-kills", str(num_kills), "--seed", "3"]
    output = project.run(sys.executable, script, str(tmp_path), *options)
    assert f"{num_kills} kill" in output
    for out in outs:
        assert out in json.loads((tmp_path / "hashes.json").read_text())
