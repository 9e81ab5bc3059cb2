"""Peak memory of one piece of work, in a process of its own."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import torch

from benchmarks.sizes import Size
from benchmarks.work import build
from halfstep.run.device import autocast, peak_memory_bytes, set_num_threads


def peak_memory(
    work: str, which: str, size: Size, *, num_steps: int, dt: float, device: torch.device, precision: str,
    num_threads: int | None,
) -> dict[str, int]:  # fmt: skip
    """{"peak_bytes": with the work done once, "before_bytes": before it, with the networks in memory}.

    Args:
        work, size, num_steps, dt, device: see `build`.
        which: plain or ours.
        precision, num_threads: of the computation.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, work, which, size, num_steps, dt, device, precision, num_threads).result()


def _measure(
    work: str, which: str, size: Size, num_steps: int, dt: float, device: torch.device, precision: str,
    num_threads: int | None,
) -> dict[str, int]:  # fmt: skip
    set_num_threads(num_threads)
    built = build(work, size, num_steps=num_steps, dt=dt, device=device)

    def peak() -> int:
        return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory_bytes()

    before = peak()
    with autocast(device, precision):
        getattr(built, which)()
    return {"peak_bytes": peak(), "before_bytes": before}
