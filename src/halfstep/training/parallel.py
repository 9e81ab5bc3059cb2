"""How a network is laid out on the devices, and in which precision: the only file that makes an Accelerator."""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from halfstep.run import ranks
from halfstep.run.device import select_device, select_precision, set_num_threads
from halfstep.settings.runtime import LaunchSettings, RuntimeSettings


def make_accelerator(runtime: RuntimeSettings) -> Accelerator:
    """The accelerator a training stage computes on.

    Raises:
        UserError: the device is not there.
    """
    set_num_threads(runtime.num_threads)
    device = select_device(runtime.device)
    is_bf16 = select_precision(runtime.precision, device) == "bf16"
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="bf16" if is_bf16 else "no",
        # The networks' buffers are constants.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
    )


class ModelLoss(nn.Module):
    """A network and whatever loss is asked of it, as one module: DDP and FSDP act when a module is called.

    Args:
        model: the network.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, loss: Callable[..., tuple[Tensor, int]], *inputs: Tensor) -> tuple[Tensor, int]:
        """loss(model, *inputs)."""
        return loss(self.model, *inputs)


def lay_out(model: nn.Module, accelerator: Accelerator, runtime: RuntimeSettings, launch: LaunchSettings) -> nn.Module:
    """Bring a network that is to be trained to the devices, in place; call before its optimizer is made.

    Args:
        model: the network, the same in every process. With strategy fsdp each process keeps its part of every
            parameter (a DTensor), and a block's are gathered when it is computed.
        accelerator: of this process.
        runtime, launch: the parameters.
    Returns:
        a `ModelLoss`, or what DDP or FSDP made of one; its backward pass leaves in every parameter the mean of the
        processes' gradients.
    """
    model.to(accelerator.device)
    if launch.gradient_checkpointing:
        for block in _blocks(model):
            # Computed a second time on the way back, instead of being kept.
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    if runtime.compile:
        compile_blocks(model)
    model_loss = ModelLoss(model)
    if ranks.num_ranks() == 1:
        return model_loss
    if launch.strategy == "ddp":
        with warnings.catch_warnings():
            # torch has a new name for broadcast_buffers, which accelerate does not know yet.
            warnings.filterwarnings("ignore", ".*broadcast_buffers.*", FutureWarning)
            return accelerator.prepare_model(model_loss)
    _shard_blocks(model, accelerator.device)
    # What is left, the embedding and the head, is gathered when the whole is called.
    _fully_shard(model_loss, accelerator.device)
    return model_loss


def lay_out_teacher(
    teacher: nn.Module, accelerator: Accelerator, runtime: RuntimeSettings, launch: LaunchSettings
) -> None:
    """Bring a network that is only asked to the devices, in place.

    With strategy fsdp and shard_teacher its blocks are spread over the processes; they must then all ask it equally
    often.
    """
    teacher.to(accelerator.device).requires_grad_(False)
    if runtime.compile:
        compile_blocks(teacher)
    if is_teacher_shared(launch):
        _shard_blocks(teacher, accelerator.device)


def is_teacher_shared(launch: LaunchSettings) -> bool:
    """Whether each process has only a part of the teacher."""
    return ranks.num_ranks() > 1 and launch.strategy == "fsdp" and launch.shard_teacher


def without_sync(model_loss: nn.Module) -> AbstractContextManager[None]:
    """Within the block, gradients are added up in this process only, where the layout allows it.

    DDP exchanges them with the last part of a batch. FSDP does with every part: it has no room for whole gradients.
    """
    return model_loss.no_sync() if isinstance(model_loss, nn.parallel.DistributedDataParallel) else nullcontext()


def reshard(model_loss: nn.Module) -> None:
    """Give back what FSDP gathered for a pass that no backward pass followed."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(model_loss, FSDPModule):
        model_loss.reshard()


def compile_blocks(model: nn.Module) -> None:
    """Have `torch.compile` make a network's blocks faster, in place; names and weights stay as they are.

    The blocks are alike, so compiling them one by one takes a fraction of the time that the whole network does.
    """
    for block in _blocks(model):
        block.compile()


def _blocks(model: nn.Module) -> list[nn.Module]:
    return [block for module in model.modules() if isinstance(module, nn.ModuleList) for block in module]


def _shard_blocks(model: nn.Module, device: torch.device) -> None:
    for block in _blocks(model):
        # Said outright: a teacher's blocks have nothing above them, and FSDP would leave them whole after a pass.
        _fully_shard(block, device, reshard_after_forward=True)


def _fully_shard(module: nn.Module, device: torch.device, *, reshard_after_forward: bool | None = None) -> None:
    # accelerate has no FSDP on the CPU, where its results can be compared with one process's.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (ranks.num_ranks(),))
    fully_shard(module, mesh=mesh, reshard_after_forward=reshard_after_forward)
