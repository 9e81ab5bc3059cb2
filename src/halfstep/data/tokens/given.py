"""Tokens that are given, such as a prompt's: in a row, token t is then ~t, which is below zero.

A given token is never masked, and nothing is learned or measured of it.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def plain(tokens: Tensor) -> Tensor:
    """The tokens themselves, given or not."""
    return torch.maximum(tokens, ~tokens)


def with_masks(tokens: Tensor, mask_token_id: int) -> Tensor:
    """What is given, and masks in the place of everything else."""
    return torch.where(tokens < 0, ~tokens, mask_token_id)


def without_given(rows: Iterable[Sequence[int]]) -> list[list[int]]:
    """Of rows, the tokens that are not given."""
    return [[token for token in row if token >= 0] for row in rows]


def without_filling(rows: Iterable[Sequence[int]], eos_token_id: int) -> list[list[int]]:
    """Rows, those that begin with a prompt up to the first EOS after it: what follows fills them."""
    return [list(row[: row.index(eos_token_id) + 1] if row[0] < 0 and eos_token_id in row else row) for row in rows]


def answers(rows: Iterable[Sequence[int]], is_given: Iterable[Sequence[bool]], eos_token_id: int) -> list[list[int]]:
    """`without_filling`, of rows of plain tokens some of which are given."""
    pairs = zip(rows, is_given, strict=True)
    marked = ([~token if given else token for token, given in zip(*pair, strict=True)] for pair in pairs)
    return without_filling(marked, eos_token_id)
