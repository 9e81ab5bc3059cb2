"""A first teacher or a baseline that starts from another model."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from stages import baseline, pretrain

from halfstep.data.tokenizer import train_word_tokenizer
from halfstep.model.config import DenoiserConfig
from halfstep.model.denoiser import Denoiser
from halfstep.model.gpt2 import load_autoregressive, new_gpt2
from halfstep.run.errors import UserError

ROOT = Path(__file__).parents[2]
PATHS = tuple(Path(name) for name in ("params.yaml", "data/tokens", "data/tokenizer"))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_tokens: Callable[..., None]) -> Path:
    """Tokens with a context of 16, and models of others to start from."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.chdir(tmp_path)
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values["data"].update(context_length=16)
    values["sample"].update(num_prefixes=8, prefix_length=4, continuation_length=16)
    values["runtime"].update(device="cpu", num_threads=1)
    for section in ("pretrain", "baseline"):
        values[section].update(num_train_steps=1, num_warmup_steps=0, batch_size=4, init_from=f"my/{section}")
    values["noise"].update(epsilon=0.01)
    Path("params.yaml").write_text(yaml.safe_dump(values))
    tokenizer = train_word_tokenizer(["a b c d e f g h"], 12)
    tokenizer.save_pretrained("data/tokenizer")
    rows = np.ones((8, 16), np.uint16)
    write_tokens(Path("data/tokens"), {"train": rows, "valid": rows}, vocab_size=len(tokenizer))
    return tmp_path


@pytest.mark.parametrize(("length", "num_train_steps", "epsilon"), [(8, 1, 0.01), (64, 1, 0.01), (16, 0, 1e-3)])
def test_a_teacher_gets_the_length_and_keeps_its_noise_if_it_is_not_trained(
    project: Path, length: int, num_train_steps: int, epsilon: float
) -> None:
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["pretrain"].update(num_train_steps=num_train_steps)
    Path("params.yaml").write_text(yaml.safe_dump(values))
    Path("my/pretrain").mkdir(parents=True)
    Denoiser(DenoiserConfig(12, 11, length, 8, 1, 2, 8, 0.0, 1e-3)).save_pretrained(Path("my/pretrain"))
    pretrain.main(*PATHS, Path("models/0"), Path("curves/0.csv"))
    config = Denoiser.from_pretrained(Path("models/0")).config
    assert (config.length, config.noise_epsilon) == (16, epsilon)


def test_a_teacher_with_absolute_positions_of_another_length_is_refused(project: Path) -> None:
    Path("my/pretrain").mkdir(parents=True)
    Denoiser(DenoiserConfig(12, 11, 64, 8, 1, 2, 8, 0.0, 1e-3, True)).save_pretrained(Path("my/pretrain"))
    with pytest.raises(UserError, match=r"64 absolute positions, .* is 16: dvc exp run -S data.context_length=64"):
        pretrain.main(*PATHS, Path("models/0"), Path("curves/0.csv"))


@pytest.mark.parametrize(("length", "is_able"), [(8, False), (16, True), (64, True)])
def test_a_baseline_reads_the_context_or_is_refused(project: Path, length: int, is_able: bool) -> None:
    torch.manual_seed(0)
    new_gpt2(vocab_size=12, length=length, hidden_size=8, num_blocks=1, num_heads=2, dropout=0.0).save_pretrained(
        "my/baseline"
    )
    if is_able:
        baseline.main("ar", *PATHS, Path("models/ar"), Path("curves/ar.csv"))
        assert Path("models/ar/config.json").is_file()
        return
    with pytest.raises(UserError, match=r"my/baseline reads 8 tokens at most, fewer than data\.context_length 16"):
        baseline.main("ar", *PATHS, Path("models/ar"), Path("curves/ar.csv"))


def test_a_rival_is_trained_anew_at_its_own_depth(project: Path) -> None:
    values = yaml.safe_load(Path("params.yaml").read_text())
    values.update(rivals=[3], frontiers=[*values["models"], "ar-3"])
    Path("params.yaml").write_text(yaml.safe_dump(values))
    # What the baseline starts from, which is not there, is not asked for.
    baseline.main("ar-3", *PATHS)
    rival = load_autoregressive(Path("models/ar-3"))
    assert (rival.config.n_layer, rival.config.n_embd) == (3, values["model"]["hidden_size"])
    assert Path("curves/ar-3.csv").is_file()
    with pytest.raises(UserError, match=r"^params\.yaml: rivals are ar-3, not 'ar-1'$"):
        baseline.main("ar-1", *PATHS)
