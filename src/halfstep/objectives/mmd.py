"""A kernel score as reward: completions near the data in a frozen network's features, and far from each other."""

from collections.abc import Callable, Sequence
from typing import Annotated, Protocol, runtime_checkable

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn
from torch.nn import functional as F

from halfstep.diffusion.noise import mask_tokens_at
from halfstep.diffusion.projection import projected_loss
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.diffusion.subs import exclude_mask
from halfstep.model.base import MaskedModel
from halfstep.model.joint import trunk_of
from halfstep.objectives.base import PRODUCT, Objective
from halfstep.objectives.distillation import Costs, Distillation
from halfstep.objectives.masked import log_softmax, mask_noise, masked_share, row_chunks, uniforms
from halfstep.run.errors import UserError
from halfstep.samplers.base import ask
from halfstep.settings import base
from halfstep.settings.base import MAX_INT, PositiveInt
from halfstep.settings.training import DistillSettings

PAIR = 2
"""Completions whose distance from each other counts in one reward."""


class Settings(base.Settings):
    """`num_pairs`: pairs of completions of each sequence, which are compared; `num_feature_blocks`: after so many
    blocks of the teacher a state is a feature (null: half of them); `bandwidth`: of the kernel, see `kernel`."""

    num_pairs: Annotated[int, Field(ge=2, le=MAX_INT)]
    num_feature_blocks: PositiveInt | None
    bandwidth: PositiveFloat


@runtime_checkable
class HasFeatures(Protocol):
    """A network whose states within are asked for."""

    def features(self, x: Tensor, num_blocks: int) -> Tensor:
        """The state of each position after some blocks, float [batch, length, hidden_size]."""


