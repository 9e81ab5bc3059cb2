"""A teacher's targets all at once."""

from typing import Any

import torch
from torch import Tensor

from halfstep.objectives.sdtt import sdtt_target_chunks
from halfstep.objectives.teacher import TeacherSteps
from halfstep.samplers.base import ask


def sdtt_targets(teacher: Any, steps: TeacherSteps, xt: Tensor, t: Tensor, **options: Any) -> Tensor:
    """`sdtt_target_chunks` in the order of the masked positions, float [num_masked, vocab]."""
    chunks = list(sdtt_target_chunks(teacher, steps, xt, t, **options))
    if not chunks:  # asked for no position, the teacher still tells the vocabulary's size
        nowhere = torch.zeros_like(xt[:1], dtype=torch.bool)
        return torch.cat(list(ask(teacher, xt[:1], nowhere, options["mask_token_id"])()))
    ranks, log_p = zip(*chunks, strict=True)
    return torch.cat(log_p)[torch.cat(ranks).argsort()]
