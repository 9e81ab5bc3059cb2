"""The stage `distill` where its teacher is at fault."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from halfstep.model.config import DenoiserConfig
from halfstep.model.denoiser import Denoiser
from halfstep.run.errors import UserError

ROOT = Path(__file__).parents[2]


def test_a_teacher_that_predicts_nan_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_tokens: Callable[..., None]
) -> None:
    spec = importlib.util.spec_from_file_location("distill_stage", ROOT / "stages" / "distill.py")
    assert spec is not None
    assert spec.loader is not None
    stage = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stage)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values["distill"].update(num_train_steps=2, batch_size=4)
    values["runtime"].update(device="cpu", num_threads=1)
    values["sample"].update(num_prefixes=8)
    Path("params.yaml").write_text(yaml.safe_dump(values))
    tokens = Path("data/tokens")
    rows = np.ones((8, 16), np.uint16)
    write_tokens(tokens, {"train": rows, "valid": rows}, vocab_size=12)
    teacher = Denoiser(DenoiserConfig(12, 11, 16, 8, 1, 2, 8, 0.0, 1e-3))
    torch.nn.init.constant_(teacher.output_layer.linear.bias, float("nan"))
    Path("models/0").mkdir(parents=True)
    teacher.save_pretrained(Path("models/0"))
    with pytest.raises(UserError, match=r"^models/0 predicts NaN: its weights are broken"):
        stage.main(
            1,
            teacher_path=None,
            student_path=None,
            params_path=Path("params.yaml"),
            tokens_path=tokens,
            tokenizer_path=Path("data/tokenizer"),
            curve_path=None,
        )
    assert not Path("models/1").exists()
