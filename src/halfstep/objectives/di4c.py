"""Dimensional correlations: over a latent that its positions share, a student's tokens depend on each other."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from halfstep.diffusion.divergences import kl_teacher_student
from halfstep.diffusion.noise import mask_tokens_at
from halfstep.diffusion.projection import projected_loss, rows_per_chunk
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.diffusion.subs import exclude_mask
from halfstep.model.base import MaskedModel
from halfstep.model.denoiser import Denoiser
from halfstep.model.joint import trunk_of
from halfstep.objectives.base import PRODUCT, Objective
from halfstep.objectives.distillation import Costs, Distillation, own_trunk
from halfstep.objectives.masked import log_softmax, mask_noise, masked_share, uniforms
from halfstep.objectives.teacher import teacher_step_size
from halfstep.samplers.base import Asked, ask
from halfstep.settings import base
from halfstep.settings.base import MAX_INT
from halfstep.settings.training import DistillSettings


class Settings(base.Settings):
    """`num_latents`: M, of each sequence; `correlation_weight`: of the correlations in the data, beside those that the
    teacher's steps have."""

    adds_input: ClassVar[bool] = True

    num_latents: Annotated[int, Field(ge=2, le=MAX_INT)]
    correlation_weight: Annotated[float, Field(ge=0)]


def student(teacher: MaskedModel, settings: Settings) -> Denoiser:
    """A copy of the teacher that takes a latent, if the teacher takes none.

    Raises:
        UserError: see `own_trunk`.
    """
    return own_trunk(teacher, "di4c").with_latent()


def build(given: Distillation) -> Objective:
    """The objective of a round, from its parameters."""
    settings = given.settings
    return di4c_objective(
        trunk_of(given.teacher),
        dt=teacher_step_size(given.round_index, settings.base_num_steps, settings.num_teacher_steps),
        num_latents=settings.own.num_latents,
        correlation_weight=settings.own.correlation_weight,
        schedule=given.schedule,
        min_time=settings.min_time,
        mask_token_id=given.student.config.mask_token_id,
    )


