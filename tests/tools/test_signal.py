"""How much of a gradient is signal."""

from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from halfstep.model.config import DenoiserConfig
from halfstep.model.denoiser import Denoiser
from halfstep.tools.cli import app
from halfstep.tools.signal import mean_cosine

ROOT = Path(__file__).parents[2]


def test_the_mean_cosine_is_the_share_of_the_signal() -> None:
    """|g|^2 / (|g|^2 + v), of 30 gradients in 4000 dimensions; 5 standard errors, a false alarm in a million."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(30, 4000, generator=generator, dtype=torch.float64)
    found = mean_cosine(noise + 0.5)
    assert found.standard_error is not None
    assert found.standard_error < 0.01
    assert abs(found.value - 0.25 / 1.25) < 5 * found.standard_error
    few = noise[:5] + 0.5
    cosines = [[float(torch.cosine_similarity(a, b, dim=0)) for b in few] for a in few]
    means = [fmean(cosines[i][j] for i, j in permutations(set(range(5)) - {left_out}, 2)) for left_out in range(5)]
    variance = 4 / 5 * sum((mean - fmean(means)) ** 2 for mean in means)
    assert mean_cosine(few).standard_error == pytest.approx(variance**0.5, rel=1e-6)
    assert mean_cosine(torch.ones(3, 2)).value == pytest.approx(1)
    # Of three directions at 120 degrees, whatever their lengths; and of none.
    angles = torch.tensor([0.0, 2.0, 4.0]) * torch.pi / 3
    spread = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([[1.0], [7.0], [0.1]])
    assert mean_cosine(spread).value == pytest.approx(-0.5)
    assert mean_cosine(spread).standard_error == pytest.approx(0, abs=1e-6)
    assert mean_cosine(torch.zeros(3, 2)).value == 0


@pytest.mark.parametrize("objective", ["sdtt", "joint", "mmd"])
def test_the_command_says_it_of_an_objective(
    objective: str, tmp_path: Path, write_tokens: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pipeline").symlink_to(ROOT / "pipeline")
    torch.manual_seed(0)
    denoiser = Denoiser(DenoiserConfig(12, 11, 16, 16, 2, 2, 8, 0.0, 1e-3))
    torch.nn.init.normal_(denoiser.head.weight)
    (tmp_path / "models" / "0").mkdir(parents=True)
    denoiser.save_pretrained(tmp_path / "models" / "0")
    rows = np.arange(8 * 16, dtype=np.uint16).reshape(8, 16) % 11
    write_tokens(tmp_path / "data" / "tokens", {"train": rows, "valid": rows})
    settings = ["objective=" + objective, "preset=smoke", "distill.batch_size=4", "runtime.num_threads=1"]
    result = CliRunner().invoke(app, ["signal", "--num-batches", "3", *(f"-S{setting}" for setting in settings)])
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"{objective}: mean cosine ")
    cosine = float(result.output.split()[3])
    assert -1 <= cosine <= 1
    assert cosine != 0
