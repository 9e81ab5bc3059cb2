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


def even_unmask_steps(u_time: Tensor, is_masked: Tensor, num_steps: int) -> Tensor:
    """The denoising step in which each position unmasks, if every step is to unmask equally many.

    Which positions go together is still up to chance. Changes the distribution: the number that unmasks in a step is
    no longer binomial, so that steps of many tokens, which make the mistakes, do not occur, nor empty ones, which cost
    nothing. With a step for every position there is one order of writing, drawn evenly from all.

    Args:
        u_time: uniform numbers in [0, 1), float [batch, length].
        is_masked: positions to fill, bool [batch, length].
        num_steps: n, 1 or more.
    Returns:
        steps in 1..n, 0 where nothing is to be filled, int64 [batch, length]; in each row the numbers of positions per
        step differ by one at most.
    Raises:
        ValueError: num_steps is less than 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}, expected 1 or more")
    # As in `unmask_steps`, the largest numbers come first.
    order = torch.where(is_masked, u_time, -1.0).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)
    num_masked = is_masked.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.where(is_masked, rank * num_steps // num_masked + 1, 0)


def with_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Logits of a distribution proportional to p^(1 / temperature), float [..., vocab].

    Changes the distribution: below 1 likely tokens gain on unlikely ones at every position, and the diversity of texts
    falls with it; towards 0 only the likeliest is left.

    Raises:
        ValueError: the temperature is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, expected more than 0; the likeliest token alone is top_k 1")
    return logits / temperature


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Logits with -inf below the k-th largest of each row, float [..., vocab].

    Changes the distribution: what is not among a position's k likeliest tokens is never drawn, and they share its
    probability in proportion; with k = 1 nothing is left to chance. Tokens equal to the k-th stay.

    Raises:
        ValueError: top_k is less than 1.
    """
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}, expected 1 or more")
    least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Logits with -inf outside the smallest set of each row's likeliest tokens that has probability top_p or more.

    Changes the distribution: the tail of each position, of probability 1 - top_p at most, is never drawn, and the rest
    shares its probability in proportion.

    Args:
        logits: float [..., vocab].
        top_p: in (0, 1].
    Returns:
        float [..., vocab].
    Raises:
        ValueError: top_p is outside (0, 1].
    Source: Holtzman et al. 2020, arXiv:1904.09751, Section 3.1 (nucleus sampling).
    """
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}, expected a value in (0, 1]")
    descending, order = logits.sort(dim=-1, descending=True, stable=True)
    p = descending.softmax(dim=-1, dtype=torch.float64)
    # A token stays if those before it do not have the probability yet; the first always does.
    is_beyond = p.cumsum(dim=-1) - p >= top_p
    return logits.masked_fill(torch.zeros_like(is_beyond).scatter(-1, order, is_beyond), -torch.inf)


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
    unmask_step: Tensor | None = None,
    adjust: Callable[[Tensor], Tensor] | None = None,
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
        unmask_step: the step in which each position unmasks, int64 [batch, length] in 1..num_steps, instead of what
            u_time says; see `even_unmask_steps`.
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
    xt = x_init.clone()
    u_token = u_token.to(xt.device)
    if unmask_step is None:
        unmask_step = unmask_steps(u_time, num_steps)
    unmask_step = torch.where(xt == mask_token_id, unmask_step.to(xt.device), 0)
    nfe = torch.zeros(xt.shape[0], dtype=torch.int64, device=xt.device)
    for step in range(1, num_steps + 1):
        unmasks = unmask_step == step
        rows = unmasks.any(dim=1).nonzero()[:, 0]
        if rows.numel():
            drawn, u = [], u_token[unmasks]
            for logits in logit_chunks(network, xt[rows], unmasks[rows], mask_token_id):
                drawn.append(draw_categorical(logits if adjust is None else adjust(logits), u[: len(logits)]))
                u = u[len(logits) :]
            xt[unmasks] = torch.cat(drawn)
            nfe[rows] += 1
        if on_step is not None:
            on_step(step, xt)
    return Samples(tokens=xt, nfe=nfe, unmask_step=unmask_step)


@torch.inference_mode()
def sample_by_confidence(
    network: LogitsAt | Predictor,
    x_init: Tensor,
    *,
    threshold: float,
    mask_token_id: int,
    u_token: Tensor,
    adjust: Callable[[Tensor], Tensor] | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Samples:
    """Fill the masks of x_init from the surest to the least sure: as many at once as the network is sure of.

    Every step predicts all masked positions, and unmasks those whose likeliest token has the probability `threshold` or
    more, or else the one where it is greatest. There are as many steps as it takes, at most one per position.

    Changes the distribution: the order of writing depends on what is predicted, where ancestral sampling draws it
    independently, so easy positions come first and texts are likelier and less diverse than the model's. And what
    unmasks depends on the network, so every masked position is projected in every step.

    Args:
        network, x_init, mask_token_id, u_token, adjust, on_step: as in `sample`; confidence is that after `adjust`.
        threshold: least probability, 0 for everything at once, 1 or more for one position at a time.
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
    step = 0
    while (is_masked := xt == mask_token_id).any():
        step += 1
        rows = is_masked.any(dim=1).nonzero()[:, 0]
        drawn, greatest, u = [], [], u_token[is_masked]
        for logits in logit_chunks(network, xt[rows], is_masked[rows], mask_token_id):
            adjusted = logits if adjust is None else adjust(logits)
            greatest.append((adjusted.amax(dim=-1) - adjusted.logsumexp(dim=-1)).exp())
            drawn.append(draw_categorical(adjusted, u[: len(logits)]))
            u = u[len(logits) :]
        confidence = torch.full(xt.shape, -1.0, dtype=torch.float64, device=xt.device)
        confidence[is_masked] = torch.cat(greatest).double()
        surest = F.one_hot(confidence.argmax(dim=1), xt.shape[1]).bool()
        unmasks = is_masked & ((confidence >= threshold) | surest)
        xt[unmasks] = torch.cat(drawn)[unmasks[is_masked]]
        unmask_step[unmasks] = step
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
