"""Rotary position embeddings, in the half-split form."""

import torch
from torch import Tensor, nn

MAX_PERIOD = 10000.0


class Rotary(nn.Module):
    """Angles of the rotary position embedding."""

    inv_freq: Tensor

    def __init__(self, head_size: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", torch.empty((head_size + 1) // 2))
        # Shapes alone need no values, and arithmetic without memory would import torch's compiler: a second.
        if not self.inv_freq.is_meta:
            exponent = torch.arange(0, head_size, 2).float() / head_size
            self.inv_freq = 1.0 / MAX_PERIOD**exponent

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin) of positions [...], each float32 [..., head_size / 2]."""
        angles = positions[..., None].float() * self.inv_freq.float()
        return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of the last dimension of x [batch, heads, length, head_size] against each other."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([(first * cos).addcmul(second, sin, value=-1), (second * cos).addcmul(first, sin)], dim=-1)
