import pytest
import torch

from halfstep.diffusion.subs import masked_log_probs, subs_log_probs


def test_masked_positions_never_predict_the_mask_and_sum_to_one(generator: torch.Generator) -> None:
    xt = torch.tensor([[3, 0, 3]])
    log_p = subs_log_probs(torch.randn(1, 3, 4, generator=generator), xt, mask_token_id=3)
    assert (log_p[..., 3] == -torch.inf).all()
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(1, 3))


def test_visible_positions_are_certain(generator: torch.Generator) -> None:
    log_p = subs_log_probs(torch.randn(1, 2, 4, generator=generator), torch.tensor([[3, 1]]), mask_token_id=3)
    assert log_p[0, 1].exp().tolist() == [0, 1, 0, 0]


def test_half_precision_logits_are_normalised_in_float32() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 0.0]], dtype=torch.bfloat16)
    expected = torch.tensor([[0.0, 1.0, 2.0]]).log_softmax(-1)
    torch.testing.assert_close(masked_log_probs(logits, 3)[:, :3], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mask_token_id", [-1, 4, 5])
def test_a_mask_outside_the_vocabulary_is_refused(mask_token_id: int) -> None:
    with pytest.raises(ValueError, match=f"mask_token_id is {mask_token_id}, but the vocabulary has 4 entries"):
        masked_log_probs(torch.zeros(2, 3, 4), mask_token_id)


def test_the_mask_can_be_any_token_of_the_vocabulary() -> None:
    for mask_token_id in range(3):
        p = masked_log_probs(torch.zeros(3), mask_token_id).exp()
        torch.testing.assert_close(p, torch.where(torch.arange(3) == mask_token_id, 0.0, 0.5))


@pytest.mark.parametrize("length", [2, 4])
def test_logits_of_another_shape_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match=rf"logits has shape \(1, 3, 4\), xt \(1, {length}\)"):
        subs_log_probs(torch.zeros(1, 3, 4), torch.zeros(1, length).long(), 3)


def test_tokens_on_either_side_of_the_mask_are_visible() -> None:
    p = subs_log_probs(torch.zeros(1, 3, 3), torch.tensor([[0, 1, 2]]), mask_token_id=1).exp()
    torch.testing.assert_close(p, torch.tensor([[[1.0, 0, 0], [0.5, 0, 0.5], [0, 0, 1]]]))
