"""Devices, ranks and precision: the only file that makes an Accelerator."""

from accelerate import Accelerator

from halfstep.device import select_device, select_precision, set_num_threads


def make_accelerator(*, device: str, precision: str, num_threads: int | None) -> Accelerator:
    """The accelerator a training stage computes on.

    Args:
        device: auto, cpu or cuda.
        precision: auto, fp32 or bf16.
        num_threads: CPU threads of torch; None leaves torch's choice.
    Raises:
        UserError: the device is not there.
    """
    set_num_threads(num_threads)
    selected = select_device(device)
    is_bf16 = select_precision(precision, selected) == "bf16"
    return Accelerator(cpu=selected.type == "cpu", mixed_precision="bf16" if is_bf16 else "no")
