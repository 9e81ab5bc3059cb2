import copy
import math

import numpy as np
import pytest
import torch

from halfstep.evaluation.metrics.generative_perplexity import quality
from halfstep.evaluation.scorer import (
    Scorer,
    load_scorer,
    read_texts,
    read_tokens,
    shares_vocabulary,
    to_scorer_ids,
)
from halfstep.run.device import autocast
from halfstep.run.errors import UserError

WORDS = ["the", "cat", "dog", "saw", "a", "bird", "ran", "to", "red", "house"]
BOTH = ("fp32", "bf16")
SEQUENCES = [[0, 3, 4, 5, 1], [0, 8], [0, 3, 3, 9, 10, 2, 7, 1], [5]]


def uniform(model):
    """A copy whose every prediction is uniform over the vocabulary."""
    model = copy.deepcopy(model)
    torch.nn.init.zeros_(model.transformer.ln_f.weight)
    torch.nn.init.zeros_(model.transformer.ln_f.bias)
    return model


def test_a_uniform_scorer_has_the_vocabulary_size_as_perplexity(gpt2, tokenizer):
    scored = read_texts(SEQUENCES[:3], tokenizer, Scorer(uniform(gpt2), tokenizer), batch_size=2)
    perplexity, entropy = quality(SEQUENCES[:3], scored, num_resamples=20, seed=0)
    assert perplexity.value == pytest.approx(len(tokenizer), rel=1e-6)
    assert perplexity.standard_error == pytest.approx(0, abs=1e-5)
    assert entropy.interval[0] < entropy.value < entropy.interval[1]


def test_a_scorer_that_gives_nan_is_an_error(gpt2):
    broken = copy.deepcopy(gpt2)
    torch.nn.init.constant_(broken.transformer.ln_f.bias, math.nan)
    with pytest.raises(UserError, match=r"text 0 of 2 has a log-likelihood of nan"):
        read_tokens(broken, SEQUENCES[:2], batch_size=2)


def test_a_text_without_tokens_has_the_features_of_eos(gpt2, tokenizer):
    scorer = Scorer(gpt2, tokenizer)
    eos = [tokenizer.eos_token_id]
    found = read_texts([[], eos, [5, 6]], tokenizer, scorer, batch_size=2).features
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.allclose(found[0], found[2])


@pytest.mark.parametrize("around", ["fp32", "bf16"])
def test_a_scorer_reads_in_its_own_precision_whatever_is_around(gpt2, tokenizer, around):
    exact = read_tokens(gpt2, SEQUENCES, batch_size=2).nlls
    with autocast(torch.device("cpu"), around):
        fp32, bf16 = (read_texts(SEQUENCES, tokenizer, Scorer(gpt2, tokenizer, name), batch_size=2) for name in BOTH)
    assert fp32.nlls == exact
    assert bf16.nlls != exact
    assert bf16.nlls == pytest.approx(exact, rel=0.01)


def test_nlls_are_those_of_each_sequence_alone(gpt2):
    scored = read_tokens(gpt2, SEQUENCES, batch_size=2)
    for ids, nll in zip(SEQUENCES, scored.nlls, strict=True):
        expected = 0.0
        for i in range(1, len(ids)):
            with torch.no_grad():
                log_p = gpt2(torch.tensor([ids[:i]])).logits[0, -1].double().log_softmax(-1)
            expected -= log_p[ids[i]].item()
        assert nll == pytest.approx(expected, rel=1e-5)
    assert scored.num_tokens == [4, 1, 7, 0]
    assert scored.num_windowed == 0