def costs(
    settings: DistillSettings, round_index: int, schedule: LogLinearSchedule, length: int, num_blocks: int
) -> Costs:
    """The teacher's step, and the student with every latent before it and after."""
    m = settings.own.num_latents
    dt = teacher_step_size(round_index, settings.base_num_steps, settings.num_teacher_steps)
    masked = masked_share(settings.min_time, schedule)
    t = settings.min_time + (1 - settings.min_time) * (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    left = (1 - schedule.alpha(torch.maximum(t - dt, t / 2))).mean().item()
    # What was written is drawn from the teacher's logits, the rest of a completion from the student's.
    teacher = (1.0, 2 * masked - left)
    after, now = (float(m), 2 * m * left), (3.0 * (m - 1), (4 * m - 3) * masked)
    return Costs([teacher, after, now], num_at_once=m)


def of_mixture(log_p: Tensor) -> Tensor:
    """Log-probabilities of an equal mixture, float [...] of its components' [num_latents, ...]."""
    return log_p.logsumexp(dim=0) - math.log(len(log_p))


def correlation(log_p: Tensor) -> Tensor:
    """How much less likely a mixture of products makes a sequence than the product of its marginals does, in nats.

    cor = -log mean_l prod_d p_l(y_d) + sum_d log mean_l p_l(y_d). Its mean over sequences of some distribution is least
    for the mixture whose dependences are that distribution's; of a single product it is zero.

    Args:
        log_p: log p_l(y_d) of each component and position, float [num_latents, num_positions, ...].
    Returns:
        float [...].
    Source: Hayakawa et al. 2024, arXiv:2410.08709, Section 3.3.
    """
    return of_mixture(log_p).sum(dim=0) - of_mixture(log_p.sum(dim=1))


def di4c_objective(
    teacher: MaskedModel,
    *,
    dt: float,
    num_latents: int,
    correlation_weight: float,
    schedule: LogLinearSchedule,
    min_time: float,
    mask_token_id: int,
) -> Objective:
    """What a mixture over latents differs by from its teacher, in nats per masked token.

    From x_t, data at a random time t, the teacher takes one step to x_s, and the student writes a completion y of x_s
    with each of M latents. With the marginals mean_l p_l of the student, at every masked position:

        KL(teacher(x_t) || marginal(x_t)) + c(t) cor(x_0) + KL(marginal(x_s) || marginal(x_t)) + mean_y cor(y)

    where nothing but p_l(x_t) has a gradient, a position that the teacher's step wrote has its token for a marginal,
    and c(t) = correlation_weight * sigmoid(20 (t - 1/2)). In the last two steps, t <= 2 dt, it is mean_l
    KL(teacher(x_t) || p_l(x_t)) alone.

    Args:
        teacher: frozen; one that takes a latent is asked with one of its own for each sequence.
        dt: the teacher's step goes to max(t - dt, t / 2).
        num_latents: M.
        correlation_weight: see c(t).
        schedule, min_time: of the noise.
        mask_token_id: id of the absorbing state.
    Source: Hayakawa et al. 2024, arXiv:2410.08709, Sections 3.2 to 3.4 and Appendix (masked diffusion).
    Departs: there one time serves a batch, and a fixed share of the batches has t < 0.02.
    """

    def draw(shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
        t, u_mask = mask_noise(shape, min_time, generator)
        latents = uniforms((shape[0], 2 * num_latents + 1, 1), generator)
        u_step, u_token = uniforms((2, *shape), generator)
        return t, u_mask, u_step, u_token, latents, uniforms((shape[0], num_latents, shape[1]), generator)

    def asked_with(network: MaskedModel, xt: Tensor, at: Tensor, t: Tensor, latents: Tensor) -> Asked:
        """An evaluation with each latent [batch, m, 1] in turn: hidden states of the first, of the second, ..."""
        m = latents.shape[1]
        z = latents.transpose(0, 1).flatten(0, 1).float()
        return ask(network, xt.repeat(m, 1), at.repeat(m, 1), mask_token_id, t=t.repeat(m), latent=z)

    def loss(
        model: nn.Module,
        x0: Tensor,
        t: Tensor,
        u_mask: Tensor,
        u_step: Tensor,
        u_token: Tensor,
        latents: Tensor,
        u_again: Tensor,
    ) -> tuple[Tensor, int]:
        assert isinstance(model, MaskedModel)
        m = num_latents
        xt = mask_tokens_at(x0, schedule.alpha(t), mask_token_id, u_mask)
        at = xt == mask_token_id
        rows, num_masked = at.nonzero()[:, 0], int(at.sum())
        with torch.no_grad():
            z = latents[:, 2 * m].float() if getattr(teacher.config, "takes_latent", False) else None
            by_teacher = ask(teacher, xt, at, mask_token_id, t=t, latent=z)
            s = torch.maximum(t - dt, t / 2)
            written = u_step[at] >= ((1 - schedule.alpha(s)) / (1 - schedule.alpha(t)))[rows]
            tokens = Asked(by_teacher.hidden[written], by_teacher.project).draws(u_token[at][written])
            step = x0.new_full((num_masked,), mask_token_id).masked_scatter(written, tokens)
            xs = xt.masked_scatter(at, step)
            left = xs == mask_token_id
            after = asked_with(model, xs, left, s, latents[:, :m])
            # Completions, of which all have what the step wrote: [m, num_masked].
            y = step.repeat(m, 1)
            y[:, ~written] = after.draws(u_again.transpose(0, 1)[left.expand(m, *left.shape)]).view(m, -1)
            targets = torch.cat([x0[at][None], y])
        now = asked_with(model, xt, at, t, latents[:, m : 2 * m])
        weight, bias = model.projection()
        bias = exclude_mask(bias, mask_token_id)
        of_latent = torch.arange(m, device=x0.device)[:, None]
        size = max(1, rows_per_chunk(len(bias), x0.device) // m)
        pieces = torch.arange(num_masked, device=x0.device).split(size)

        def components(hidden: Tensor, piece: Tensor) -> Tensor:
            logits = F.linear(hidden.view(m, -1, hidden.shape[-1])[:, piece].detach(), weight.detach(), bias.detach())
            return _finite(log_softmax(logits))

        with torch.no_grad():
            # log p_l of whole targets, [m, 1 + m, batch], and which latents have made each.
            whole = torch.zeros(m, 1 + m, len(x0), device=x0.device)
            for piece in pieces:
                log_p = components(now.hidden, piece).gather(2, targets[:, piece].T.expand(m, -1, -1))
                whole.index_add_(2, rows[piece], log_p.transpose(1, 2))
            made_by = whole.softmax(dim=0)
            share = torch.full_like(whole[0], 1 / m)
            share[0] = correlation_weight * torch.sigmoid(20 * (t - 0.5))
            share.masked_fill_(t <= 2 * dt, 0.0)
            # Of -log mean_l prod p_l the terms have the gradient, and this is what they lack in value.
            entropy = -torch.special.xlogy(made_by, made_by).sum(dim=0)
            lacking = (share * (math.log(m) - entropy)).sum()
            order = torch.full((num_masked,), -1, device=x0.device)
            order[~written] = torch.arange(int((~written).sum()), device=x0.device)

        def terms() -> Iterator[tuple[Tensor, Callable[[Tensor], Tensor]]]:
            for piece in pieces:
                row = rows[piece]
                of_teacher = _log_p(by_teacher, piece)
                of_step = torch.full_like(of_teacher, -torch.inf)
                of_step.scatter_(1, y[0, piece, None], 0.0)
                if (unwritten := ~written[piece]).any():
                    of_step[unwritten] = of_mixture(components(after.hidden, order[piece[unwritten]]))
                yield (
                    (of_latent * num_masked + piece).flatten(),
                    _loss_of(
                        of_teacher, of_step, targets[:, piece], made_by[:, :, row], share[:, row], t[row] <= 2 * dt
                    ),
                )

        return projected_loss(now.hidden, weight, bias, terms()) + lacking, num_masked

    return Objective(draw, {PRODUCT: loss})


def _loss_of(
    of_teacher: Tensor, of_step: Tensor, targets: Tensor, made_by: Tensor, share: Tensor, is_late: Tensor
) -> Callable[[Tensor], Tensor]:
    """The loss of some positions, of their logits [m * n, vocab].

    Args:
        of_teacher, of_step: log-probabilities that the marginals should have, [n, vocab].
        targets: tokens whose correlations count, [k, n], with `share` [k, n] as weights.
        made_by: share of each latent in each target, [m, k, n].
        is_late: positions at which every component should be as the teacher, bool [n].
    """

    def loss_of(logits: Tensor) -> Tensor:
        log_p = _finite(log_softmax(logits.view(len(made_by), len(is_late), logits.shape[1])))
        marginal = of_mixture(log_p)
        kl = torch.where(
            is_late,
            kl_teacher_student(log_p, of_teacher.expand_as(log_p)).mean(dim=0),
            kl_teacher_student(marginal, of_teacher) + kl_teacher_student(marginal, of_step),
        )
        found = log_p.gather(2, targets.T.expand(len(log_p), -1, -1)).transpose(1, 2)
        cor = marginal.gather(1, targets.T).T - (made_by * found).sum(dim=0)
        return kl.sum() + (share * cor).sum()

    return loss_of


def _finite(log_p: Tensor) -> Tensor:
    # A sum over components that all exclude a token has no gradient otherwise.
    return log_p.clamp(min=-1e30)


def _log_p(asked: Asked, rows: Tensor) -> Tensor:
    return log_softmax(torch.cat([*asked.project(asked.hidden[rows])]))
