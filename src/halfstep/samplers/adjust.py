"""Changes of the distribution that tokens are drawn from: temperature, top-k, nucleus."""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor


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


def at_temperature(temperature: float, *, top_k: int | None = None, top_p: float | None = None) -> dict[str, Any]:
    """The options of `fill` by which tokens are drawn at a temperature, of which 0 is the likeliest token.

    Of what is left, `keep_top_k` and then `keep_top_p` where they are given.
    """
    changes: list[Callable[[Tensor], Tensor]] = []
    if temperature not in (0, 1):
        changes.append(partial(with_temperature, temperature=temperature))
    if top_k is not None:
        changes.append(partial(keep_top_k, top_k=top_k))
    if top_p is not None:
        changes.append(partial(keep_top_p, top_p=top_p))
    options: dict[str, Any] = {"likeliest": temperature == 0}
    if changes:
        options["adjust"] = lambda logits: reduce(lambda changed, change: change(changed), changes, logits)
    return options


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
