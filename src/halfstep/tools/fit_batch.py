"""`halfstep fit-batch`: how large a batch a stage's memory holds, found by trying."""

import json
import subprocess
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from halfstep.run.device import select_device
from halfstep.run.errors import UserError
from halfstep.run.files import read_json
from halfstep.settings import Params
from halfstep.tools.trial import EXIT_TOO_MUCH

STAGES = ("pretrain", "distill", "baseline", "sample")

SHARE_OF_AVAILABLE = 0.9
"""Of the memory that is available now; other processes will want some, too."""


@dataclass(frozen=True)
class Trial:
    """One batch that was tried.

    Attributes:
        batch_size: sequences.
        num_accumulation_steps: parts they are computed in, one after the other.
        peak_bytes: the process's peak memory; None where it was ended because it wanted more than it may have.
    """

    batch_size: int
    num_accumulation_steps: int
    peak_bytes: int | None

    @property
    def fits(self) -> bool:
        """Whether the memory held it."""
        return self.peak_bytes is not None


def fit_batch(
    params: Params, params_path: Path, stage: str, *, limit_bytes: int | None, vocab_size: int
) -> tuple[list[Trial], list[str]]:
    """Find what a stage's memory holds: the trials that were made, and the overrides, such as `pretrain.batch_size=8`.

    Training keeps its batch size and is given the fewest accumulation steps that fit; where none do, the largest
    batch that does, one sequence at a time. Sampling is given its largest batch, up to all of its samples at once.
    Where nothing fits there are no overrides.

    Args:
        params: all parameters.
        params_path: their file, which the trials read.
        stage: one of `STAGES`.
        limit_bytes: memory a process may have; None, on an accelerator, is all of it.
        vocab_size: tokens, the mask token included.
    """
    trials: list[Trial] = []

    def fits(batch_size: int, num_accumulation_steps: int) -> bool:
        peak = try_batch(
            params_path,
            stage,
            batch_size=batch_size,
            num_accumulation_steps=num_accumulation_steps,
            limit_bytes=limit_bytes,
            vocab_size=vocab_size,
        )
        trials.append(Trial(batch_size, num_accumulation_steps, peak))
        return trials[-1].fits

    if stage == "sample":
        most = max(params.sample.num_samples, params.sample.num_prefixes * params.sample.continuations_per_prefix)
        largest = largest_that_fits(round_numbers(most), lambda n: fits(n, 1))
        return trials, [] if largest is None else [f"sample.batch_size={largest}"]
    batch_size = getattr(params, stage).batch_size
    divisors = [n for n in range(1, batch_size + 1) if batch_size % n == 0]
    at_once = largest_that_fits(divisors, lambda n: fits(batch_size, batch_size // n))
    if at_once is not None:
        return trials, [f"{stage}.num_accumulation_steps={batch_size // at_once}"]
    # Validation computes a batch at once, so that the batch size matters even where a step's parts are single.
    largest = largest_that_fits(round_numbers(batch_size)[:-1], lambda n: fits(n, n))
    if largest is None:
        return trials, []
    return trials, [f"{stage}.batch_size={largest}", f"{stage}.num_accumulation_steps={largest}"]


def largest_that_fits(candidates: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """The largest of ascending numbers that fits, where all below one that fits do: doubling, then bisection.

    Returns:
        None if the smallest does not fit.
    """
    low, high = -1, len(candidates)
    index = 0
    while low < len(candidates) - 1:
        if not fits(candidates[index]):
            high = index
            break
        low = index
        index = min(bisect_left(candidates, 2 * candidates[low]), len(candidates) - 1)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(candidates[middle]):
            low = middle
        else:
            high = middle
    return None if low < 0 else candidates[low]


def round_numbers(most: int) -> list[int]:
    """1 to 16, and from there on numbers about a tenth apart, up to and with `most`."""
    numbers = {n << shift for shift in range(most.bit_length()) for n in range(1, 17)}
    return sorted({n for n in numbers if n < most} | {most})


def try_batch(params_path: Path, stage: str, *, limit_bytes: int | None, **sizes: int) -> int | None:
    """The peak memory in bytes of a stage at a batch, in a process of its own; None if it is more than the limit.

    Args:
        params_path, stage, limit_bytes: as in `fit_batch`.
        sizes: batch_size, num_accumulation_steps and vocab_size.
    Raises:
        RuntimeError: the process failed for another reason.
    """
    request = {"params_path": str(params_path), "stage": stage, "limit_bytes": limit_bytes, **sizes}
    command = [sys.executable, "-m", "halfstep.tools.trial", json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True)
    # Less than zero is a signal's number: Linux, out of memory, ends a process by SIGKILL.
    if done.returncode in (EXIT_TOO_MUCH, -9):
        return None
    if done.returncode:
        raise RuntimeError(
            f"{stage} at batch {sizes['batch_size']}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
        )
    peak: int = json.loads(done.stdout.splitlines()[-1])["peak_bytes"]
    return peak if limit_bytes is None or peak <= limit_bytes else None


def vocab_size_for(params: Params, tokens_path: Path) -> int:
    """Tokens of the corpus that was prepared, else as many as its tokenizer is to have.

    Raises:
        UserError: neither is known yet.
    """
    try:
        return int(read_json(tokens_path / "manifest.json")["vocab_size"])
    except PermissionError:
        raise
    except (OSError, KeyError, ValueError):
        pass
    if params.data.tokenizer.vocab_size is None:
        raise UserError(
            f"the vocabulary of {params.data.tokenizer.source} is known when the corpus is prepared: dvc repro prepare"
        )
    return params.data.tokenizer.vocab_size


def memory_limit(params: Params, limit_gib: float | None) -> int | None:
    """Bytes that a process may have: what the user says, or most of what is available; None is an accelerator's all."""
    if limit_gib is not None:
        return int(limit_gib * 2**30)
    if select_device(params.runtime.device).type == "cuda":
        return None
    return int(min(psutil.virtual_memory().available, *_left_by_control_group()) * SHARE_OF_AVAILABLE)


def _left_by_control_group(root: Path = Path("/sys/fs/cgroup")) -> Iterator[float]:
    """Bytes that Linux leaves this process's control group, of version 2 or 1; infinite where there is no limit."""
    yield float("inf")
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        # There is no such group, or it says "max".
        with suppress(OSError, ValueError):
            yield int((root / limit).read_text()) - int((root / used).read_text())
