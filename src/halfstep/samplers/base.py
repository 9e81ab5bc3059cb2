"""What samplers share: one loop, in which a policy decides; its randomness; and what comes of it.

A policy says where the network is asked and which of these positions are written. Only positions that it asks for are
projected, tokens are drawn only where they are written, and a sequence for which nothing is asked is not evaluated.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count

import torch
from torch import Tensor
from torch.nn import functional as F

from halfstep.data.tokens.seeds import derive_seed
from halfstep.diffusion.categorical import draw_categorical
from halfstep.diffusion.projection import rows_per_chunk
from halfstep.diffusion.subs import exclude_mask
from halfstep.model.base import MaskedModel

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
        head_passes: passes of a joint head made for each sequence, one after the other, int64 [batch].
    """

    tokens: Tensor
    nfe: Tensor
    unmask_step: Tensor
    head_passes: Tensor


@dataclass(frozen=True)
class Uniforms:
    """All the randomness of some samples, uniform in [0, 1): a function of the seed and each sample's index alone.

    Sampling a given index therefore gives the same text whatever else is in the batch.

    Attributes:
        seed: seed shared by all samples, 0 or more.
        sample_indices: which samples, each 0 or more.
        length: tokens per sample.
    """

    seed: int
    sample_indices: Sequence[int]
    length: int

    @cached_property
    def first(self) -> tuple[Tensor, Tensor]:
        """(u_time, u_token): when a position is written, and as what; float64 [num_samples, length], on the CPU."""
        u_time, u_token = self._draw(2)
        return u_time, u_token

    def at(self, *key: int | str) -> tuple[Tensor, Tensor]:
        """Two more such arrays, for one moment of a sampler that has more to decide, such as a step."""
        one, other = self._draw(2, *key)
        return one, other

    def one(self, *key: int | str) -> Tensor:
        """A number for each sample, float64 [num_samples]."""
        return self._draw(1, *key)[0, :, 0]

    def _draw(self, count: int, *key: int | str) -> Tensor:
        drawn = torch.empty(count, len(self.sample_indices), self.length, dtype=torch.float64)
        for row, index in enumerate(self.sample_indices):
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "sample", index, *key))
            drawn[:, row] = torch.rand(count, self.length, dtype=torch.float64, generator=generator)
        return drawn


StepUniforms = Callable[..., tuple[Tensor, Tensor]]
"""`Uniforms.at`, or what is left of it when a part of the key is known."""


class Policy:
    """What distinguishes one sampler from another; as it is here, everything is written in one step.

    Positions that are to be written hold the mask token in `xt`; where only a block is to be written, whatever else is
    masked is hidden from the policy. Positions asked for are listed in row-major order.

    Attributes:
        mask_token_id: id of the absorbing state.
        chooses: whether `writes` goes by scores, so that not all that is asked for is written.
        priority: in which order what a step writes would be written one by one, the highest first, float
            [batch, length]; known when the step writes. None is from left to right.
    """

    chooses = False

    def __init__(self, mask_token_id: int) -> None:
        self.mask_token_id = mask_token_id
        self.priority: Tensor | None = None

    def asks(self, step: int, xt: Tensor) -> Tensor | None:
        """The positions looked at in a step, from 1, bool [batch, length]; None when all is written."""
        is_masked = xt == self.mask_token_id
        return is_masked if is_masked.any() else None

    def time(self, step: int, xt: Tensor) -> Tensor:
        """Diffusion time at which the network is asked, float64 [batch]: the share that is masked."""
        return (xt == self.mask_token_id).double().mean(dim=1)

    def scores(self, logits: Tensor, positions: Tensor) -> Tensor:
        """What a policy that chooses needs to know of some of the positions asked for, float [n, ...].

        Args:
            logits: of the distribution that tokens are drawn from, -inf at the mask token, float [n, vocab].
            positions: row * length + column, int64 [n].
        """
        raise NotImplementedError

    def writes(self, step: int, at: Tensor, scores: Tensor) -> Tensor:
        """Of the positions asked for, `at`, those that a policy that chooses writes, bool [batch, length]."""
        raise NotImplementedError

    def wrote(self, logits: Tensor, positions: Tensor, drawn: Tensor) -> None:
        """Takes note of tokens that were drawn, int64 [n]; the other arguments as for `scores`."""

    def forgets(self, step: int, xt: Tensor) -> tuple[Tensor, Tensor] | None:
        """Tokens of xt that are masked again when a step ends, bool [batch, length], and new numbers for u_token."""
        return None


