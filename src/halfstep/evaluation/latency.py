"""Seconds per batch of texts: denoising in some number of steps against decoding token by token."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from halfstep.metrics.estimate import Estimate
from halfstep.model.base import MaskedModel
from halfstep.samplers.base import LogitsAt, Uniforms
from halfstep.samplers.sampler import Sampler

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel


def time_calls(
    calls: Mapping[str, Callable[[], object]],
    *,
    num_warmups: int,
    num_repeats: int,
    synchronize: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time some calls against each other.

    Every round times each call once, in turn, so that a machine that grows slower or faster does so for all.

    Args:
        calls: what to time, by name.
        num_warmups: rounds before those that count.
        num_repeats: rounds that count.
        synchronize: waits until the device has done all its work.
        clock: seconds since some moment.
    Returns:
        seconds of each counted call, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(num_warmups + num_repeats):
        for name, call in calls.items():
            synchronize()
            start = clock()
            call()
            synchronize()
            if repeat >= num_warmups:
                seconds[name].append(clock() - start)
    return seconds


def synchronizer(device: torch.device) -> Callable[[], None]:
    """A function that waits for the device; on the CPU there is nothing to wait for."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


def time_generation(
    denoiser: LogitsAt | MaskedModel,
    autoregressive: "GPT2LMHeadModel",
    *,
    samplers: Sequence[Sampler],
    batch_size: int,
    length: int,
    mask_token_id: int,
    num_warmups: int,
    num_repeats: int,
    device: torch.device,
) -> dict[str, Any]:
    """Time both kinds of models on the same task: from a first token to `length` tokens, in batches.

    The denoiser draws its samples with each sampler, always with the same randomness. The autoregressive model is
    transformers' `generate`, drawing from its whole distribution, with a KV cache and no early stop.

    Args:
        denoiser: in evaluation mode.
        autoregressive: in evaluation mode, without an EOS token that would stop it.
        samplers: of the denoiser.
        batch_size: texts at once.
        length: tokens of a text, the first one given.
        mask_token_id: id of the absorbing state; the given token is id 0.
        num_warmups, num_repeats: see `time_calls`.
        device: where both compute.
    Returns:
        {"denoiser": [entry per sampler], "autoregressive": entry}; an entry has the median, least and greatest seconds
        of a call, the tokens generated per second, and the network evaluations per text.
    """
    x_init = torch.full((batch_size, length), mask_token_id, device=device)
    x_init[:, 0] = 0
    uniforms = Uniforms(0, range(batch_size), length)
    nfe: dict[int, float] = {}

    def denoise(number: int) -> None:
        samples = samplers[number].sample(denoiser, x_init, mask_token_id=mask_token_id, uniforms=uniforms)
        nfe[number] = samples.nfe.double().mean().item()

    calls: dict[str, Callable[[], object]] = {f"{i}": partial(denoise, i) for i in range(len(samplers))}
    calls["decode"] = partial(decode, autoregressive, x_init[:, :1], length)
    seconds = time_calls(calls, num_warmups=num_warmups, num_repeats=num_repeats, synchronize=synchronizer(device))
    num_tokens = batch_size * (length - 1)
    return {
        "denoiser": [
            {
                "sampler": sampler.name,
                "setting": sampler.setting,
                "num_steps": sampler.num_steps,
                "nfe": nfe[i],
                **_entry(seconds[f"{i}"], num_tokens),
            }
            for i, sampler in enumerate(samplers)
        ],
        "autoregressive": {"nfe": float(length - 1), "kv_cache": True, **_entry(seconds["decode"], num_tokens)},
    }


def decode(autoregressive: "GPT2LMHeadModel", given: torch.Tensor, length: int, cache: str = "dynamic") -> None:
    """Write `given`, int64 [batch, n], on to `length` tokens, drawn from the whole distribution with a KV cache.

    Raises:
        ValueError: it stopped before.
    """
    tokens = autoregressive.generate(
        given,
        attention_mask=torch.ones_like(given),
        do_sample=True,
        top_k=0,
        use_cache=True,
        cache_implementation=cache,
        max_new_tokens=length - given.shape[1],
        pad_token_id=0,
    )
    if tokens.shape[1] != length:
        raise ValueError(f"generate stopped at {tokens.shape[1]} of {length} tokens: the model has an EOS token")


def _entry(seconds: Sequence[float], num_tokens: int) -> dict[str, Any]:
    median = statistics.median(seconds)
    return {
        "seconds": Estimate(median, None, len(seconds), "seconds").as_dict(),
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
        "tokens_per_second": num_tokens / median,
    }
