import pytest
import torch

from halfstep.diffusion.categorical import draw_categorical

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def test_draws_invert_the_cumulative_distribution() -> None:
    log_p = torch.tensor([0.2, 0.0, 0.3, 0.5], dtype=torch.float64).log()
    u = torch.tensor([0.0, 0.1999, 0.2001, 0.4999, 0.5001, 1 - 2**-53], dtype=torch.float64)
    assert draw_categorical(log_p.expand(6, 4), u).tolist() == [0, 0, 2, 2, 3, 3]


def test_impossible_indices_are_never_drawn_at_either_end() -> None:
    log_p = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(2, 3)
    assert draw_categorical(log_p, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [1, 1]


NUM_TAIL, TAIL_MASS = 2**16, 2**-10
"""What is left to a long flat tail where one token, the mask say, takes nearly everything: 2^-26 for each."""


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_long_tail_is_drawn_as_often_as_it_should_be(dtype: torch.dtype, device: str) -> None:
    """Evenly spaced uniform numbers around the edge of the tail: exactly those above it fall into it, evenly."""
    log_p = torch.cat([torch.tensor([1 - TAIL_MASS]), torch.full((NUM_TAIL,), TAIL_MASS / NUM_TAIL)]).double().log()
    u = 1 - 2 * TAIL_MASS * (torch.arange(200, dtype=torch.float64, device=device) + 0.5) / 200
    drawn = draw_categorical(log_p.to(device, dtype).expand(200, -1), u)
    in_tail = drawn[drawn > 0].double() / NUM_TAIL
    assert len(in_tail) == 100
    expected = (torch.arange(100, dtype=torch.float64, device=device) + 0.5) / 100
    torch.testing.assert_close(in_tail.flip(0), expected, atol=1e-3, rtol=0)


def test_float32_gumbel_noise_would_miss_most_of_that_tail() -> None:
    """The published code's draw, argmax of log p + Gumbel noise from float32 uniforms, on the same distribution.

    Of equal tokens the largest noise wins, and the largest of n float32 uniforms, which are multiples of 2^-24, is
    the n-th root of one uniform rounded down; so two uniforms make one draw. About 195 of 200,000 draws are due in
    the tail, with a standard deviation of 14: fewer than a third of them come in one of 1e-20 seeds, were it exact.
    """
    u = torch.rand(2, 200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    u[1] = u[1] ** (1 / NUM_TAIL)
    gumbel = -(1e-10 - ((u * 2**24).floor().float() / 2**24 + 1e-10).log()).log()
    log_p = torch.tensor([[1 - TAIL_MASS], [TAIL_MASS / NUM_TAIL]]).log()
    num_in_tail = int((log_p + gumbel).argmax(dim=0).sum())
    assert num_in_tail < 200_000 * TAIL_MASS / 3


@pytest.mark.parametrize("device", DEVICES)
def test_a_token_of_probability_1e_minus_9_is_drawn_exactly_where_it_should_be(device: str) -> None:
    """float32 cannot tell 1 from 1 - 1e-9: it would never draw this token, or always at the edge."""
    log_p = torch.tensor([1 - 1e-9, 1e-9], dtype=torch.float64, device=device).log().expand(2, 2)
    u = torch.tensor([1 - 1.5e-9, 1 - 0.5e-9], dtype=torch.float64, device=device)
    assert draw_categorical(log_p, u).tolist() == [0, 1]


def test_weights_that_do_not_sum_to_one_are_drawn_in_proportion() -> None:
    log_p = torch.tensor([1.0, 3.0, 0.0]).log().expand(4, 3)
    assert draw_categorical(log_p, torch.tensor([0.0, 0.24, 0.26, 0.99], dtype=torch.float64)).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("row", [[0.0, float("nan")], [-float("inf")] * 2])
def test_a_row_that_is_no_distribution_is_refused(row: list[float]) -> None:
    """A NaN compares as smaller than nothing, and would always draw the first token."""
    with pytest.raises(FloatingPointError, match="NaN"):
        draw_categorical(torch.tensor([[0.0, 0.0], row]), torch.tensor([0.5, 0.5], dtype=torch.float64))


def test_rows_may_lie_in_any_number_of_dimensions() -> None:
    log_p = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
    u = torch.rand(4, 1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = draw_categorical(log_p.expand(4, 1, 5, 3), u)
    assert torch.equal(drawn, (u >= 0.2).long() + (u >= 0.5).long())
    assert draw_categorical(log_p, u[0, 0, 0]) == drawn[0, 0, 0]


@pytest.mark.parametrize(
    ("log_p_shape", "u_shape", "dtype", "message"),
    [
        ((2, 3), (2,), torch.float32, r"torch.float32 of shape \(2,\)"),
        ((2, 4, 3), (2, 5), torch.float64, r"of shape \(2, 5\), expected torch.float64 of shape \(2, 4\)"),
        ((2, 4, 3), (2, 3), torch.float64, r"of shape \(2, 3\), expected torch.float64 of shape \(2, 4\)"),
    ],
)
def test_uniforms_that_do_not_fit_are_refused(log_p_shape, u_shape, dtype: torch.dtype, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_categorical(torch.zeros(log_p_shape), torch.zeros(u_shape, dtype=dtype))


def _edges(log_p: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """For each index i the u from which on the draw is beyond i, by bisection: float64 [len(indices)]."""
    low, high = torch.zeros(len(indices), dtype=torch.float64), torch.ones(len(indices), dtype=torch.float64)
    for _ in range(60):
        middle = ((low + high) / 2).clamp(max=1 - 2**-53)
        is_beyond = draw_categorical(log_p.expand(len(indices), -1), middle) > indices
        low, high = torch.where(is_beyond, low, middle), torch.where(is_beyond, middle, high)
    return high


def test_every_index_is_drawn_with_its_own_probability_to_float32_rounding() -> None:
    """How much of [0, 1) leads to an index, against the float64 softmax: relative to the probability itself.

    Bisection knows edges to 2e-16. The last block is not full.
    """
    vocab_size = 400
    log_p = (4 * torch.randn(vocab_size, generator=torch.Generator().manual_seed(3))).log_softmax(-1)
    edges = _edges(log_p, torch.arange(-1, vocab_size))
    edges[0], edges[-1] = 0.0, 1.0
    exact = log_p.double().softmax(-1)
    assert float(exact.min()) < 1e-7
    torch.testing.assert_close(edges.diff(), exact, rtol=5e-7, atol=1e-15)


def test_a_token_of_probability_1e_minus_12_among_many_blocks_keeps_it() -> None:
    """Its edges lie 1e-12 apart: a sum over the vocabulary in float32 would lose it."""
    log_p = torch.randn(5000, generator=torch.Generator().manual_seed(4)).log_softmax(-1)
    log_p[4321] = torch.tensor(1e-12).log()
    before, after = _edges(log_p, torch.tensor([4320, 4321]))
    exact = log_p.double().softmax(-1)[4321]
    assert float(after - before) == pytest.approx(float(exact), rel=1e-3)


def test_blocks_draw_as_one_float64_sum_over_the_vocabulary_would() -> None:
    """The same index except where u lies within float32 rounding of an edge, which a millionth of draws does."""
    generator = torch.Generator().manual_seed(5)
    log_p = (3 * torch.randn(200, 3000, generator=generator)).log_softmax(-1)
    u = torch.rand(200, generator=generator, dtype=torch.float64)
    cumulative = log_p.double().softmax(-1).cumsum(-1)
    expected = (cumulative <= u[:, None] * cumulative[:, -1:]).sum(-1)
    distance = (cumulative - u[:, None]).abs().amin(-1)
    clear = distance > 5e-7
    assert clear.sum() > 190
    assert torch.equal(draw_categorical(log_p, u)[clear], expected[clear])
    in_float64 = draw_categorical(log_p.double(), u)
    assert torch.equal(in_float64[distance > 1e-12], expected[distance > 1e-12])
