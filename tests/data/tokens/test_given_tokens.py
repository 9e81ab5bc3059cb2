"""Tokens that are given, and where an answer ends."""

import torch

from halfstep.data.tokens.given import answers, plain, with_masks, without_filling

EOS = 1


def test_a_given_token_is_its_complement() -> None:
    tokens = torch.tensor([~0, ~5, 0, 7])
    assert plain(tokens).tolist() == [0, 5, 0, 7]
    assert with_masks(tokens, 9).tolist() == [0, 5, 9, 9]


def test_answers_end_at_the_first_eos_that_is_not_given() -> None:
    """Rows of text, which no prompt begins, stay as they are."""
    rows = [[~0, ~EOS, 5, EOS, EOS, EOS], [~0, ~EOS, 5, 6, 7, 8], [0, 5, EOS, 6, 7, EOS]]
    expected = [[~0, ~EOS, 5, EOS], rows[1], rows[2]]
    assert without_filling(rows, EOS) == expected
    is_given = [[token < 0 for token in row] for row in rows]
    assert answers([[max(token, ~token) for token in row] for row in rows], is_given, EOS) == expected
