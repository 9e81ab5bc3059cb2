"""The optimizer and its learning rate."""

import math
from typing import Literal

import torch
from torch import nn

from halfstep.training.parallel import trained

LrSchedule = Literal["constant", "linear", "cosine"]


def learning_rate_at(
    step: int, *, peak: float, schedule: LrSchedule, num_warmup_steps: int, num_train_steps: int
) -> float:
    """Learning rate of the step about to be made, after `step` others.

    It rises along a line to its peak, the first step not being at zero, and then stays, or falls along a line or half a
    cosine to zero at `num_train_steps`.
    """
    if step < num_warmup_steps:
        return peak * (step + 1) / num_warmup_steps
    if schedule == "constant":
        return peak
    progress = (step - num_warmup_steps) / max(num_train_steps - num_warmup_steps, 1)
    progress = min(progress, 1.0)
    return peak * ((1 - progress) if schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2)


def build_optimizer(
    model: nn.Module, *, betas: tuple[float, float], epsilon: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW over the parameters that are not frozen, in one fused kernel; the loop sets the rate at every step."""
    parameters = trained(model).values()
    return torch.optim.AdamW(parameters, lr=0.0, betas=betas, eps=epsilon, weight_decay=weight_decay, fused=True)
