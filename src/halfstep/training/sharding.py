"""Tensors of which each process may have a part: whole, apart, and put back into a network."""

import torch
from torch import Tensor, nn


def is_sharded(model: nn.Module) -> bool:
    """Whether each process has only a part of the network's parameters."""
    return any(_is_dtensor(parameter) for parameter in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """A tensor as one process would have it; of a part, all processes must ask."""
    return tensor.full_tensor() if _is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def as_part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, or this process's part of it, as another one is laid out, on that one's device."""
    tensor = tensor.to(like.device)
    if not _is_dtensor(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # Every process has the whole: nothing needs to be sent.
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]


@torch.no_grad()
def make_whole(model: nn.Module) -> None:
    """Give a network whole parameters in place of parts, in place, on the CPU; all processes must."""
    found: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if _is_dtensor(parameter):
                # One parameter may be in two modules, as a tied embedding is.
                if parameter not in found:
                    found[parameter] = nn.Parameter(whole(parameter.detach()).cpu(), parameter.requires_grad)
                setattr(module, name, found[parameter])


def _is_dtensor(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")
