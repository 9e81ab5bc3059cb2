"""Seconds, memory and the machine they were measured on."""

import json
import os
import platform
import statistics
import subprocess
import sys
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
    a, b = torch.ones(2, n, n, dtype=dtype, device=device)
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


def peak_memory_bytes() -> int:
    """The most memory this process ever had in RAM."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Not getrusage: its maximum is inherited from the process that started this one.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_memory(work: str, which: str, size: dict[str, int], **options: Any) -> dict[str, int]:
    """Peak memory of one piece of work in a process of its own, see `benchmarks.peak`.

    Args:
        work: train, distill or sample.
        which: plain or ours.
        size: numbers of a `Size`.
        options: num_steps, dt, device, precision, num_threads.
    Returns:
        {"peak_bytes": ..., "before_bytes": ...}: with the work done once; before it, with the networks in memory.
    Raises:
        RuntimeError: the process failed.
    """
    request = json.dumps({"work": work, "which": which, "size": size, **options})
    done = subprocess.run([sys.executable, "-m", "benchmarks.peak", request], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"peak memory of {work}, {which}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


NUM_OPERATORS = 14


def operator_shares(work: Callable[[], object], device: torch.device) -> list[dict[str, Any]]:
    """Which of torch's operators a call's time goes to, the most expensive first, after a call to warm up.

    Returns:
        {"operator", "share", "num_calls"} each; the share is of the time spent in all operators, not in those that they
        call themselves. The last entry is the sum of those not named.
    """
    from torch.profiler import ProfilerActivity, profile

    work()
    is_cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]) as profiler:
        work()
    times = [
        (event.self_device_time_total if is_cuda else event.self_cpu_time_total, event.key, event.count)
        for event in profiler.key_averages()
    ]
    total = sum(time for time, _, _ in times)
    ordered = sorted(times, reverse=True)
    named = [{"operator": key, "share": t / total, "num_calls": n} for t, key, n in ordered[:NUM_OPERATORS]]
    rest = ordered[NUM_OPERATORS:]
    others = {"operator": "others", "share": sum(t for t, _, _ in rest) / total, "num_calls": sum(n for *_, n in rest)}
    return [*named, others]
