import math

import numpy as np
import pytest
import torch

from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.evaluation.likelihood import validation_nelbo, validation_nll

VOCAB, MASK = 11, 10
SCHEDULE = LogLinearSchedule(1e-3)


def nelbo(logits_at, tokens, **changes):
    settings = {
        "schedule": SCHEDULE,
        "min_time": 1e-5,
        "mask_token_id": MASK,
        "num_draws": 4,
        "batch_size": 32,
        "seed": 0,
        "device": torch.device("cpu"),
    }
    return validation_nelbo(logits_at, tokens, **{**settings, **changes})


def uniform(xt, at):
    return torch.zeros(int(at.sum()), VOCAB)


def tokens_of(count, length=24):
    return np.random.default_rng(0).integers(0, MASK, size=(count, length)).astype(np.uint16)


def test_uniform_denoiser_costs_log_of_the_clean_vocabulary():
    result = nelbo(uniform, tokens_of(300))
    estimate = result.nll_per_token
    # Five standard errors: a false alarm of 6e-7 if the seed were free.
    assert abs(estimate.value - math.log(MASK)) < 5 * estimate.standard_error
    assert estimate.standard_error < 0.02 * math.log(MASK)
    assert (estimate.count, estimate.unit, result.is_bound) == (300, "nats", True)
    assert result.perplexity.value == pytest.approx(math.exp(estimate.value))
    assert result.perplexity.standard_error == pytest.approx(result.perplexity.value * estimate.standard_error)


def test_a_denoiser_that_knows_costs_nothing():
    tokens = np.full((5, 24), 3, dtype=np.uint16)

    def certain(xt, at):
        return torch.full((int(at.sum()), VOCAB), -1e4).index_fill(1, torch.tensor([3]), 0.0)

    assert nelbo(certain, tokens).nll_per_token.value == 0


def test_batches_do_not_change_the_result_and_the_last_partial_one_counts():
    weights = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def by_left_neighbour(xt, at):
        return weights[xt.roll(1, dims=1)[at]]

    tokens = tokens_of(7)
    whole = nelbo(by_left_neighbour, tokens, batch_size=100)
    pieces = nelbo(by_left_neighbour, tokens, batch_size=3)
    assert pieces.nll_per_token.value == pytest.approx(whole.nll_per_token.value, rel=1e-12)
    assert pieces.nll_per_token.count == 7


def test_another_seed_gives_other_noise():
    tokens = tokens_of(5)
    values = {nelbo(uniform, tokens, seed=seed).nll_per_token.value for seed in (0, 0, 1)}
    assert len(values) == 2


def test_exact_nll_of_an_autoregressive_model(gpt2):
    tokens = np.random.default_rng(0).integers(0, 13, size=(5, 9)).astype(np.uint16)
    result = validation_nll(gpt2, tokens, batch_size=2)
    ids = torch.from_numpy(tokens.astype(np.int64))
    with torch.no_grad():
        log_p = gpt2(ids).logits.double().log_softmax(-1)[:, :-1]
    expected = -log_p.gather(-1, ids[:, 1:, None]).mean().item()
    assert result.nll_per_token.value == pytest.approx(expected, rel=1e-5)
    assert result.perplexity.value == pytest.approx(math.exp(expected), rel=1e-5)
    assert (result.nll_per_token.count, result.is_bound) == (5, False)
