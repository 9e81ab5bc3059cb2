"""Parameters and arithmetic of the closed forms against the networks themselves."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.model.hub_folders import MASK, NUM_TOKENS, SIZES, published
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from halfstep.model.config import DenoiserConfig
from halfstep.model.denoiser import FREQUENCY_EMBEDDING_SIZE, Denoiser
from halfstep.model.gpt2 import new_gpt2
from halfstep.model.hub import describe_hub
from halfstep.tools.planning.networks import Network, count_parameters, forward_flops
from halfstep.tools.planning.teacher import count_hub

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


@pytest.mark.parametrize("kind", ["llama", "qwen2", "modernbert", "bert", "gpt2"])
def test_a_hubs_model_has_and_computes_what_torch_counts(kind: str, tmp_path: Path) -> None:
    """At a length at which it was not counted; grouped heads, gated MLPs, a tied projection, a transform before it."""
    published(tmp_path, kind)
    given = {"mask_token_id": MASK, "num_tokens": NUM_TOKENS, "length": 24, "noise_epsilon": 1e-3}
    described = describe_hub(tmp_path, None, **given, is_shifted=False)
    counted = count_hub(described.without_weights)
    model = described.with_weights()
    xt = torch.randint(NUM_TOKENS, (3, 24))
    at = torch.rand(xt.shape) < 0.4
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model.hidden_at(xt, at)
        body = counter.get_total_flops()
    assert forward_flops(counted, xt.numel(), 0, 24) == body
    assert forward_flops(counted, 0, 1, 24) == 2 * 32 * SIZES["vocab_size"]
    parts = count_parameters(counted)
    assert parts.total == sum(parameter.numel() for parameter in model.parameters())
    blocks = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    assert parts.blocks == sum(parameter.numel() for parameter in blocks.parameters())
    assert parts.embedding == SIZES["vocab_size"] * 32
    is_tied = kind in ("qwen2", "gpt2", "bert", "modernbert")
    assert parts.projection == sum(p.numel() for p in model.head.parameters()) - (parts.embedding if is_tied else 0)
