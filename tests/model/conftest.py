import pytest
import torch

from halfstep.model.config import DenoiserConfig
from halfstep.model.denoiser import Denoiser


@pytest.fixture
def config() -> DenoiserConfig:
    return DenoiserConfig(
        vocab_size=11,
        mask_token_id=10,
        length=8,
        hidden_size=16,
        num_blocks=2,
        num_heads=2,
        cond_dim=4,
        dropout=0.5,
        noise_epsilon=1e-3,
    )


@pytest.fixture
def denoiser(config: DenoiserConfig) -> Denoiser:
    """All parameters random: a new denoiser's zero gates would hide mistakes."""
    denoiser = Denoiser(config).eval()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=g))
    return denoiser
