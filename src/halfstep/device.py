"""Which device computes, in which precision, on how many threads."""

from contextlib import AbstractContextManager, nullcontext

import torch

from halfstep.errors import UserError


def select_device(name: str) -> torch.device:
    """The device named in the parameters; `auto` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        UserError: the device was named and this machine does not have it.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, is_available in available.items() if is_available)
    if not available[name]:
        raise UserError(f"runtime.device is {name!r}, which torch does not find on this machine: use auto or cpu")
    return torch.device(name)


def select_precision(name: str, device: torch.device) -> str:
    """`fp32` or `bf16`; `auto` is bf16 on a CUDA device that computes in it and fp32 elsewhere."""
    if name == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return name


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Context in which networks compute in `precision`, a result of `select_precision`."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def set_num_threads(num_threads: int | None) -> None:
    """Limit the CPU threads of torch; None leaves torch's own choice."""
    if num_threads is not None:
        torch.set_num_threads(num_threads)
