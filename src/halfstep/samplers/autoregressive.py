"""Writing from left to right, with a cache."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from halfstep.diffusion.categorical import draw_categorical
from halfstep.diffusion.subs import masked_log_probs
from halfstep.samplers.base import Samples

State = TypeVar("State")


@torch.inference_mode()
def sample_autoregressive(
    next_logits: Callable[[Tensor, State | None], tuple[Tensor, State]],
    prefix: Tensor,
    *,
    length: int,
    mask_token_id: int,
    u_token: Tensor,
    adjust: Callable[[Tensor], Tensor] | None = None,
    likeliest: bool = False,
    given: Tensor | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Samples:
    """Left-to-right sampling with a cache, with the same exact draws as `sample`.

    Args:
        next_logits: (new tokens int64 [batch, n], state or None) -> (logits of the next token float
            [batch, vocab], state).
        prefix: tokens to continue, at least one, int64 [batch, prefix_length].
        length: tokens of the result, the prefix included.
        mask_token_id: never drawn.
        u_token: decides the tokens, float64 [batch, length].
        adjust, likeliest, on_step: as in `fill`; each token is a step.
        given: tokens that are written as they are and cost nothing, and the mask token elsewhere, int64
            [batch, length].
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
        log_p = masked_log_probs(logits, mask_token_id)
        log_p = log_p if adjust is None else adjust(log_p)
        drawn = log_p.argmax(dim=-1) if likeliest else draw_categorical(log_p, u_token[:, position])
        if given is not None:
            drawn = torch.where(given[:, position] == mask_token_id, drawn, given[:, position])
        tokens[:, position] = drawn
        new = tokens[:, position : position + 1]
        if on_step is not None:
            on_step(position - prefix_length + 1, tokens)
    order = (torch.arange(length, device=prefix.device) - prefix_length + 1).clamp(min=0).expand(batch_size, length)
    if given is not None:
        order = order.masked_fill(given != mask_token_id, 0)
    nfe = (order > 0).sum(dim=1)
    return Samples(tokens=tokens, nfe=nfe, unmask_step=order, head_passes=torch.zeros_like(nfe))
