import torch

from halfstep.model import Denoiser, DenoiserConfig


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
