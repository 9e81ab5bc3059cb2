"""The paper's comparison: a denoiser in some numbers of steps against an autoregressive model with a KV cache."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.measure import spread
from benchmarks.sizes import Size
from halfstep.evaluation.latency import decode, synchronizer, time_calls
from halfstep.model.gpt2 import new_gpt2
from halfstep.samplers.ancestral import sample
from halfstep.samplers.base import Uniforms


def time_sizes(
    size: Size,
    num_steps: Sequence[int],
    batch_size: int,
    *,
    num_warmups: int,
    num_repeats: int,
    device: torch.device,
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
    Returns:
        a case for each number of steps: seconds of the autoregressive model (plain) and ours, and their ratio.
    """
    size = replace(size, batch_size=batch_size)
    denoiser = size.denoiser().eval().to(device)
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
    u_time, u_token = Uniforms(0, range(batch_size), size.length).first

    def denoise(steps: int) -> None:
        sample(denoiser, x_init, num_steps=steps, mask_token_id=size.mask_token_id, u_time=u_time, u_token=u_token)

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
        cases.append({**case, "plain": {"seconds": rival}, "ours": {"seconds": ours}, "ratio": ratio})
    return cases
