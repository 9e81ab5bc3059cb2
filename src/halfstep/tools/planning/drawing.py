"""What samplers ask of a network, counted by running them on one that knows nothing."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from halfstep.samplers.base import Asked, Policy, Uniforms
from halfstep.samplers.sampler import Sampler

NUM_DRAWN = 8
"""Samples over which is averaged: the number of evaluations hardly differs from one to the next."""

TOKEN, MASK = 0, 1


@dataclass(frozen=True)
class Drawing:
    """What one sample takes, on average.

    Attributes:
        evaluations: of the network.
        calls: in which a batch is evaluated, some of its samples at least.
        chosen_from: positions that are projected, and compared with each other, to choose which are written.
        drawn: positions that are projected, and drawn.
    """

    evaluations: float
    calls: float
    chosen_from: float
    drawn: float


def count_drawing(sampler: Sampler, length: int, num_masked: int) -> Drawing:
    """Count what a sample takes of which `num_masked` of `length` tokens are to be written, the last ones.

    A sampler that takes as many evaluations as it takes is counted with one for every two tokens, evenly. What a joint
    head does is not counted.
    """
    if sampler.num_steps is None:
        steps = num_masked / 2
        return Drawing(steps, steps, steps * num_masked / 2, num_masked)
    calls = chosen_from = drawn = 0

    def draw(
        asked: Asked, chosen: Tensor | None, writes: Tensor, policy: Policy, u_token: Tensor, likeliest: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        nonlocal calls, chosen_from, drawn
        tokens = torch.full((int(writes.sum()),), TOKEN)
        calls, drawn = calls + 1, drawn + len(tokens)
        chosen_from += 0 if chosen is None else len(chosen)
        return writes, tokens, torch.zeros(len(writes), dtype=torch.int64)

    x_init = torch.full((NUM_DRAWN, length), TOKEN)
    x_init[:, length - num_masked :] = MASK
    alone = replace(sampler, values={**sampler.values, "drawing": "independent", "head_passes": None})
    samples = alone.sample(
        lambda xt, at: torch.zeros(int(at.sum()), 2),
        x_init,
        mask_token_id=MASK,
        uniforms=Uniforms(0, range(NUM_DRAWN), length),
        together=draw,
    )
    return Drawing(samples.nfe.double().mean().item(), calls, chosen_from / NUM_DRAWN, drawn / NUM_DRAWN)
