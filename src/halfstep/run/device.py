"""Which device computes, in which precision, on how many threads."""

import sys
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from halfstep.run.errors import UserError


def select_device(name: str) -> torch.device:
    """The device named in the parameters; `auto` takes CUDA if there is one, else the CPU.

    Apple's MPS is not among them: exact categorical draws take float64, which it does not have.

    Raises:
        UserError: there is no such device, or this machine does not have it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise UserError(f"device is {name!r}: use auto, cpu or cuda (draws are in float64, which others lack)")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device is 'cuda', which torch does not find on this machine: use auto or cpu")
    return torch.device(name)


def select_precision(name: str, device: torch.device) -> str:
    """`fp32` or `bf16`; `auto` is bf16 on a CUDA device that computes in it and fp32 elsewhere."""
    if name == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return name


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Context in which networks compute in `precision`, a result of `select_precision`, whatever is around it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def set_num_threads(num_threads: int | None) -> None:
    """Limit the CPU threads of torch; None leaves torch's own choice."""
    if num_threads is not None:
        torch.set_num_threads(num_threads)


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
