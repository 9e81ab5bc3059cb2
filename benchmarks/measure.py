"""Seconds, memory and the machine they were measured on."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from halfstep.evaluation.latency import synchronizer, time_calls

MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the matrices whose product is the ceiling, by kind of device."""


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles and number of some values; of fewer than three the quartiles are the least and greatest."""
    ordered = sorted(values)
    if len(ordered) < 3:
        quartiles = [ordered[0], ordered[-1]]
    else:
        low, _, high = statistics.quantiles(ordered, n=4, method="inclusive")
        quartiles = [low, high]
    return {"median": statistics.median(ordered), "quartiles": quartiles, "count": len(ordered)}


def compare(
    plain: Callable[[], object],
    ours: Callable[[], object],
    *,
    num_warmups: int,
    num_repeats: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Time two ways of doing the same, in turn.

    Returns:
        {"plain": {"seconds": spread}, "ours": {"seconds": spread}, "ratio": spread}; the ratio is plain over ours of
        each round, so that a machine that slows down does so for both.
    """
    seconds = time_calls(
        {"plain": plain, "ours": ours},
        num_warmups=num_warmups,
        num_repeats=num_repeats,
        synchronize=synchronizer(device),
        clock=clock,
    )
    ratios = [p / o for p, o in zip(seconds["plain"], seconds["ours"], strict=True)]
    return {**{name: {"seconds": spread(values)} for name, values in seconds.items()}, "ratio": spread(ratios)}


def matmul_flops_per_second(
    device: torch.device, dtype: torch.dtype, clock: Callable[[], float] = time.perf_counter, num_repeats: int = 5
) -> float:
    """The most this device does in one product of large square matrices: the ceiling of utilisation."""
    n = MATMUL_SIZE[device.type]
    # Not ones: a chip that switches fewer bits draws less power and runs faster than any real product.
    a, b = torch.randn(2, n, n, dtype=dtype, device=device)
    calls = {"matmul": lambda: a @ b}
    synchronize = synchronizer(device)
    seconds = time_calls(calls, num_warmups=2, num_repeats=num_repeats, synchronize=synchronize, clock=clock)
    return 2 * n**3 / min(seconds["matmul"])


def environment(device: torch.device, precision: str) -> dict[str, Any]:
    """What a number depends on beside the code."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "num_threads": torch.get_num_threads(),
        "precision": precision,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
