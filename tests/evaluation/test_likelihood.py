import itertools
import math

import numpy as np
import pytest
import torch
from tests.model import test_joint as joint

from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.evaluation.likelihood import (
    Likelihood,
    autoregressive_likelihood,
    decoded_bytes,
    denoiser_likelihood,
    stepwise_likelihood,
)
from halfstep.run.errors import UserError

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
    return denoiser_likelihood(logits_at, tokens, **{**settings, **changes})


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
    assert (estimate.count, estimate.unit, len(result.by_time)) == (300, "nats", 10)
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
    result = autoregressive_likelihood(gpt2, tokens, batch_size=2)
    ids = torch.from_numpy(tokens.astype(np.int64))
    with torch.no_grad():
        log_p = gpt2(ids).logits.double().log_softmax(-1)[:, :-1]
    expected = -log_p.gather(-1, ids[:, 1:, None]).mean().item()
    assert result.nll_per_token.value == pytest.approx(expected, rel=1e-5)
    assert result.perplexity.value == pytest.approx(math.exp(expected), rel=1e-5)
    assert (result.nll_per_token.count, result.by_time) == (5, ())


def test_bits_per_byte_are_total_bits_over_total_bytes():
    likelihood = Likelihood((3 * math.log(2), 5 * math.log(2), 7 * math.log(2)), (4, 4, 4))
    bits = likelihood.bits_per_byte((2, 3, 0))
    assert (bits.value, bits.count, bits.unit) == (pytest.approx(3.0), 3, "bits")
    # The ratio's residuals are 3 - 6, 5 - 9 and 7 - 0 bits, and the mean is 5 / 3 bytes.
    assert bits.standard_error == pytest.approx(math.sqrt((9 + 16 + 49) / (3 * 2)) / (5 / 3))
    assert likelihood.bits_per_byte((0, 0, 0)) is None


def test_a_uniform_denoiser_takes_the_bits_of_its_vocabulary(tokenizer):
    def uniform(xt, at):
        return torch.zeros(int(at.sum()), len(tokenizer))

    ids = [tokenizer.bos_token_id, *tokenizer.encode("the cat saw a red dog"), tokenizer.eos_token_id]
    tokens = np.array([ids] * 40, dtype=np.uint16)
    result = nelbo(uniform, tokens, mask_token_id=tokenizer.mask_token_id, num_draws=64)
    text = decoded_bytes(tokenizer, tokens)
    assert (sum(text.num_bytes), sum(result.num_tokens)) == (40 * len("the cat saw a red dog"), 40 * 8)
    assert text.num_unknown_tokens == 0
    bits = result.bits_per_byte(text.num_bytes)
    expected = 8 * math.log2(len(tokenizer) - 1) / len("the cat saw a red dog")
    assert abs(bits.value - expected) < 5 * bits.standard_error < 0.1 * expected


def test_bytes_are_those_of_the_text_without_special_tokens(tokenizer, make_tokenizer):
    bos, eos, unk = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id
    the, cat = tokenizer.encode("the cat")
    text = decoded_bytes(tokenizer, np.array([[bos, the, cat, eos], [bos, the, eos, cat], [bos, unk, unk, eos]]))
    assert text.num_bytes[:2] == (7, 7)
    assert text.num_bytes[2] == 0
    assert text.num_unknown_tokens == 2
    accented = make_tokenizer(["caf\u00e9", "\u65e5\u672c"])
    ids = np.array([accented.encode("caf\u00e9 \u65e5\u672c")])
    # Two bytes for the accent, three for either character of the second word, and the space.
    assert decoded_bytes(accented, ids).num_bytes == (5 + 1 + 6,)


def test_of_a_row_what_is_not_given_has_a_likelihood():
    """Five standard errors: a false alarm of 6e-7 if the seed were free."""
    tokens = tokens_of(300).astype(np.int32)
    tokens[:, :6] = ~tokens[:, :6]
    result = nelbo(uniform, tokens)
    assert set(result.num_tokens) == {18}
    estimate = result.nll_per_token
    assert abs(estimate.value - math.log(MASK)) < 5 * estimate.standard_error
    assert estimate.standard_error < 0.03 * math.log(MASK)

    def sees_the_prompt(xt, at):
        assert (xt[:, :6].numpy() != MASK).all()
        assert not at[:, :6].any()
        return uniform(xt, at)

    nelbo(sees_the_prompt, tokens)


