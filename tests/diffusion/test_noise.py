import pytest
import torch

from halfstep.diffusion.noise import antithetic_times, mask_tokens

MASK = 5


def test_masking_at_the_ends_masks_everything_or_nothing(generator: torch.Generator) -> None:
    x0 = torch.randint(MASK, (3, 7), generator=generator)
    xt = mask_tokens(x0, torch.tensor([0.0, 1.0, 0.0]), MASK, generator=generator)
    assert (xt[0] == MASK).all()
    assert (xt[1] == x0[1]).all()
    assert (xt[2] == MASK).all()


def test_masking_keeps_tokens_with_probability_alpha(generator: torch.Generator) -> None:
    alpha = torch.tensor([0.1, 0.5, 0.9])
    x0 = torch.zeros(3, 20_000, dtype=torch.int64)
    visible = (mask_tokens(x0, alpha, MASK, generator=generator) != MASK).double().mean(dim=1)
    # 5 standard deviations of a binomial mean; three rows: a false alarm in about 2e-6 of seeds.
    tolerance = 5 * (alpha * (1 - alpha) / 20_000).sqrt()
    assert ((visible - alpha).abs() < tolerance).all()


def test_masking_leaves_its_argument_alone(generator: torch.Generator) -> None:
    x0 = torch.zeros(2, 4, dtype=torch.int64)
    mask_tokens(x0, torch.zeros(2), MASK, generator=generator)
    assert (x0 == 0).all()


def test_one_alpha_per_row_is_required(generator: torch.Generator) -> None:
    for num_alphas in (1, 3):
        with pytest.raises(ValueError, match=rf"alpha_t has shape \({num_alphas},\), expected \(2,\)"):
            mask_tokens(torch.zeros(2, 4, dtype=torch.int64), torch.zeros(num_alphas), MASK, generator=generator)


@pytest.mark.parametrize("min_time", [0.0, 1e-5, 0.25])
def test_antithetic_times_put_one_time_into_each_equal_part(min_time: float, generator: torch.Generator) -> None:
    t = antithetic_times(64, min_time, generator=generator)
    edges = torch.linspace(min_time, 1, 65, dtype=torch.float64)
    assert (t >= edges[:-1]).all()
    assert (t < edges[1:]).all()


@pytest.mark.parametrize("min_time", [-0.1, 1.0, 1.5])
def test_a_smallest_time_outside_the_interval_is_refused(min_time: float, generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match=f"min_time is {min_time}"):
        antithetic_times(4, min_time, generator=generator)


def test_antithetic_times_are_uniform_within_their_part(generator: torch.Generator) -> None:
    within = torch.cat([antithetic_times(4, 0.0, generator=generator) * 4 - torch.arange(4) for _ in range(2500)])
    # The mean of 10,000 uniforms has a standard deviation of 0.0029: 5 of them fail in 6e-7 of seeds.
    assert abs(within.mean() - 0.5) < 0.0145
