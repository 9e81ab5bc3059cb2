"""Inverse distillation: a student is right when a denoiser trained on what it writes is the teacher."""

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.nn import functional as F

from halfstep.diffusion.nelbo import nelbo_weight
from halfstep.diffusion.noise import antithetic_times, mask_tokens_at
from halfstep.diffusion.projection import projected_loss
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.diffusion.subs import exclude_mask
from halfstep.model.base import MaskedModel
from halfstep.model.joint import trunk_of
from halfstep.objectives.base import PRODUCT, Objective
from halfstep.objectives.distillation import Costs, Distillation
from halfstep.objectives.masked import log_softmax, mask_noise, masked_share, num_maskable, row_chunks, uniforms
from halfstep.run.errors import UserError
from halfstep.samplers.base import ask
from halfstep.settings import base
from halfstep.settings.training import DistillSettings

FAKE = "fake"


class Settings(base.Settings):
    """`fake_learning_rate`: of the second network, the denoiser of what the student writes."""

    fake_learning_rate: PositiveFloat


def build(given: Distillation) -> Objective:
    """The objective of a round, from its parameters.

    Raises:
        UserError: the teacher is spread over processes, and no copy of it can begin as the fake.
    """
    if given.is_teacher_sharded:
        raise UserError(
            "distill.objective is idlm, which copies its teacher: dvc exp run -S launch.shard_teacher=false"
        )
    return idlm_objective(
        trunk_of(given.teacher),
        given.student,
        schedule=given.schedule,
        min_time=given.settings.min_time,
        mask_token_id=given.student.config.mask_token_id,
        fake_learning_rate=given.settings.own.fake_learning_rate,
    )


def costs(
    settings: DistillSettings, round_index: int, schedule: LogLinearSchedule, length: int, num_blocks: int
) -> Costs:
    """A second network that is trained, and what the two losses ask for without a gradient."""
    masked = masked_share(settings.min_time, schedule)
    both = masked**2
    fake = [(3.0, 3 * masked), (1.0, masked + both)]
    # Its tokens are drawn from all that x_t masks; what has a gradient is what x_s masks too.
    student = [(0.0, masked - 3 * (masked - both)), (2.0, 2 * both)]
    return Costs([*fake, *student], num_trained=2)