def test_the_bound_in_steps_is_of_what_is_not_given() -> None:
    """One step writes all that is not given: closed form."""
    model = joint.joint_model("left_to_right")
    x = torch.tensor([[0, 1, 2, 0, 1], [2, 2, 0, 1, 0]])
    is_given = torch.tensor([[True, True, False, False, False], [True, False, False, True, False]])
    xt = torch.where(is_given, x, joint.MASK)
    log_p = joint.log_probs(model, model.hidden_at(xt, ~is_given)).gather(1, x[~is_given][:, None])[:, 0]
    found = stepwise_likelihood(
        model, torch.where(is_given, ~x, x).numpy(), num_steps=1, together=False, mask_token_id=joint.MASK, num_draws=2,
        batch_size=4, seed=0, device=torch.device("cpu"),
    )  # fmt: skip
    assert found.nlls == pytest.approx([-float(log_p[:3].sum()), -float(log_p[3:].sum())], rel=1e-5)
    assert found.num_tokens == (3, 3)


def test_broken_weights_are_an_error(gpt2):
    def broken(xt, at):
        return torch.full((int(at.sum()), VOCAB), math.nan)

    with pytest.raises(UserError, match="gives nan for 5 of 5 sequences"):
        nelbo(broken, tokens_of(5))


@pytest.mark.parametrize("together", [False, True])
def test_the_bound_of_one_step_is_the_likelihood_of_what_one_step_writes(together: bool) -> None:
    """Nothing is left to chance where the head goes from left to right: closed form, and the NELBO's is far off."""
    model = joint.joint_model("left_to_right")
    x = np.array([[0, 1, 2, 0, 1], [2, 2, 0, 1, 0]])
    given = torch.full((2, 5), joint.MASK)
    at = given == joint.MASK
    expected = joint.conditionals(model, given, torch.from_numpy(x), torch.zeros(2, 5)).sum(dim=1)
    if not together:
        log_p = joint.log_probs(model, model.hidden_at(given, at)).view(2, 5, -1)
        expected = log_p.gather(2, torch.from_numpy(x)[..., None])[..., 0].sum(dim=1)
    found = stepwise_likelihood(
        model, x, num_steps=1, together=together, mask_token_id=joint.MASK, num_draws=3, batch_size=4, seed=0,
        device=torch.device("cpu"),
    )  # fmt: skip
    assert found.nlls == pytest.approx((-expected).tolist(), rel=1e-5)


@pytest.mark.parametrize("together", [False, True])
def test_the_bound_of_two_steps_is_the_mean_over_all_assignments_of_positions_to_steps(together: bool) -> None:
    """By enumeration of which positions come first; 3000 draws, within 4.5 standard errors: one false alarm in 1e5."""
    model = joint.joint_model("left_to_right")
    x = torch.tensor([[0, 1, 2, 0, 1]])
    total = 0.0
    for first in itertools.product([False, True], repeat=5):
        is_first = torch.tensor([first])
        for seen, written in ((torch.zeros_like(is_first), is_first), (is_first, ~is_first)):
            if not written.any():
                continue
            xt = torch.where(seen, x, joint.MASK)
            hidden = model.hidden_at(xt, written)
            arrangement = model.arrange(written, torch.zeros(1, 5))
            if together:
                hidden = arrangement.row_major(model.conditional(hidden, x.gather(1, arrangement.columns), arrangement))
            total -= float(joint.log_probs(model, hidden).gather(1, x[written][:, None]).sum()) / 2**5
    rows = x.numpy().repeat(1000, axis=0)
    found = stepwise_likelihood(
        model, rows, num_steps=2, together=together, mask_token_id=joint.MASK, num_draws=3, batch_size=500, seed=1,
        device=torch.device("cpu"),
    )  # fmt: skip
    assert abs(np.mean(found.nlls) - total) < 4.5 * np.std(found.nlls) / len(rows) ** 0.5
