"""How networks lie on their devices."""

from pathlib import Path

import pytest
import torch
from tests.model.hub_folders import NUM_TOKENS, OWN
from tests.model.test_hub import some_tokens
from tests.model.test_lora import adapted, learned
from torch.nn import functional as F

from halfstep.model.lora import matrices_of
from halfstep.training.parallel import hold_in_bf16


@pytest.mark.parametrize("model_type", OWN)
def test_a_base_in_bf16_changes_no_bit_under_autocast(model_type: str, tmp_path: Path) -> None:
    model = learned(adapted(tmp_path, model_type))
    xt, at = some_tokens()

    def found() -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.hidden_at(xt, at)
            logits = F.linear(hidden, *model.projection())[:, :NUM_TOKENS]
        gradients = torch.autograd.grad(logits.float().square().sum(), list(matrices_of(model.network).values()))
        return [hidden, logits, *gradients]

    before = found()
    hold_in_bf16(model)
    assert all(map(torch.equal, found(), before))
    held = {name.rpartition(".base_layer")[0] for name, p in model.named_parameters() if p.dtype == torch.bfloat16}
    changed = {name.rpartition(".lora_")[0] for name, p in model.named_parameters() if ".lora_" in name}
    # GPT-2 has its matrices transposed, ELECTRA and BERT layers beside those of attention and MLP.
    assert held == changed
    assert model.projection()[0].dtype == torch.float32