class InBlocks(Policy):
    """A policy in blocks from left to right: a block is written when those before it are.

    Changes the distribution whatever the policy: a position is written before those of later blocks are.

    Args:
        make: (x_init, u_time, uniforms of a step) -> the policy of one block.
        x_init, uniforms, mask_token_id: of the batch.
        block_length: positions of a block. The first begins at the first mask of a row.
    Source: Nie et al. 2025, arXiv:2502.09992, Section 2.4 (semi-autoregressive remasking).
    """

    def __init__(
        self,
        make: Callable[[Tensor, Tensor, StepUniforms], Policy],
        x_init: Tensor,
        uniforms: Uniforms,
        *,
        block_length: int,
        mask_token_id: int,
    ) -> None:
        super().__init__(mask_token_id)
        is_masked = x_init == mask_token_id
        first = is_masked.int().argmax(dim=1, keepdim=True)
        column = torch.arange(x_init.shape[1], device=x_init.device)
        self._block = ((column - first) // block_length).masked_fill(~is_masked, -1)
        self._make, self._uniforms, self._x_init = make, uniforms, x_init
        self._num_before = 0
        self._begin(0)

    def _begin(self, number: int) -> None:
        self._number = number
        u_time, _ = self._uniforms.first
        self._policy = self._make(self._seen(self._x_init), u_time, partial(self._uniforms.at, number))
        self.chooses, self.priority = self._policy.chooses, self._policy.priority

    def _seen(self, xt: Tensor) -> Tensor:
        return torch.where(self._block == self._number, xt, -1)

    def asks(self, step: int, xt: Tensor) -> Tensor | None:
        """See `Policy`."""
        while (at := self._policy.asks(step - self._num_before, self._seen(xt))) is None:
            if self._number >= int(self._block.max()):
                return None
            self._num_before = step - 1
            self._begin(self._number + 1)
        return at

    def scores(self, logits: Tensor, positions: Tensor) -> Tensor:
        """See `Policy`."""
        return self._policy.scores(logits, positions)

    def writes(self, step: int, at: Tensor, scores: Tensor) -> Tensor:
        """See `Policy`."""
        writes = self._policy.writes(step - self._num_before, at, scores)
        self.priority = self._policy.priority
        return writes

    def wrote(self, logits: Tensor, positions: Tensor, drawn: Tensor) -> None:
        """See `Policy`."""
        self._policy.wrote(logits, positions, drawn)

    def forgets(self, step: int, xt: Tensor) -> tuple[Tensor, Tensor] | None:
        """See `Policy`."""
        return self._policy.forgets(step - self._num_before, self._seen(xt))


@torch.inference_mode()
def fill(
    network: LogitsAt | MaskedModel,
    x_init: Tensor,
    policy: Policy,
    *,
    mask_token_id: int,
    u_token: Tensor,
    adjust: Callable[[Tensor], Tensor] | None = None,
    likeliest: bool = False,
    latent: Callable[[int], Tensor] | None = None,
    together: "Together | None" = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Samples:
    """Fill the masks of x_init, step by step, as a policy decides.

    Args:
        network: the denoiser in evaluation mode.
        x_init: tokens to keep, and the mask token everywhere else, int64 [batch, length]. Not modified.
        policy: of this batch.
        mask_token_id: id of the absorbing state.
        u_token: decides which token a position becomes, float64 [batch, length], see `Uniforms`.
        adjust: changes the logits drawn from, float [n, vocab] with -inf at the mask token; see
            `halfstep.samplers.adjust`.
        likeliest: write the likeliest token in place of a drawn one, as at temperature 0; the policy still sees the
            whole distribution.
        latent: the latent of each sequence in a step, from 1, see `MaskedModel.hidden_at`.
        together: draws the tokens of an evaluation together; None draws each for itself.
        on_step: called after each step with its number, from 1, and the tokens so far, int64 [batch, length].
    Returns:
        Samples, on the device of x_init.
    Raises:
        ValueError: shapes do not agree.
    """
    if x_init.shape != u_token.shape:
        raise ValueError(f"x_init has shape {tuple(x_init.shape)}, u_token {tuple(u_token.shape)}")
    xt = x_init.clone(memory_format=torch.contiguous_format)
    u_token = u_token.to(xt.device)
    unmask_step = torch.zeros_like(xt)
    nfe = torch.zeros(xt.shape[0], dtype=torch.int64, device=xt.device)
    head_passes = torch.zeros_like(nfe)
    for step in count(1):
        if (at := policy.asks(step, xt)) is None:
            return Samples(tokens=xt, nfe=nfe, unmask_step=unmask_step, head_passes=head_passes)
        forgotten = policy.forgets(step, xt)
        rows = at.any(dim=1).nonzero()[:, 0]
        if rows.numel():
            t, z = policy.time(step, xt)[rows], None if latent is None else latent(step).to(xt.device)[rows]
            asked = ask(network, xt[rows], at[rows], mask_token_id, t=t, latent=z, adjust=adjust)
            writes, chosen = at, None
            if policy.chooses:
                scores = torch.cat([policy.scores(*piece) for piece in located(asked(), at)])
                writes = policy.writes(step, at, scores)
                chosen = writes[at]
            if together is not None:
                writes, drawn, passes = together(asked, chosen, writes, policy, u_token, likeliest)
                xt[writes] = drawn
                head_passes += passes
            else:
                for logits, positions in located(asked(chosen), writes):
                    u = u_token.flatten()[positions]
                    drawn = logits.argmax(dim=-1) if likeliest else draw_categorical(logits, u)
                    policy.wrote(logits, positions, drawn)
                    xt.view(-1)[positions] = drawn
            unmask_step[writes] = step
            nfe[rows] += 1
        if forgotten is not None:
            positions, u = forgotten
            xt[positions] = mask_token_id
            u_token = torch.where(positions, u, u_token)
        if on_step is not None:
            on_step(step, xt)
    raise AssertionError("a policy ends")


@dataclass(frozen=True)
class Asked:
    """One evaluation: what was computed for the positions asked for, row-major, and how logits are made of it.

    Attributes:
        hidden: of each position, float [n, hidden_size]; of a network in one part, its logits.
        project: hidden states -> their logits in pieces, float32 or wider [..., vocab], -inf at the mask token.
    """

    hidden: Tensor
    project: Callable[[Tensor], Iterator[Tensor]]

    def __call__(self, chosen: Tensor | None = None) -> Iterator[Tensor]:
        """The logits in pieces, of all or of those that are chosen, bool [n]; each call makes them again."""
        return self.project(self.hidden if chosen is None else self.hidden[chosen])

    @torch.no_grad()
    def draws(self, u: Tensor) -> Tensor:
        """Tokens drawn independently, as often as there are numbers: int64 [..., n] of u float64 [..., n]."""
        drawn = []
        for logits in self():
            now, u = u[..., : len(logits)], u[..., len(logits) :]
            each = [draw_categorical(logits, one) for one in now.reshape(u.shape[:-1].numel(), len(logits))]
            drawn.append(torch.stack(each).view(now.shape))
        return torch.cat(drawn, dim=-1)


Together = Callable[[Asked, Tensor | None, Tensor, Policy, Tensor, bool], tuple[Tensor, Tensor, Tensor]]
"""(an evaluation, which of its positions are to be written, or all; these positions bool [batch, length]; the policy,
u_token and likeliest of `fill`) -> (those that are written, bool [batch, length]; their tokens int64 [m], row-major;
passes made for each sequence int64 [batch])."""


def ask(
    network: LogitsAt | MaskedModel,
    xt: Tensor,
    at: Tensor,
    mask_token_id: int,
    *,
    t: Tensor | None = None,
    latent: Tensor | None = None,
    adjust: Callable[[Tensor], Tensor] | None = None,
) -> Asked:
    """One evaluation: logits at some positions, the mask token excluded, as many at once as memory should hold.

    Args:
        network: in two parts, or a function that gives all logits at once, which then are the only piece.
        xt: tokens at time t, int64 [batch, length].
        at: positions wanted, bool [batch, length].
        mask_token_id: id of the absorbing state.
        t, latent: for a network in two parts, see `MaskedModel.hidden_at`.
        adjust: see `fill`.
    """
    adjusted = adjust or (lambda logits: logits)
    if isinstance(network, MaskedModel):
        weight, bias = network.projection()
        bias = exclude_mask(bias, mask_token_id)
        hidden = network.hidden_at(xt, at, t=t, latent=latent)

        def project(rows: Tensor) -> Iterator[Tensor]:
            for some in rows.split(rows_per_chunk(len(bias), hidden.device)):
                logits = F.linear(some, weight, bias)
                yield adjusted(logits.to(torch.promote_types(logits.dtype, torch.float32)))

        return Asked(hidden, project)
    logits = network(xt, at)
    logits = adjusted(exclude_mask(logits.to(torch.promote_types(logits.dtype, torch.float32)), mask_token_id))
    return Asked(logits, lambda rows: iter([rows]))


def located(pieces: Iterator[Tensor], at: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of logits with their positions, row * length + column, int64 [n]."""
    positions = at.flatten().nonzero()[:, 0]
    for logits in pieces:
        yield logits, positions[: len(logits)]
        positions = positions[len(logits) :]
