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
    with pytest.raises(ValueError, match="no token is masked"):
        unmask_probability(_alpha(1.0), _alpha(1.0))