def test_sequences_longer_than_the_context_are_read_in_windows_and_counted(gpt2):
    long, max_length = [3, ~1, 4, 1, 5, ~9, 2, 6, 5, 3, 8], 5
    scored = read_tokens(gpt2, [long, [0, 1, 2]], batch_size=2, max_length=max_length)
    expected = 0.0
    for end in range(1, len(long)):
        # Windows of five tokens, of which the later ones write three: 0-4, 3-7, 6-10.
        start = 0 if end < max_length else (end - max_length) // 3 * 3 + 3
        if long[end] >= 0:
            context = torch.tensor([[max(token, ~token) for token in long[start:end]]])
            with torch.no_grad():
                expected -= gpt2(context).logits[0, -1].double().log_softmax(-1)[long[end]].item()
    assert scored.nlls == pytest.approx([expected, *read_tokens(gpt2, [[0, 1, 2]], batch_size=1).nlls], rel=1e-5)
    assert scored.num_tokens == [8, 2]
    first = read_tokens(gpt2, [long[:max_length], [0, 1, 2]], batch_size=2).features
    np.testing.assert_allclose(scored.features, first, rtol=1e-4, atol=1e-5)
    assert scored.num_windowed == 1


def test_features_are_the_last_hidden_state_at_the_last_token(gpt2):
    together = read_tokens(gpt2, SEQUENCES, batch_size=3).features
    for ids, row in zip(SEQUENCES, torch.from_numpy(together), strict=True):
        with torch.no_grad():
            hidden = gpt2(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
        # float32: batches of another shape may sum in another order.
        torch.testing.assert_close(row, hidden[0, -1], rtol=1e-4, atol=1e-5)


def test_vocabularies_that_differ_in_the_mask_token_only_are_shared(tokenizer, make_tokenizer):
    without_mask = make_tokenizer(WORDS, has_mask=False)
    assert len(without_mask) == len(tokenizer) - 1
    assert shares_vocabulary(tokenizer, without_mask)
    assert shares_vocabulary(without_mask, tokenizer)
    assert not shares_vocabulary(tokenizer, make_tokenizer(WORDS[:-1]))


def test_another_order_of_words_is_tokenized_anew(gpt2, tokenizer, make_tokenizer):
    reordered = make_tokenizer(WORDS[::-1])
    ours = [[0, *tokenizer.encode("the cat saw a bird"), 1]]
    ids, is_retokenized = to_scorer_ids(ours, tokenizer, Scorer(gpt2, reordered))
    assert is_retokenized
    assert ids == [reordered.encode("the cat saw a bird")]
    assert ids != [ours[0][1:-1]]
    assert to_scorer_ids(ours, tokenizer, Scorer(gpt2, tokenizer)) == (ours, False)


def test_what_is_given_is_read_and_not_scored(gpt2, tokenizer, make_tokenizer):
    ours = [0, *tokenizer.encode("the cat saw a bird"), 1]
    given = [*(~token for token in ours[:3]), *ours[3:]]
    found = read_tokens(gpt2, [given, ours], batch_size=2)
    prompt = read_tokens(gpt2, [ours[:3]], batch_size=1)
    assert found.nlls[0] == pytest.approx(found.nlls[1] - prompt.nlls[0])
    assert found.num_tokens == [4, 6]
    reordered = make_tokenizer(WORDS[::-1])
    ids, _ = to_scorer_ids([given], tokenizer, Scorer(gpt2, reordered))
    assert ids == [[*(~token for token in reordered.encode("the cat")), *reordered.encode("saw a bird")]]


def test_load_scorer_round_trip(gpt2, tokenizer, tmp_path):
    gpt2.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    scorer = load_scorer(str(tmp_path), None, torch.device("cpu"))
    assert scorer.max_length == 16
    assert not scorer.model.training
    assert shares_vocabulary(tokenizer, scorer.tokenizer)
    assert read_tokens(scorer.model, SEQUENCES, batch_size=8).nlls == read_tokens(gpt2, SEQUENCES, batch_size=8).nlls


def test_a_scorer_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"evaluate\.scorer.*local folder") as error:
        load_scorer(str(tmp_path), None, torch.device("cpu"))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"evaluate\.scorer.*nobody/nothing"):
        load_scorer("nobody/nothing", None, torch.device("cpu"))
