"""What samplers share: one loop, in which a policy decides; its randomness; and what comes of it.

A policy says where the network is asked and which of the tokens drawn there are written. Only these positions are
projected, and a sequence for which nothing is asked is not evaluated.

A sampler is a file of this room, `NAME.py`, with its `Settings`, whose fields are lists, and `policy(x_init, u_time, *,
mask_token_id, ...)`, which makes the policy of a batch from one value of each field.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from halfstep.data.tokens.seeds import derive_seed
from halfstep.diffusion.categorical import draw_categorical
from halfstep.diffusion.projection import rows_per_chunk
from halfstep.diffusion.subs import exclude_mask
from halfstep.model.base import MaskedModel
from halfstep.run.errors import UserError, one_line, shown
from halfstep.samplers import SAMPLERS
from halfstep.settings.plugins import plugin_module, plugin_names

LogitsAt = Callable[[Tensor, Tensor], Tensor]
"""(xt int64 [batch, length], at bool [batch, length]) -> logits at those positions, row-major [at.sum(), vocab]."""


@dataclass(frozen=True)
class Samples:
    """What a sampler returns.

    Attributes:
        tokens: int64 [batch, length].
        nfe: network evaluations made for each sequence, int64 [batch].
        unmask_step: step, from 1, in which each position was last written; 0 where it was given, int64
            [batch, length].
    """

    tokens: Tensor
    nfe: Tensor
    unmask_step: Tensor


class Policy(Protocol):
    """What tells one sampler from another."""

    def asks(self, step: int, xt: Tensor) -> Tensor | None:
        """The positions at which tokens are drawn in a step, from 1, bool [batch, length]; None when all is written."""

    def time(self, step: int, xt: Tensor) -> Tensor:
        """Diffusion time at which the network is asked, float64 [batch]."""

    def score(self, logits: Tensor) -> Tensor | None:
        """What `writes` needs to know of logits [n, vocab], the mask token at -inf: a number each, float64 [n]."""

    def writes(self, at: Tensor, scores: Tensor | None) -> Tensor:
        """Which of the positions asked for are written, bool [batch, length]; their scores in row-major order."""


@torch.inference_mode()
def fill(
    network: LogitsAt | MaskedModel,
    x_init: Tensor,
    policy: Policy,
    *,
    mask_token_id: int,
    u_token: Tensor,
    adjust: Callable[[Tensor], Tensor] | None = None,
    latent: Tensor | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Samples:
    """Fill the masks of x_init, step by step, as a policy decides.

    Args:
        network: the denoiser in evaluation mode.
        x_init: tokens to keep, and the mask token everywhere else, int64 [batch, length]. Not modified.
        policy: of this batch.
        mask_token_id: id of the absorbing state.
        u_token: decides which token a position becomes, float64 [batch, length], see `sample_uniforms`.
        adjust: changes the logits drawn from, float [n, vocab] with -inf at the mask token; see
            `halfstep.samplers.adjust`.
        latent: see `MaskedModel.hidden_at`.
        on_step: called after each step with its number, from 1, and the tokens so far, int64 [batch, length].
    Returns:
        Samples, on the device of x_init.
    Raises:
        ValueError: shapes do not agree.
    """
    if x_init.shape != u_token.shape:
        raise ValueError(f"x_init has shape {tuple(x_init.shape)}, u_token {tuple(u_token.shape)}")
    xt = x_init.clone()
    u_token = u_token.to(xt.device)
    unmask_step = torch.zeros_like(xt)
    nfe = torch.zeros(xt.shape[0], dtype=torch.int64, device=xt.device)
    for step in count(1):
        if (at := policy.asks(step, xt)) is None:
            return Samples(tokens=xt, nfe=nfe, unmask_step=unmask_step)
        rows = at.any(dim=1).nonzero()[:, 0]
        if rows.numel():
            drawn, scores, u = [], [], u_token[at]
            t, z = policy.time(step, xt)[rows], None if latent is None else latent[rows]
            for logits in logit_chunks(network, xt[rows], at[rows], mask_token_id, t=t, latent=z):
                adjusted = logits if adjust is None else adjust(logits)
                drawn.append(draw_categorical(adjusted, u[: len(logits)]))
                scores.append(policy.score(adjusted))
                u = u[len(logits) :]
            known = [score for score in scores if score is not None]
            writes = policy.writes(at, torch.cat(known) if known else None)
            xt[writes] = torch.cat(drawn)[writes[at]]
            unmask_step[writes] = step
            nfe[rows] += 1
        if on_step is not None:
            on_step(step, xt)
    raise AssertionError("a policy ends")


@dataclass(frozen=True)
class Sampler:
    """A sampler under one setting.

    Attributes:
        name: of its file.
        values: one of each of its settings.
    """

    name: str
    values: Mapping[str, Any]

    @property
    def setting(self) -> str:
        """Its values as text, such as `num_steps=8`."""
        return ",".join(f"{key}={value}" for key, value in self.values.items())

    @property
    def num_steps(self) -> int | None:
        """Denoising steps asked for; None where it takes as many as it takes."""
        return self.values.get("num_steps")

    def sample(
        self,
        network: LogitsAt | MaskedModel,
        x_init: Tensor,
        *,
        mask_token_id: int,
        u_time: Tensor,
        u_token: Tensor,
        **options: Any,
    ) -> Samples:
        """Fill the masks of x_init: see `fill` for arguments and options, and `sample_uniforms`."""
        make_policy = plugin_module(SAMPLERS, self.name).policy
        policy = make_policy(x_init, u_time, mask_token_id=mask_token_id, **self.values)
        return fill(network, x_init, policy, mask_token_id=mask_token_id, u_token=u_token, **options)


def samplers_of(entries: Iterable[Mapping[str, Any]], where: str) -> list[Sampler]:
    """Some samplers under every combination of their settings, in ascending order.

    Args:
        entries: {"name": of the sampler, setting: list of values, ...} each.
        where: the parameter or option that holds them, for messages.
    Raises:
        UserError: there is no such sampler, or a value does not fit.
    """
    known = plugin_names(SAMPLERS)
    samplers: list[Sampler] = []
    for entry in entries:
        name = entry.get("name")
        if name not in known:
            raise UserError(f"{where}: there is no sampler {shown(name)}; there are {', '.join(known)}")
        try:
            settings = plugin_module(SAMPLERS, name).Settings.model_validate(entry)
        except ValidationError as error:
            # A name that is not known is why another is missing.
            first = min(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")
            key = one_line(".".join(map(str, first["loc"])), 80)
            problems = {"extra_forbidden": f"{name} has no setting {key}", "missing": f"{name} needs {key}"}
            other = f"{key} of {name} is {shown(first['input'])}: {one_line(first['msg'])}"
            raise UserError(f"{where}: {problems.get(first['type'], other)}") from None
        samplers += [Sampler(settings.name, way) for way in settings.ways()]
    return samplers


def sample_uniforms(seed: int, sample_indices: Sequence[int], length: int) -> tuple[Tensor, Tensor]:
    """All the randomness of some samples: a function of the seed and each sample's index alone.

    Sampling a given index therefore gives the same text whatever else is in the batch.

    Args:
        seed: seed shared by all samples, 0 or more.
        sample_indices: which samples, each 0 or more.
        length: tokens per sample.
    Returns:
        (u_time, u_token), each float64 [len(sample_indices), length], uniform in [0, 1), on the CPU.
    """
    rows = torch.empty(len(sample_indices), 2, length, dtype=torch.float64)
    for row, index in zip(rows, sample_indices, strict=True):
        generator = torch.Generator().manual_seed(derive_seed(seed, "sample", index))
        row.copy_(torch.rand(2, length, dtype=torch.float64, generator=generator))
    return rows[:, 0], rows[:, 1]


def logit_chunks(
    network: LogitsAt | MaskedModel,
    xt: Tensor,
    at: Tensor,
    mask_token_id: int,
    *,
    t: Tensor | None = None,
    latent: Tensor | None = None,
) -> Iterator[Tensor]:
    """Logits at some positions, the mask token excluded, as many positions at once as memory should hold.

    Args:
        network: in two parts, or a function that gives all logits at once, which then are the only piece.
        xt: tokens at time t, int64 [batch, length].
        at: positions wanted, bool [batch, length].
        mask_token_id: id of the absorbing state.
        t, latent: for a network in two parts, see `MaskedModel.hidden_at`.
    Yields:
        float32 or wider [n, vocab], -inf at the mask token; together row-major [at.sum(), vocab].
    """
    if isinstance(network, MaskedModel):
        weight, bias = network.projection()
        bias = exclude_mask(bias, mask_token_id)
        hidden = network.hidden_at(xt, at, t=t, latent=latent)
        for rows in hidden.split(rows_per_chunk(len(bias), hidden.device)):
            logits = F.linear(rows, weight, bias)
            yield logits.to(torch.promote_types(logits.dtype, torch.float32))
    else:
        logits = network(xt, at)
        yield exclude_mask(logits.to(torch.promote_types(logits.dtype, torch.float32)), mask_token_id)