def idlm_objective(
    teacher: MaskedModel,
    student: MaskedModel,
    *,
    schedule: LogLinearSchedule,
    min_time: float,
    mask_token_id: int,
    fake_learning_rate: float,
) -> Objective:
    """Of each batch, first the fake's loss, then the student's; both in nats per token, masked or not.

    From x_t, data at a random time t, the student predicts p; its tokens are drawn, and masked again at a time s of
    their own. The fake f learns p from what is left, by the cross-entropy of its prediction under p (of a token that
    x_t showed: the token). The student moves p towards where the teacher f* is surer than the fake,
    sum_i <p_i, log f_i - log f*_i> at the positions that both x_t and x_s mask, with f and f* held fixed. Where the
    fake is the teacher the student has no gradient.

    Args:
        teacher: frozen, where the fake begins.
        student: that is trained, which the fake's loss asks.
        schedule, min_time: of the noise at both times.
        mask_token_id: id of the absorbing state.
        fake_learning_rate: of the fake.
    Source: IDLM-MDLM, arXiv:2602.19066.
    """
    fake = copy.deepcopy(teacher)
    assert isinstance(fake, nn.Module)
    fake.requires_grad_(True)

    def draw(shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
        t, u_mask = mask_noise(shape, min_time, generator)
        s = antithetic_times(shape[0], min_time, generator=generator, device=generator.device)
        # The times of a batch are in order, so those of two draws would go together.
        s = s[torch.randperm(shape[0], generator=generator, device=generator.device)]
        return t, u_mask, s, *uniforms((2, *shape), generator)

    def noised(
        network: MaskedModel, x0: Tensor, t: Tensor, u_mask: Tensor, s: Tensor, u_token: Tensor, u_again: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(positions that x_t masks, the student's hidden states there, x_s, positions that it masks)"""
        xt = mask_tokens_at(x0, schedule.alpha(t), mask_token_id, u_mask)
        is_masked = xt == mask_token_id
        asked = ask(network, xt, is_masked, mask_token_id, t=t)
        x = xt.masked_scatter(is_masked, asked.draws(u_token[is_masked]))
        xs = mask_tokens_at(x, schedule.alpha(s), mask_token_id, u_again)
        return is_masked, asked.hidden, xs, xs == mask_token_id

    def of_fake(network: nn.Module, x0: Tensor, *drawn: Tensor) -> tuple[Tensor, int]:
        assert isinstance(network, MaskedModel)
        s = drawn[2]
        with torch.no_grad():
            is_masked, hidden, xs, again = noised(student, x0, *drawn)
        row = (is_masked.flatten().cumsum(0).view(x0.shape) - 1)[again]
        is_soft, tokens, w = is_masked[again], x0[again], _weights(s, schedule, again)
        weight, bias = (x.detach() for x in student.projection())
        bias = exclude_mask(bias, mask_token_id)

        def term(rows: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            p = F.one_hot(tokens[rows], len(bias)).to(hidden.dtype)
            soft = is_soft[rows]
            p[soft] = F.linear(hidden[row[rows[soft]]], weight, bias).softmax(dim=-1).to(p.dtype)
            return rows, lambda logits: -(w[rows, None] * p * _finite(log_softmax(logits), mask_token_id)).sum()

        own_weight, own_bias = network.projection()
        terms = map(term, row_chunks(network, len(tokens), x0.device))
        found = network.hidden_at(xs, again, t=s)
        return projected_loss(found, own_weight, exclude_mask(own_bias, mask_token_id), terms), num_maskable(drawn[1])

    def of_student(network: nn.Module, x0: Tensor, *drawn: Tensor) -> tuple[Tensor, int]:
        assert isinstance(network, MaskedModel)
        assert isinstance(fake, MaskedModel)
        s = drawn[2]
        is_masked, hidden, xs, again = noised(network, x0, *drawn)
        both = is_masked & again
        with torch.no_grad():
            of_fake, of_teacher = (ask(one, xs, both, mask_token_id, t=s) for one in (fake, teacher))
        w = _weights(s, schedule, both)

        def terms() -> Iterator[tuple[Tensor, Callable[[Tensor], Tensor]]]:
            first = 0
            for f, f_teacher in zip(of_fake(), of_teacher(), strict=True):
                rows = torch.arange(first, first := first + len(f), device=x0.device)
                gap = _finite(log_softmax(f), mask_token_id) - _finite(log_softmax(f_teacher), mask_token_id)
                gap = w[rows, None] * gap
                yield rows, lambda logits, gap=gap: (logits.softmax(dim=-1) * gap).sum()  # type: ignore[misc]

        weight, bias = network.projection()
        found = hidden[again[is_masked]]
        return projected_loss(found, weight, exclude_mask(bias, mask_token_id), terms()), num_maskable(drawn[1])

    return Objective(
        draw,
        {FAKE: of_fake, PRODUCT: of_student},
        {FAKE: fake},
        {FAKE: {"learning_rate": fake_learning_rate}},
        masking=(1, 4),
    )


def _weights(s: Tensor, schedule: LogLinearSchedule, at: Tensor) -> Tensor:
    """The NELBO's weight at some positions, float [at.sum()]."""
    return nelbo_weight(s, schedule).float()[:, None].expand(at.shape)[at]


def _finite(log_p: Tensor, mask_token_id: int) -> Tensor:
    """Log-probabilities with 0 in place of the mask token's, whose probability is 0."""
    return log_p.index_fill(-1, torch.tensor([mask_token_id], device=log_p.device), 0.0)
