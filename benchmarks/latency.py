"""The paper's comparison: a denoiser in some numbers of steps against an autoregressive model with a KV cache."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.measure import spread
from benchmarks.sizes import Size
from halfstep.evaluation.latency import decode, synchronizer, time_calls
from halfstep.model.denoiser import Denoiser
from halfstep.model.gpt2 import new_gpt2
from halfstep.model.joint import JointHeadConfig, JointModel
from halfstep.samplers.base import Uniforms
from halfstep.samplers.sampler import sampler_of


def time_sizes(
    size: Size,
    num_steps: Sequence[int],
    batch_size: int,
    *,
    num_warmups: int,
    num_repeats: int,
    device: torch.device,
    head_layers: int | None = None,
) -> list[dict[str, Any]]:
    """Time both kinds of model on texts of `size.length` tokens, the first one given.

    The autoregressive model is transformers' `generate`, drawing from its whole distribution, with the cache that
    grows and, on an accelerator, with the static one; the faster counts.

    Args:
        size: of the denoiser; GPT-2 has the same width, depth and heads.
        num_steps: numbers of denoising steps.
        batch_size: texts at once.
        num_warmups, num_repeats: rounds; each does everything once, in turn.
        device: where both compute.
        head_layers: of a joint head with random weights, which then draws the tokens of each step, speculatively; how
            many passes that takes depends on the weights.
    Returns:
        a case for each number of steps: seconds of the autoregressive model (plain) and ours, their ratio, and the
        passes of the head per text.
    """
    size = replace(size, batch_size=batch_size)
    denoiser = size.denoiser().eval().to(device)
    network: Denoiser | JointModel = denoiser
    if head_layers is not None:
        config = JointHeadConfig(size.hidden_size, head_layers, size.num_heads, "sampler")
        network = JointModel.untrained(denoiser, config)
        torch.nn.init.normal_(network.joint_head.out.weight, std=0.02)
        network.eval().to(device)
    drawing = "independent" if head_layers is None else "speculative"
    autoregressive = (
        new_gpt2(
            vocab_size=size.vocab_size,
            length=size.length,
            hidden_size=size.hidden_size,
            num_blocks=size.num_blocks,
            num_heads=size.num_heads,
            dropout=0.0,
        )
        .eval()
        .to(device)
    )
    x_init = torch.full((batch_size, size.length), size.mask_token_id, device=device)
    x_init[:, 0] = 0
    uniforms, passes = Uniforms(0, range(batch_size), size.length), dict.fromkeys(num_steps, 0.0)
    samplers = {n: sampler_of("ancestral", {"num_steps": n, "drawing": drawing}, "benchmark") for n in num_steps}

    def denoise(steps: int) -> None:
        drawn = samplers[steps].sample(network, x_init, mask_token_id=size.mask_token_id, uniforms=uniforms)
        passes[steps] = drawn.head_passes.double().mean().item()

    caches = ["dynamic", "static"] if device.type == "cuda" else ["dynamic"]
    calls: dict[str, Callable[[], object]] = {f"{n}": partial(denoise, n) for n in num_steps}
    calls |= {cache: partial(decode, autoregressive, x_init[:, :1], size.length, cache) for cache in caches}
    seconds = time_calls(calls, num_warmups=num_warmups, num_repeats=num_repeats, synchronize=synchronizer(device))
    rival = spread(min((seconds[cache] for cache in caches), key=lambda taken: spread(taken)["median"]))
    num_parameters = {"denoiser": denoiser.num_parameters(), "autoregressive": autoregressive.num_parameters()}
    cases = []
    for n in num_steps:
        ours = spread(seconds[f"{n}"])
        ratio = {"median": rival["median"] / ours["median"]}
        case = {"work": "latency", "num_steps": n, "batch_size": batch_size, "num_parameters": num_parameters}
        case["head_passes"] = passes[n]
        cases.append({**case, "plain": {"seconds": rival}, "ours": {"seconds": ours}, "ratio": ratio})
    return cases
