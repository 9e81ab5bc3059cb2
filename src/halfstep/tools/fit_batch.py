"""`halfstep fit-batch`: how large a batch a stage's memory holds, found by trying."""

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from halfstep.run.device import select_device
from halfstep.settings import Params
from halfstep.tools.trial import EXIT_TOO_MUCH

STAGES = ("pretrain", "distill", "baseline", "sample")

SHARE_OF_AVAILABLE = 0.9
"""Of the memory that is available now; other processes will want some, too."""


@dataclass(frozen=True)
class Trial:
    """A batch that was tried, and its peak memory; None where the process wanted more than it may have."""

    batch_size: int
    num_accumulation_steps: int
    peak_bytes: int | None


def fit_batch(
    params: Params, stage: str, *, limit_bytes: int | None, vocab_size: int
) -> tuple[list[Trial], dict[str, int]]:
    """Find what a stage's memory holds: the trials that were made, and the settings that fit, none where nothing does.

    Training keeps its batch size and is given the fewest accumulation steps that fit; where none do, the largest
    power of two as batch size that does, one sequence at a time. Sampling is given its largest power of two, or all
    of its samples at once.

    Args:
        params: all parameters.
        stage: one of `STAGES`.
        limit_bytes: memory a process may have; None, on an accelerator, is all of it.
        vocab_size: tokens, the mask token included.
    """
    trials: list[Trial] = []

    def largest(candidates: Sequence[dict[str, int]]) -> dict[str, int]:
        """The last of ascending candidates that fits."""
        found: dict[str, int] = {}
        for sizes in candidates:
            tried = getattr(params, stage).model_copy(update=sizes)
            peak = try_batch(params.model_copy(update={stage: tried}), stage, limit_bytes, vocab_size)
            trials.append(Trial(tried.batch_size, getattr(tried, "num_accumulation_steps", 1), peak))
            if peak is None:
                break
            found = sizes
        return found

    if stage == "sample":
        most = max(params.sample.num_samples, params.sample.num_prefixes * params.sample.continuations_per_prefix)
        return trials, largest([{"batch_size": n} for n in [*_powers_below(most), most]])
    most = getattr(params, stage).batch_size
    divisors = [n for n in range(most, 0, -1) if most % n == 0]
    # Validation computes a batch at once, so that the batch size matters even where a step's parts are single.
    found = largest([{"num_accumulation_steps": n} for n in divisors]) or largest(
        [{"batch_size": n, "num_accumulation_steps": n} for n in _powers_below(most)]
    )
    return trials, found


def _powers_below(most: int) -> list[int]:
    return [2**k for k in range((most - 1).bit_length())]


def try_batch(params: Params, stage: str, limit_bytes: int | None, vocab_size: int) -> int | None:
    """The peak memory in bytes of a stage, in a process of its own; None if it is more than the limit.

    Raises:
        RuntimeError: the process failed for another reason.
    """
    request = {"stage": stage, "limit_bytes": limit_bytes, "vocab_size": vocab_size}
    done = subprocess.run(
        [sys.executable, "-m", "halfstep.tools.trial", json.dumps(request)],
        input=params.model_dump_json(),
        capture_output=True,
        text=True,
    )
    # Less than zero is a signal's number: Linux, out of memory, ends a process by SIGKILL.
    if done.returncode in (EXIT_TOO_MUCH, -9):
        return None
    if done.returncode:
        raise RuntimeError(f"a trial of {stage}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    peak = int(done.stdout.splitlines()[-1])
    return peak if limit_bytes is None or peak <= limit_bytes else None


def memory_limit(params: Params, limit_gib: float | None) -> int | None:
    """Bytes that a process may have: what the user says, or most of what is available; None is an accelerator's all."""
    if limit_gib is not None:
        return int(limit_gib * 2**30)
    if select_device(params.runtime.device).type == "cuda":
        return None
    return int(min(psutil.virtual_memory().available, _left_by_control_group()) * SHARE_OF_AVAILABLE)


def _left_by_control_group(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that Linux leaves this process's control group, of version 2 or 1; infinite where there is no limit."""
    left = [float("inf")]
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        # There is no such group, or it says "max".
        with suppress(OSError, ValueError):
            left.append(int((root / limit).read_text()) - int((root / used).read_text()))
    return min(left)
