"""The processes that share a stage's work, one for each device: which one this is, and what they exchange.

Usually there is one. Then nothing here waits for anybody, or imports torch.
"""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")

_group: Any = None
"""Of all processes, over the CPU's network: what they exchange does not wait for a device."""


def join(*, is_cpu: bool, timeout_seconds: float) -> None:
    """Meet the other processes, where torchrun's variables say; wait so long for one, here and from now on."""
    global _group
    import torch
    from accelerate import PartialState
    from torch import distributed

    timeout = timedelta(seconds=timeout_seconds)
    store, this_rank, size = next(distributed.rendezvous("env://", timeout=timeout))
    # After a restart the agent's store still has the addresses of processes that are gone.
    store = distributed.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    backend = "gloo" if is_cpu else "nccl"
    if not is_cpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    distributed.init_process_group(backend, store=store, rank=this_rank, world_size=size, timeout=timeout)
    PartialState(cpu=is_cpu)
    _group = distributed.new_group(backend="gloo", timeout=timeout)


def are_launched() -> bool:
    """Whether torchrun, or what does as it does, started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def num_ranks() -> int:
    """How many processes share the work."""
    return 1 if _group is None else _group.size()


def rank() -> int:
    """Which one this is, from 0."""
    return 0 if _group is None else _group.rank()


def is_main() -> bool:
    """Whether this is the process that writes files and talks to people."""
    return rank() == 0


def gather(value: T) -> list[T]:
    """What every process has, in their order, for all of them."""
    if _group is None:
        return [value]
    from torch import distributed

    values: list[Any] = [None] * num_ranks()
    distributed.all_gather_object(values, value, group=_group)
    return values


def from_main(value: T) -> T:
    """What the main process has, for all of them."""
    if _group is None:
        return value
    from torch import distributed

    values = [value]
    distributed.broadcast_object_list(values, src=0, group=_group)
    return values[0]


def sums(*values: Any) -> list[Any]:
    """Each value, a number or a tensor of one, summed over all processes, in float64; of one alone, as it is."""
    return _reduced(values, "SUM")


def largest(*values: Any) -> list[Any]:
    """Each value's largest among all processes."""
    return _reduced(values, "MAX")


def _reduced(values: Sequence[Any], operation: str) -> list[Any]:
    if _group is None:
        return list(values)
    import torch
    from torch import distributed

    total = torch.tensor([float(value) for value in values], dtype=torch.float64)
    distributed.all_reduce(total, getattr(distributed.ReduceOp, operation), group=_group)
    return total.tolist()


def wait() -> None:
    """Go on when all processes are here."""
    if _group is not None:
        from torch import distributed

        distributed.barrier(group=_group)


def share() -> slice:
    """Which rows of a batch are this process's: every so many, so that all have early and late ones."""
    return slice(rank(), None, num_ranks())


def is_lost_process(error: BaseException) -> bool:
    """Whether an exception comes of another process having ended, or not having answered in time."""
    if _group is None or not isinstance(error, RuntimeError):
        return False
    from torch import distributed

    return isinstance(error, distributed.DistError) or "gloo" in str(error)
