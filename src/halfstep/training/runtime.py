"""Devices, ranks, precision and compilation: the only file that makes an Accelerator."""

from accelerate import Accelerator
from torch import nn

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


def compile_blocks(model: nn.Module) -> None:
    """Have `torch.compile` make a network's blocks faster, in place; names and weights stay as they are.

    The blocks are alike, so compiling them one by one takes a fraction of the time that the whole network does.
    """
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            for block in module:
                block.compile()
