"""From masks to text: ancestral sampling in any number of steps, and its autoregressive rival.

Which positions unmask in a step does not depend on the network (SUBS with an absorbing state). So every position
draws the step in which it unmasks beforehand, and the network is asked only for positions that unmask now, and not
at all for sequences in which nothing does. The distribution is that of the plain sampler, the work is less.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from halfstep.diffusion.categorical import draw_categorical
from halfstep.diffusion.projection import rows_per_chunk
from halfstep.diffusion.subs import exclude_mask, masked_log_probs
from halfstep.seeds import derive_seed

LogitsAt = Callable[[Tensor, Tensor], Tensor]
"""(xt int64 [batch, length], at bool [batch, length]) -> logits at those positions, row-major [at.sum(), vocab]."""

State = TypeVar("State")


@runtime_checkable
class Predictor(Protocol):
    """A denoiser in two parts, body and projection, so that logits can be made for a few positions at a time."""

    @property
    def head(self) -> nn.Linear:
        """The projection, hidden_size to vocab."""

    def hidden_at(self, xt: Tensor, at: Tensor) -> Tensor:
        """(xt int64 [batch, length], at bool [batch, length]) -> what `head` projects, row-major [at.sum(), hidden]."""


@dataclass(frozen=True)
class Samples:
    """What a sampler returns.

    Attributes:
        tokens: int64 [batch, length].
        nfe: network evaluations made for each sequence, int64 [batch].
        unmask_step: denoising step, from 1, in which each position unmasked; 0 where it was given, int64
            [batch, length].
    """

    tokens: Tensor
    nfe: Tensor
    unmask_step: Tensor


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


def logit_chunks(network: LogitsAt | Predictor, xt: Tensor, at: Tensor, mask_token_id: int) -> Iterator[Tensor]:
    """Logits at some positions, the mask token excluded, as many positions at once as memory should hold.

    Args:
        network: in two parts, or a function that gives all logits at once, which then are the only piece.
        xt: tokens at time t, int64 [batch, length].
        at: positions wanted, bool [batch, length].
        mask_token_id: id of the absorbing state.
    Yields:
        float32 or wider [n, vocab], -inf at the mask token; together row-major [at.sum(), vocab].
    """
    if isinstance(network, Predictor):
        head = network.head
        bias = exclude_mask(head.bias, mask_token_id)
        hidden = network.hidden_at(xt, at)
        for rows in hidden.split(rows_per_chunk(head.out_features, hidden.device)):
            logits = F.linear(rows, head.weight, bias)
            yield logits.to(torch.promote_types(logits.dtype, torch.float32))
    else:
        logits = network(xt, at)
        yield exclude_mask(logits.to(torch.promote_types(logits.dtype, torch.float32)), mask_token_id)


@torch.inference_mode()
def sample(
    network: LogitsAt | Predictor,
    x_init: Tensor,
    *,
    num_steps: int,
    mask_token_id: int,
    u_time: Tensor,
    u_token: Tensor,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Samples:
    """Ancestral sampling from x_init, whose masks are filled in num_steps denoising steps.

    Args:
        network: the denoiser in evaluation mode, see `LogitsAt` and `Predictor`. It is not told the time.
        x_init: tokens to keep, and the mask token everywhere else, int64 [batch, length]. Not modified.
        num_steps: denoising steps, 1 or more.
        mask_token_id: id of the absorbing state.
        u_time: decides in which step a position unmasks, float64 [batch, length], see `sample_uniforms`.
        u_token: decides which token it becomes, float64 [batch, length].
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
    xt = x_init.clone()
    u_token = u_token.to(xt.device)
    unmask_step = torch.where(xt == mask_token_id, unmask_steps(u_time.to(xt.device), num_steps), 0)
    nfe = torch.zeros(xt.shape[0], dtype=torch.int64, device=xt.device)
    for step in range(1, num_steps + 1):
        unmasks = unmask_step == step
        rows = unmasks.any(dim=1).nonzero()[:, 0]
        if rows.numel():
            u = u_token[unmasks]
            drawn = []
            for logits in logit_chunks(network, xt[rows], unmasks[rows], mask_token_id):
                drawn.append(draw_categorical(logits, u[: len(logits)]))
                u = u[len(logits) :]
            xt[unmasks] = torch.cat(drawn)
            nfe[rows] += 1
        if on_step is not None:
            on_step(step, xt)
    return Samples(tokens=xt, nfe=nfe, unmask_step=unmask_step)


@torch.inference_mode()
def sample_autoregressive(
    next_logits: Callable[[Tensor, State | None], tuple[Tensor, State]],
    prefix: Tensor,
    *,
    length: int,
    mask_token_id: int,
    u_token: Tensor,
) -> Samples:
    """Left-to-right sampling with a cache, with the same exact draws as `sample`.

    Args:
        next_logits: (new tokens int64 [batch, n], state or None) -> (logits of the next token float
            [batch, vocab], state).
        prefix: tokens to continue, at least one, int64 [batch, prefix_length].
        length: tokens of the result, the prefix included.
        mask_token_id: never drawn.
        u_token: decides the tokens, float64 [batch, length].
    Returns:
        Samples, on the device of prefix; a token's unmask_step counts from 1 after the prefix.
    Raises:
        ValueError: the prefix is empty or already longer than `length`, or u_token has another shape.
    """
    batch_size, prefix_length = prefix.shape
    if not 1 <= prefix_length <= length or u_token.shape != (batch_size, length):
        raise ValueError(f"prefix {tuple(prefix.shape)}, u_token {tuple(u_token.shape)} and length {length} do not fit")
    tokens = prefix.new_full((batch_size, length), mask_token_id)
    tokens[:, :prefix_length] = prefix
    u_token = u_token.to(prefix.device)
    new, state = prefix, None
    for position in range(prefix_length, length):
        logits, state = next_logits(new, state)
        tokens[:, position] = draw_categorical(masked_log_probs(logits, mask_token_id), u_token[:, position])
        new = tokens[:, position : position + 1]
    order = (torch.arange(length, device=prefix.device) - prefix_length + 1).clamp(min=0)
    nfe = torch.full((batch_size,), length - prefix_length, dtype=torch.int64, device=prefix.device)
    return Samples(tokens=tokens, nfe=nfe, unmask_step=order.expand(batch_size, length))
