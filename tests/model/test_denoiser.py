from dataclasses import replace

import pytest
import torch

from halfstep.model.config import DenoiserConfig
from halfstep.model.denoiser import Denoiser


def test_logits_at_some_positions_are_rows_of_all_logits(denoiser: Denoiser, generator: torch.Generator) -> None:
    xt = torch.randint(11, (3, 8), generator=generator)
    at = torch.rand(3, 8, generator=generator) < 0.4
    with torch.no_grad():
        torch.testing.assert_close(denoiser.logits_at(xt, at), denoiser(xt)[at])


def test_dropout_is_active_in_training_only(denoiser: Denoiser) -> None:
    xt = torch.zeros(1, 8, dtype=torch.int64)
    with torch.no_grad():
        assert torch.equal(denoiser(xt), denoiser(xt))
        denoiser.train()
        assert not torch.equal(denoiser(xt), denoiser(xt))


def test_a_new_denoiser_predicts_uniformly(config: DenoiserConfig) -> None:
    with torch.no_grad():
        assert (Denoiser(config)(torch.zeros(1, 8, dtype=torch.int64)) == 0).all()


@pytest.mark.parametrize("num_sigmas", [1, 3])
def test_what_is_wanted_does_not_depend_on_what_else_is(
    denoiser: Denoiser, generator: torch.Generator, num_sigmas: int
) -> None:
    """With one conditioning for all sequences and with one for each; float32 rounding is about 1e-6 here."""
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    xt = torch.randint(11, (3, 8), generator=generator)
    sigma = torch.tensor([0.3, 1.0, 2.0])[:num_sigmas]
    at = torch.rand(3, 8, generator=generator) < 0.4
    with torch.no_grad():
        whole = denoiser(xt, sigma)
        torch.testing.assert_close(denoiser(xt, sigma, at), whole[at], rtol=1e-4, atol=1e-4)
        # Sequences sharing their sigma go another way through the norms.
        alone = denoiser(xt[:1], sigma[:1])
        torch.testing.assert_close(whole[:1], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("is_wanted", [True, False])
def test_one_token_alone_is_wanted_or_not(denoiser: Denoiser, is_wanted: bool) -> None:
    with torch.no_grad():
        assert len(denoiser.logits_at(torch.tensor([[3]]), torch.tensor([[is_wanted]]))) == is_wanted


def test_body_and_head_are_the_network(denoiser: Denoiser, generator: torch.Generator) -> None:
    xt = torch.randint(11, (2, 8), generator=generator)
    at = xt > 5
    with torch.no_grad():
        assert torch.equal(denoiser.head(denoiser.hidden_at(xt, at)), denoiser.logits_at(xt, at))


def test_a_row_of_masks_looks_the_same_everywhere_unless_positions_are_absolute(
    config: DenoiserConfig, generator: torch.Generator
) -> None:
    """Every position attends to the same values, so attention gives their mean, whatever the rotary angles."""
    masks = torch.full((1, 8), config.mask_token_id)
    for absolute_positions in (False, True):
        denoiser = Denoiser(replace(config, absolute_positions=absolute_positions)).eval()
        for parameter in denoiser.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
        with torch.no_grad():
            logits = denoiser(masks)
            spread = (logits - logits[:, :1]).abs().amax(dim=(0, 2))[1:]
            assert (spread > 0.01).all() if absolute_positions else (spread < 1e-5).all()
    assert denoiser.position_embed is not None
    with torch.no_grad():
        table = denoiser.position_embed.embedding
        table.copy_(table.flip(0))
        assert (denoiser(masks) - logits).abs().amax(dim=2).min() > 0.01


def test_absolute_positions_leave_the_other_weights_and_shorter_sequences_as_they_are(config: DenoiserConfig) -> None:
    with_them = replace(config, absolute_positions=True)
    states = []
    for each in (config, with_them):
        torch.manual_seed(0)
        states.append(Denoiser(each).state_dict())
    plain, more = states
    assert more.keys() - plain.keys() == {"position_embed.embedding"}
    assert all(torch.equal(plain[name], more[name]) for name in plain)
    denoiser = Denoiser(with_them).eval()
    assert denoiser(torch.zeros(2, 5, dtype=torch.int64)).shape == (2, 5, 11)
    with pytest.raises(ValueError, match="xt has length 9, but there are 8 absolute positions"):
        denoiser(torch.zeros(2, 9, dtype=torch.int64))
