"""Parameters and arithmetic of the closed forms against the networks themselves."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from halfstep.model.config import DenoiserConfig
from halfstep.model.denoiser import FREQUENCY_EMBEDDING_SIZE, Denoiser
from halfstep.model.gpt2 import new_gpt2
from halfstep.tools.planning.networks import Network, count_parameters, forward_flops

TINY = Network(vocab_size=37, hidden_size=24, num_blocks=3, num_heads=2, length=10, cond_dim=5)
PLACED = replace(TINY, absolute_positions=True)
LARGE = Network(vocab_size=50258, hidden_size=1536, num_blocks=24, num_heads=16, length=1024, cond_dim=128)


def new_denoiser(network: Network) -> Denoiser:
    assert network.cond_dim is not None
    return Denoiser(
        DenoiserConfig(
            vocab_size=network.vocab_size,
            mask_token_id=network.vocab_size - 1,
            length=network.length,
            hidden_size=network.hidden_size,
            num_blocks=network.num_blocks,
            num_heads=network.num_heads,
            cond_dim=network.cond_dim,
            dropout=0.0,
            noise_epsilon=1e-3,
            absolute_positions=network.absolute_positions,
        )
    )


def new_baseline(network: Network) -> torch.nn.Module:
    return new_gpt2(
        vocab_size=network.vocab_size,
        length=network.length,
        hidden_size=network.hidden_size,
        num_blocks=network.num_blocks,
        num_heads=network.num_heads,
        dropout=0.0,
    )


def baseline_of(network: Network) -> Network:
    return Network(network.vocab_size, network.hidden_size, network.num_blocks, network.num_heads, network.length, None)


@pytest.mark.parametrize("network", [TINY, PLACED, LARGE], ids=["tiny", "absolute", "paper-large"])
def test_parameters_are_those_of_the_networks_part_by_part(network: Network) -> None:
    with torch.device("meta"):
        denoiser, baseline = new_denoiser(network), new_baseline(network)
    counted = count_parameters(network)
    assert counted.total == denoiser.num_parameters()
    assert counted.embedding == denoiser.vocab_embed.embedding.numel()
    assert counted.blocks == sum(p.numel() for p in denoiser.blocks.parameters())
    assert counted.projection == sum(p.numel() for p in denoiser.head.parameters())
    assert count_parameters(baseline_of(network)).total == sum(p.numel() for p in baseline.parameters())


def test_flops_of_a_forward_pass_are_those_that_torch_counts() -> None:
    """To the last one; the conditioning, made once for all tokens, is what is left out."""
    xt = torch.randint(TINY.vocab_size, (4, TINY.length))
    at = torch.rand(4, TINY.length) < 0.4
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        new_denoiser(TINY)(xt, at=at)
    c, h = 5, TINY.hidden_size
    conditioning = 2 * c * (FREQUENCY_EMBEDDING_SIZE + c + (6 * TINY.num_blocks + 2) * h)
    expected = forward_flops(TINY, xt.numel(), int(at.sum()), TINY.length)
    assert counter.get_total_flops() == expected + conditioning
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        new_baseline(baseline_of(TINY))(xt)
    assert counter.get_total_flops() == forward_flops(baseline_of(TINY), xt.numel(), xt.numel(), TINY.length)
