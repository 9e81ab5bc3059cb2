import pytest
import torch

from halfstep.diffusion.categorical import draw_categorical


def test_draws_invert_the_cumulative_distribution() -> None:
    log_p = torch.tensor([0.2, 0.0, 0.3, 0.5], dtype=torch.float64).log()
    u = torch.tensor([0.0, 0.1999, 0.2001, 0.4999, 0.5001, 1 - 2**-53], dtype=torch.float64)
    assert draw_categorical(log_p.expand(6, 4), u).tolist() == [0, 0, 2, 2, 3, 3]


def test_impossible_indices_are_never_drawn_at_either_end() -> None:
    log_p = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(2, 3)
    assert draw_categorical(log_p, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [1, 1]


def test_a_long_tail_is_drawn_as_often_as_it_should_be() -> None:
    """Half the mass of this distribution lies in 2^18 tokens of 2^-19 each.

    The exact draw takes half its draws from the tail; with 4000 draws a deviation above 4.5 standard deviations is a
    false alarm in 7e-6 of seeds.
    """
    num_tail = 2**18
    log_p = torch.cat([torch.tensor([0.5]), torch.full((num_tail,), 0.5 / num_tail)]).log()
    u = torch.rand(4000, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    drawn = torch.cat([draw_categorical(log_p.expand(100, -1), part) for part in u.split(100)])
    in_tail = (drawn > 0).double().mean().item()
    assert abs(in_tail - 0.5) < 4.5 * 0.5 / 4000**0.5


def test_a_token_of_probability_1e_minus_9_is_drawn_exactly_where_it_should_be() -> None:
    """float32 cannot tell 1 from 1 - 1e-9: it would never draw this token, or always at the edge."""
    log_p = torch.tensor([1 - 1e-9, 1e-9], dtype=torch.float64).log().expand(2, 2)
    u = torch.tensor([1 - 1.5e-9, 1 - 0.5e-9], dtype=torch.float64)
    assert draw_categorical(log_p, u).tolist() == [0, 1]


def test_float32_uniforms_are_refused() -> None:
    with pytest.raises(ValueError, match="float64"):
        draw_categorical(torch.zeros(2, 3), torch.zeros(2))
