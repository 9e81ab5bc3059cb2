"""Ancestral sampling in any number of steps.

Which positions unmask in a step does not depend on the network (SUBS with an absorbing state). So every position
draws the step in which it unmasks beforehand, and the network is asked only for positions that unmask now, and not
at all for sequences in which nothing does. The distribution is that of the plain sampler, the work is less.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from halfstep.model.base import MaskedModel
from halfstep.samplers import choices
from halfstep.samplers.base import LogitsAt, Policy, Samples, StepUniforms, fill
from halfstep.samplers.choices import ranks, written_by
from halfstep.settings.base import PositiveInts, Several
from halfstep.settings.evaluation import SamplerSettings

Counts = Literal["binomial", choices.Counts]
"""How many positions a step writes: as many as chance has it, which is exact, or see `choices.Counts`."""


class Settings(SamplerSettings):
    """`num_steps`: numbers of denoising steps; `counts`: how many positions each writes."""

    num_steps: PositiveInts
    counts: Several[Counts] = ("binomial",)


def unmask_steps(u_time: Tensor, num_steps: int) -> Tensor:
    """The denoising step in which each position unmasks, on the time grid 1, 1 - 1/n, ..., 0.

    Under the log-linear schedule a position that is masked at time 1 is still masked at time t with probability
    t, whatever epsilon; so with one uniform number u it unmasks in the step whose interval holds u.

    Args:
        u_time: uniform numbers in [0, 1), float [...].
        num_steps: n, 1 or more.
    Returns:
        steps in 1..n, each equally likely, int64 [...].
    Raises:
        ValueError: num_steps is less than 1.
    Source: Sahoo et al. 2024, arXiv:2406.07524, Section 3.2.3, Eq. 7, here for all steps at once.
    Departs: the last step ends at time 0, so n steps unmask everything; the authors' code stops at 1e-5 and takes
        the argmax at what is left.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}, expected 1 or more")
    return (num_steps * (1 - u_time)).ceil().long()


def planned_unmask_steps(u_time: Tensor, is_masked: Tensor, num_steps: int, counts: choices.Counts = "even") -> Tensor:
    """The denoising step in which each position unmasks, if it is decided how many go with each step.

    Which positions go together is still up to chance. Changes the distribution: the number that unmasks in a step is
    no longer binomial, so that steps of many tokens, which make the mistakes, do not occur, nor empty ones, which cost
    nothing. With a step for every position there is one order of writing, drawn evenly from all.

    Args:
        u_time: uniform numbers in [0, 1), float64 [batch, length].
        is_masked: positions to fill, bool [batch, length].
        num_steps: n, 1 or more.
        counts: how many go with each step, see `written_by`.
    Returns:
        steps in 1..n, 0 where nothing is to be filled, int64 [batch, length].
    Raises:
        ValueError: num_steps is less than 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}, expected 1 or more")
    # As in `unmask_steps`, the largest numbers come first.
    rank = ranks(torch.where(is_masked, u_time, -1.0))
    steps = torch.arange(1, num_steps + 1, device=u_time.device)
    written = written_by(steps, num_steps, is_masked.sum(dim=1, keepdim=True), counts)
    return torch.where(is_masked, torch.searchsorted(written, rank, right=True) + 1, 0)


def sample(
    network: LogitsAt | MaskedModel,
    x_init: Tensor,
    *,
    num_steps: int,
    mask_token_id: int,
    u_time: Tensor,
    u_token: Tensor,
    unmask_step: Tensor | None = None,
    adjust: Callable[[Tensor], Tensor] | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Samples:
    """Ancestral sampling from x_init, whose masks are filled in num_steps denoising steps.

    Args:
        network: the denoiser in evaluation mode.
        x_init: tokens to keep, and the mask token everywhere else, int64 [batch, length]. Not modified.
        num_steps: denoising steps, 1 or more.
        mask_token_id: id of the absorbing state.
        u_time: decides in which step a position unmasks, float64 [batch, length], see `Uniforms`.
        u_token: decides which token it becomes, float64 [batch, length].
        unmask_step: the step in which each position unmasks, int64 [batch, length] in 1..num_steps, instead of what
            u_time says; see `planned_unmask_steps`.
        adjust: changes the logits drawn from, float [n, vocab] with -inf at the mask token; see `with_temperature`,
            `keep_top_k` and `keep_top_p`. Without it and unmask_step the samples are exact.
        on_step: called after each step with its number, from 1, and the tokens so far, int64 [batch, length].
    Returns:
        Samples, on the device of x_init.
    Raises:
        ValueError: shapes do not agree, or num_steps is less than 1.
    Source: Sahoo et al. 2024, arXiv:2406.07524, Section 4.1 (ancestral sampling; unchanged sequences need no
        evaluation); Zheng et al. 2024, arXiv:2409.02908, Appendix E (what unmasks does not depend on the network).
        Draws are exact, see `draw_categorical`.
    """
    if not x_init.shape == u_time.shape == u_token.shape:
        raise ValueError(
            f"x_init has shape {tuple(x_init.shape)}, u_time {tuple(u_time.shape)}, u_token {tuple(u_token.shape)}"
        )
    if unmask_step is None:
        unmask_step = unmask_steps(u_time, num_steps)
    chosen = _policy(x_init, unmask_step, num_steps, mask_token_id, u_time)
    return fill(network, x_init, chosen, mask_token_id=mask_token_id, u_token=u_token, adjust=adjust, on_step=on_step)


def policy(
    x_init: Tensor, u_time: Tensor, uniforms: StepUniforms, *, mask_token_id: int, num_steps: int, counts: Counts
) -> "Ancestral":
    """The policy of a batch: see `Ancestral`."""
    if counts == "binomial":
        return _policy(x_init, unmask_steps(u_time, num_steps), num_steps, mask_token_id, u_time)
    steps = planned_unmask_steps(u_time.to(x_init.device), x_init == mask_token_id, num_steps, counts)
    return _policy(x_init, steps, num_steps, mask_token_id, u_time)


def _policy(x_init: Tensor, unmask_step: Tensor, num_steps: int, mask_token_id: int, u_time: Tensor) -> "Ancestral":
    unmask_step = torch.where(x_init == mask_token_id, unmask_step.to(x_init.device), 0)
    return Ancestral(mask_token_id, unmask_step, num_steps, u_time.to(x_init.device))


class Ancestral(Policy):
    """Each position is written in a step that is known beforehand.

    Args:
        unmask_step: of each position; 0 where nothing is to be written, int64 [batch, length].
        num_steps: on the time grid 1, 1 - 1/n, ..., 0.
        u_time: the largest numbers come first, as finer steps would have it, float64 [batch, length].
    """

    def __init__(self, mask_token_id: int, unmask_step: Tensor, num_steps: int, u_time: Tensor) -> None:
        super().__init__(mask_token_id)
        self.unmask_step, self.num_steps, self.priority = unmask_step, num_steps, u_time

    def asks(self, step: int, xt: Tensor) -> Tensor | None:
        """See `Policy`."""
        is_masked = xt == self.mask_token_id
        if step > self.num_steps and not is_masked.any():
            return None
        # What a joint head did not settle in the steps before is added to this one's.
        return is_masked & (self.unmask_step <= step)

    def time(self, step: int, xt: Tensor) -> Tensor:
        """The time at which the step begins."""
        step = min(step, self.num_steps)
        return torch.full((len(xt),), 1 - (step - 1) / self.num_steps, dtype=torch.float64, device=xt.device)
