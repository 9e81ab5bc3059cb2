import pytest
import torch

from halfstep.diffusion.posterior import posterior_probs, unmask_probability

MASK = 3
P_X0 = torch.tensor([[[0.2, 0.3, 0.5, 0.0], [0.6, 0.4, 0.0, 0.0]]], dtype=torch.float64)
XT = torch.tensor([[MASK, 1]])


def _alpha(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


def test_rows_sum_to_one_and_visible_tokens_stay() -> None:
    probs = posterior_probs(P_X0, XT, _alpha(0.2), _alpha(0.6), MASK)
    torch.testing.assert_close(probs.sum(-1), torch.ones(1, 2, dtype=torch.float64))
    assert probs[0, 1].tolist() == [0, 1, 0, 0]


def test_limits_no_step_keeps_the_mask_and_a_step_to_zero_removes_it() -> None:
    assert posterior_probs(P_X0, XT, _alpha(0.2), _alpha(0.2), MASK)[0, 0].tolist() == [0, 0, 0, 1]
    torch.testing.assert_close(posterior_probs(P_X0, XT, _alpha(0.2), _alpha(1.0), MASK)[0, 0], P_X0[0, 0])


def test_two_steps_compose_to_one() -> None:
    """With a prediction that does not change, going t -> r -> s is going t -> s."""
    first = posterior_probs(P_X0, XT, _alpha(0.1), _alpha(0.4), MASK)[0, 0]
    second = posterior_probs(P_X0, XT, _alpha(0.4), _alpha(0.8), MASK)[0, 0]
    composed = first * torch.tensor([1, 1, 1, 0]) + first[MASK] * second
    torch.testing.assert_close(composed, posterior_probs(P_X0, XT, _alpha(0.1), _alpha(0.8), MASK)[0, 0])


def test_a_step_forward_in_time_is_refused() -> None:
    with pytest.raises(ValueError, match="earlier"):
        unmask_probability(_alpha(0.5), _alpha(0.4))
    for alpha in (1.0, 1.2):
        with pytest.raises(ValueError, match="no token is masked"):
            unmask_probability(_alpha(alpha), _alpha(alpha))


def test_tokens_on_either_side_of_the_mask_are_visible() -> None:
    p_x0 = torch.tensor([[[0.5, 0, 0.5]] * 3], dtype=torch.float64)
    probs = posterior_probs(p_x0, torch.tensor([[0, 1, 2]]), _alpha(0.0), _alpha(0.5), mask_token_id=1)
    assert probs[0].tolist() == [[1, 0, 0], [0.25, 0.5, 0.25], [0, 0, 1]]


def _forward_step(alpha_s: float, alpha_t: float) -> torch.Tensor:
    """q(xt | xs) over two tokens and the mask: rows xs, columns xt."""
    keep = alpha_t / alpha_s
    return torch.tensor([[keep, 0, 1 - keep], [0, keep, 1 - keep], [0, 0, 1]], dtype=torch.float64)


def test_masking_in_two_steps_is_masking_in_one() -> None:
    composed = _forward_step(1.0, 0.7) @ _forward_step(0.7, 0.2)
    torch.testing.assert_close(composed, _forward_step(1.0, 0.2))


@pytest.mark.parametrize(("x0", "xt"), [(0, 0), (1, 1), (0, 2), (1, 2)])
def test_the_posterior_is_bayes_rule_on_the_forward_process(x0: int, xt: int) -> None:
    """q(xs | xt, x0) = q(xt | xs) q(xs | x0) / q(xt | x0), for every outcome that can happen."""
    alpha_s, alpha_t = 0.7, 0.2
    joint = _forward_step(1.0, alpha_s)[x0] * _forward_step(alpha_s, alpha_t)[:, xt]
    p_x0 = torch.zeros(1, 1, 3, dtype=torch.float64)
    p_x0[..., x0] = 1
    posterior = posterior_probs(p_x0, torch.tensor([[xt]]), _alpha(alpha_t), _alpha(alpha_s), mask_token_id=2)
    torch.testing.assert_close(posterior[0, 0], joint / joint.sum())


@pytest.mark.parametrize("alpha_s", [-0.1, 0.1, 1.1])
def test_an_alpha_that_is_no_earlier_visibility_is_refused(alpha_s: float) -> None:
    with pytest.raises(ValueError, match="earlier"):
        unmask_probability(_alpha(0.2), _alpha(alpha_s))


def test_unmask_probability_is_the_share_of_the_masked_that_become_visible() -> None:
    alpha_t = torch.tensor([0.0, 0.2, 0.5], dtype=torch.float64)
    alpha_s = torch.tensor([0.25, 0.6, 1.0], dtype=torch.float64)
    expected = torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(unmask_probability(alpha_t, alpha_s), expected)
