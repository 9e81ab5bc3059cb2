"""The optimizer and its learning rate."""

import math
from typing import Literal

import torch
from torch import nn

LrSchedule = Literal["constant", "linear", "cosine"]


def learning_rate_at(
    step: int, *, peak: float, schedule: LrSchedule, num_warmup_steps: int, num_train_steps: int
) -> float:
    """Learning rate of an optimizer step.

    It rises linearly over the warm-up and then stays, or falls to zero along a line or half a cosine.

    Args:
        step: optimizer steps already made, from 0.
        peak: learning rate after the warm-up.
        schedule: what follows the warm-up.
        num_warmup_steps: steps until the peak; the first step is not at zero.
        num_train_steps: the step at which a falling schedule reaches zero.
    Returns:
        the rate of the step about to be made.
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
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=0.0, betas=betas, eps=epsilon, weight_decay=weight_decay, fused=True)