def build(given: Distillation) -> Objective:
    """The objective of a round, from its parameters.

    Raises:
        UserError: the teacher has no features, or not after so many blocks.
    """
    own, teacher = given.settings.own, trunk_of(given.teacher)
    if not isinstance(teacher, HasFeatures):
        raise UserError("distill.objective is mmd, but this teacher does not show its features: -S objective=sdtt")
    most = teacher.config.num_blocks
    num_blocks = own.num_feature_blocks or max(1, most // 2)
    if num_blocks > most:
        raise UserError(
            f"distill.mmd.num_feature_blocks is {num_blocks}, but the teacher has {most} blocks: dvc exp run -S"
            f" distill.mmd.num_feature_blocks={most}"
        )
    return mmd_objective(
        lambda x: teacher.features(x, num_blocks),
        num_pairs=own.num_pairs,
        bandwidth=own.bandwidth,
        schedule=given.schedule,
        min_time=given.settings.min_time,
        mask_token_id=given.student.config.mask_token_id,
    )


def costs(
    settings: DistillSettings, round_index: int, schedule: LogLinearSchedule, length: int, num_blocks: int
) -> Costs:
    """The features of the data and of all completions, which are drawn from logits of their own."""
    own = settings.own
    depth = (own.num_feature_blocks or max(1, num_blocks // 2)) / num_blocks
    return Costs([((1 + PAIR * own.num_pairs) * depth, 0.0), (0.0, masked_share(settings.min_time, schedule))])


def kernel(a: Tensor, b: Tensor, bandwidth: float) -> Tensor:
    """exp(-|a - b|^2 / (2 h bandwidth)) of features normalised to length sqrt(h), float [..., n, m].

    The squared distance of unrelated features is then about 2h, so that one bandwidth serves networks of every width.
    """
    a, b = (F.layer_norm(x.float(), x.shape[-1:]) for x in (a, b))
    width = a.shape[-1]
    return torch.exp((a @ b.transpose(-1, -2) / width - 1) / bandwidth)


def rewards(data: Tensor, drawn: Tensor, is_masked: Tensor, bandwidth: float) -> Tensor:
    """The kernel score of each pair of completions, unbiased, float [num_pairs, batch].

    kappa(x, y) is the mean of the kernel over the masked positions of x and those of y; of two completions without the
    pairs of a position with itself. r = sum_b kappa(data, x_b) - kappa(x_1, x_2).

    Args:
        data: features of the text, float [batch, length, h].
        drawn: of the completions, float [num_pairs, 2, batch, length, h].
        is_masked: positions that were drawn, bool [batch, length]; two or more in each row that counts.
        bandwidth: see `kernel`.
    """
    pairs = (is_masked[:, :, None] & is_masked[:, None, :]).float()
    apart = pairs * (1 - torch.eye(pairs.shape[1], device=pairs.device))

    def kappa(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
        return (kernel(a, b, bandwidth) * weight).sum(dim=(-1, -2)) / weight.sum(dim=(-1, -2)).clamp(min=1)

    near = torch.stack([torch.stack([kappa(data, one, pairs) for one in pair]).sum(dim=0) for pair in drawn])
    return near - torch.stack([kappa(one, other, apart) for one, other in drawn])


def mmd_objective(
    features: Callable[[Tensor], Tensor],
    *,
    num_pairs: int,
    bandwidth: float,
    schedule: LogLinearSchedule,
    min_time: float,
    mask_token_id: int,
) -> Objective:
    """REINFORCE of the kernel score, its baseline the mean reward of the other pairs; the mean over sequences.

    The student completes x_t in independent draws, 2 num_pairs times. Its gradient is, without bias, that of the
    distance in feature space (MMD) between the data and what the student makes of x_t, per masked token. The value of
    the loss says nothing: it is an advantage times a log-probability. A sequence with fewer than two masks is skipped.

    Args:
        features: of whole sequences int64 [batch, length], float [batch, length, h], from a network that is frozen.
        num_pairs, bandwidth: see `Settings`.
        schedule, min_time: of the noise.
        mask_token_id: id of the absorbing state.
    Source: MDLM-MMD, arXiv:2610.06648.
    Departs: features are normalised; the bandwidth is then one of angles.
    """

    def draw(shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
        t, u_mask = mask_noise(shape, min_time, generator)
        return t, u_mask, uniforms((shape[0], PAIR * num_pairs, shape[1]), generator)

    def loss(network: nn.Module, x0: Tensor, t: Tensor, u_mask: Tensor, u_token: Tensor) -> tuple[Tensor, int]:
        assert isinstance(network, MaskedModel)
        xt = mask_tokens_at(x0, schedule.alpha(t), mask_token_id, u_mask)
        is_masked = xt == mask_token_id
        num_masked = is_masked.sum(dim=1)
        counts = num_masked >= PAIR
        asked = ask(network, xt, is_masked, mask_token_id, t=t)
        with torch.no_grad():
            tokens = asked.draws(u_token.transpose(0, 1)[:, is_masked])
            whole = xt.expand(len(tokens), -1, -1).masked_scatter(is_masked, tokens)
            found = features(torch.cat([x0[None], whole]).flatten(0, 1)).unflatten(0, (-1, len(x0)))
            scores = rewards(found[0], found[1:].unflatten(0, (num_pairs, PAIR)), is_masked, bandwidth)
            advantage = (scores - scores.mean(dim=0)) * num_pairs / (num_pairs - 1)
            per_row = advantage * counts / (num_masked.clamp(min=1) * num_pairs * PAIR)
            weights = per_row.repeat_interleave(PAIR, dim=0)[:, :, None].expand(whole.shape)[:, is_masked]

        def term(rows: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            return rows, lambda logits: -(log_softmax(logits).gather(1, tokens[:, rows].T) * weights[:, rows].T).sum()

        weight, bias = network.projection()
        terms = map(term, row_chunks(network, tokens.shape[1], x0.device))
        return projected_loss(asked.hidden, weight, exclude_mask(bias, mask_token_id), terms), int(counts.sum())

    return Objective(draw, {PRODUCT: loss})
