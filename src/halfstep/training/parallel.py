"""Networks on one device or several, whole or sharded: the only file that makes an Accelerator."""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from halfstep.model.joint import JointModel
from halfstep.run import ranks
from halfstep.run.device import select_device, select_precision, set_num_threads
from halfstep.settings.runtime import LaunchSettings, RuntimeSettings


@dataclass(frozen=True)
class Devices:
    """What this process computes on, in which precision, and how networks are spread over all processes."""

    accelerator: Accelerator
    runtime: RuntimeSettings
    launch: LaunchSettings

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def shards_teacher(self) -> bool:
        """Whether each process has only a part of the teacher."""
        return ranks.num_ranks() > 1 and self.launch.strategy == "fsdp" and self.launch.shard_teacher


def make_devices(runtime: RuntimeSettings, launch: LaunchSettings) -> Devices:
    """What a training stage computes on.

    Raises:
        UserError: the device is not there.
    """
    set_num_threads(runtime.num_threads)
    device = select_device(runtime.device)
    is_bf16 = select_precision(runtime.precision, device) == "bf16"
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="bf16" if is_bf16 else "no",
        # The networks' buffers are constants.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
    )
    return Devices(accelerator, runtime, launch)


class ModelLoss(nn.Module):
    """A network and whatever loss is asked of it, as one module: DDP and FSDP act when a module is called."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, loss: Callable[..., tuple[Tensor, int]], *inputs: Tensor) -> tuple[Tensor, int]:
        """loss(model, *inputs)."""
        return loss(self.model, *inputs)


def parallelize(model: nn.Module, devices: Devices) -> nn.Module:
    """Bring a network that is to be trained to the devices, in place; call before its optimizer is made.

    It is the same in every process. With strategy fsdp each process keeps its part of every parameter (a DTensor), and
    a block's are gathered when it is computed.

    Returns:
        a `ModelLoss`, or what DDP or FSDP made of one; its backward pass leaves in every parameter the mean of the
        processes' gradients.
    """
    model.to(devices.device)
    if devices.launch.gradient_checkpointing:
        for block in _blocks(model):
            # Computed a second time on the way back, instead of being kept.
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    if devices.runtime.compile:
        compile_blocks(model)
    model_loss = ModelLoss(model)
    if ranks.num_ranks() == 1:
        return model_loss
    if devices.launch.strategy == "ddp":
        with warnings.catch_warnings():
            # torch has a new name for broadcast_buffers, which accelerate does not know yet.
            warnings.filterwarnings("ignore", ".*broadcast_buffers.*", FutureWarning)
            return devices.accelerator.prepare_model(model_loss)
    _shard_blocks(model, devices.device)
    # What is left, the embedding and the head, is gathered when the whole is called.
    _fully_shard(model_loss, devices.device)
    return model_loss


def parallelize_teacher(teacher: nn.Module, devices: Devices) -> None:
    """Bring a frozen network to the devices, in place.

    With strategy fsdp and shard_teacher its blocks are spread over the processes; they must then all ask it equally
    often. A joint head stays whole: how often it is asked depends on what it draws. What was frozen before, the base of
    an adapter, is held as autocast makes it.
    """
    if devices.accelerator.mixed_precision == "bf16":
        hold_in_bf16(teacher)
    teacher.to(devices.device).requires_grad_(False)
    if devices.runtime.compile:
        compile_blocks(teacher)
    if devices.shards_teacher:
        _shard_blocks(teacher.trunk if isinstance(teacher, JointModel) else teacher, devices.device)


def hold_in_bf16(model: nn.Module) -> None:
    """Hold a network's frozen matrices in bf16, in place, in which autocast multiplies them: no result differs."""
    for matrix in frozen_matrices(model):
        matrix.data = matrix.bfloat16()


def frozen_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Those of a network's linear layers, without the projection, which may be an embedding, too."""
    from transformers.pytorch_utils import Conv1D

    kept = model.projection()[0]  # type: ignore[operator]
    weights: list[Any] = [module.weight for module in model.modules() if isinstance(module, nn.Linear | Conv1D)]
    return [weight for weight in weights if not weight.requires_grad and weight is not kept]


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


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """A network's parameters that are not frozen, by name: what a training state holds of it."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def is_sharded(model: nn.Module) -> bool:
    """Whether each process has only a part of the network's parameters."""
    return any(_is_dtensor(parameter) for parameter in model.parameters())


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor as one process would have it; of a part, all processes must ask."""
    return tensor.full_tensor() if _is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, or this process's part of it, as another one is laid out, on that one's device."""
    tensor = tensor.to(like.device)
    if not _is_dtensor(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # Every process has the whole: nothing needs to be sent.
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]


@torch.no_grad()
def unshard(model: nn.Module) -> None:
    """Give a network whole parameters in place of parts, in place, on the CPU; all processes must."""
    found: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if _is_dtensor(parameter):
                # One parameter may be in two modules, as a tied embedding is.
                if parameter not in found:
                    found[parameter] = nn.Parameter(full_tensor(parameter.detach()).cpu(), parameter.requires_grad)
                setattr(module, name, found[parameter])


def _is_dtensor(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")
