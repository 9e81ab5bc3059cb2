import json
import logging
import math

import pytest
import torch

from halfstep.data.texts.cloze import check_passage, write_cloze
from halfstep.data.texts.encoding import encode_pair
from halfstep.data.tokenizer import train_word_tokenizer
from halfstep.evaluation.lm_eval.autoregressive_lm import AutoregressiveLM
from halfstep.evaluation.lm_eval.denoiser_lm import DenoiserLM
from halfstep.evaluation.metrics.cloze import load_passages, run_cloze
from halfstep.run.errors import UserError

PASSAGES = [
    "the cat saw a cat",
    "red dog ran to red house to red",
    "a bird saw a house ran a bird",
    "the house saw the house",
]


def denoiser_lm(logits_at, tokenizer, **changes):
    settings = {"max_length": 16, "mask_token_id": tokenizer.mask_token_id, "num_draws": 8}
    settings |= {"batch_size": 2, "seed": 0, "device": torch.device("cpu")}
    return DenoiserLM(logits_at, tokenizer, **{**settings, **changes})


def always(tokenizer, word):
    """A denoiser that says one word with near certainty."""

    def logits_at(xt, at):
        logits = torch.full((int(at.sum()), len(tokenizer)), -30.0)
        logits[:, tokenizer.encode(word)] = 0.0
        return logits

    return logits_at


def copy_from_position_two(tokenizer):
    """A denoiser that repeats the second word of the text (after BOS), whatever is asked."""

    def logits_at(xt, at):
        assert (xt[:, 0] == tokenizer.bos_token_id).all()
        assert (xt[:, -1] == tokenizer.eos_token_id).all()
        rows = at.nonzero()[:, 0]
        logits = torch.full((len(rows), len(tokenizer)), -30.0)
        return logits.scatter(1, xt[rows, 2][:, None], 0.0)

    return logits_at


def test_a_denoiser_that_copies_gets_its_own_passages_right(tokenizer):
    passages = ["the cat saw a cat", "a dog ran to dog", "red house saw a red house"]
    result = run_cloze(denoiser_lm(copy_from_position_two(tokenizer), tokenizer), passages)
    assert result.accuracy.as_dict() == {"value": 1.0, "standard_error": 0.0, "count": 3, "unit": "1"}
    # The other 13 tokens have e^-30 each.
    assert result.perplexity.value == pytest.approx(1, abs=1e-6)


def test_accuracy_counts_passages(tokenizer):
    result = run_cloze(denoiser_lm(always(tokenizer, "bird"), tokenizer), PASSAGES)
    assert result.accuracy.value == 0.25
    assert result.accuracy.count == 4


def test_a_uniform_denoiser_has_the_clean_vocabulary_to_the_number_of_tokens(letters):
    tokenizer, passages, num_tokens = letters

    def uniform(xt, at):
        return torch.zeros(int(at.sum()), len(tokenizer))

    # A masking costs k tokens with weight n / k: n log V whatever the draw, but for rounding.
    result = run_cloze(denoiser_lm(uniform, tokenizer, num_draws=2), passages)
    assert num_tokens > len(passages)
    expected = (len(tokenizer) - 1) ** (num_tokens / len(passages))
    assert result.perplexity.value == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def letters():
    """A tokenizer of letters, so that words have several tokens: (it, passages, target tokens in all)."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = ["<bos>", "<eos>", "▁", *"abcd"]
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>")
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    return tokenizer, ["ab cd a", "a abcd", "dd cab"], 2 + 5 + 4


def test_half_a_word_is_not_a_hit(letters):
    tokenizer, _, _ = letters

    def starts_right(xt, at):
        """The space that begins every word, and then never the right letter."""
        logits = torch.zeros(int(at.sum()), len(tokenizer))
        logits[:, tokenizer.convert_tokens_to_ids("▁")] = 9.0
        return logits

    assert run_cloze(denoiser_lm(starts_right, tokenizer), ["ab cd a", "a b"]).accuracy.value == 0


def test_likelihood_of_a_two_token_word(letters):
    tokenizer, _, _ = letters
    table = torch.randn(len(tokenizer) + 1, len(tokenizer), generator=torch.Generator().manual_seed(0))

    def by_left_neighbour(xt, at):
        return table[xt.roll(1, dims=1)[at]]

    # " a" is the space token and the letter: the space depends on what is before it, the letter on the space.
    log_p = table[:, :-1].double().log_softmax(-1)
    b, space, a, mask = (tokenizer.convert_tokens_to_ids(t) for t in ("b", "▁", "a", "<mask>"))
    space_cost = -log_p[b, space].item()
    letter_cost = (-log_p[space, a].item() - log_p[mask, a].item()) / 2
    lm = denoiser_lm(by_left_neighbour, tokenizer, num_draws=3)
    result = run_cloze(lm, ["ab a"])
    assert math.log(result.perplexity.value) == pytest.approx(space_cost + letter_cost, rel=1e-5)


def test_results_depend_on_neither_batches_nor_order(letters):
    tokenizer, passages, _ = letters
    table = torch.randn(len(tokenizer), len(tokenizer), generator=torch.Generator().manual_seed(0))

    def by_left_neighbour(xt, at):
        return table[xt.roll(1, dims=1)[at]]

    results = [
        run_cloze(denoiser_lm(by_left_neighbour, tokenizer, batch_size=size, num_draws=3), texts)
        for size, texts in ((1, passages), (64, passages), (2, passages[::-1]))
    ]
    for result in results[1:]:
        assert result.perplexity.value == pytest.approx(results[0].perplexity.value, rel=1e-9)


def test_autoregressive_model_is_scored_as_by_hand(gpt2, tokenizer):
    num_known = len(tokenizer)
    result = run_cloze(AutoregressiveLM(gpt2, tokenizer, batch_size=3), PASSAGES)
    log_likelihoods, hits = [], []
    for text in PASSAGES:
        ids = [tokenizer.bos_token_id, *tokenizer.encode(text)]
        with torch.no_grad():
            log_p = gpt2(torch.tensor([ids[:-1]])).logits[0, -1].log_softmax(-1)
        log_likelihoods.append(log_p[ids[-1]].item())
        hits.append(float(log_p.argmax() == ids[-1]))
    assert result.perplexity.value == pytest.approx(math.exp(-sum(log_likelihoods) / 4), rel=1e-5)
    assert result.accuracy.value == sum(hits) / 4
    assert len(tokenizer) == num_known
    assert tokenizer.pad_token is None


def test_long_contexts_keep_bos_and_their_end(tokenizer):
    words = " ".join(["dog"] * 20 + ["bird"])
    context, target, is_cut = encode_pair(tokenizer, words, " cat", max_length=4)
    assert is_cut
    assert context == [tokenizer.bos_token_id, *tokenizer.encode("dog bird")]
    assert target == tokenizer.encode("cat")
    assert not encode_pair(tokenizer, words, " cat", max_length=23)[2]


@pytest.mark.parametrize("kind", ["denoiser", "autoregressive"])
def test_cut_contexts_are_counted(kind, tokenizer, gpt2):
    long = " ".join(["dog"] * 40 + ["cat"])
    if kind == "denoiser":
        seen = []

        def logits_at(xt, at):
            seen.append(xt.shape[1])
            return torch.zeros(int(at.sum()), len(tokenizer))

        lm = denoiser_lm(logits_at, tokenizer)
        run_cloze(lm, [long, PASSAGES[0]])
        assert max(seen) == 16
    else:
        lm = AutoregressiveLM(gpt2, tokenizer, batch_size=2)
        run_cloze(lm, [long, PASSAGES[0]])
    assert lm.num_truncated == 1


@pytest.mark.parametrize("space", ["\t", "\n", "\u00a0", "\u2028", "\x85", " \x0b"])
def test_what_prepare_takes_is_evaluated(tmp_path, space):
    tokenizer = train_word_tokenizer(["the cat saw a red dog"], 32)
    passages = [f"the cat{space}saw", f"the red{space}unheard", "the <|mask|>"]
    for passage in passages:
        check_passage(passage, tokenizer, 16)
    write_cloze(tmp_path / "cloze.jsonl", passages)
    found = load_passages(tmp_path / "cloze.jsonl", None)
    assert found == passages
    result = run_cloze(denoiser_lm(lambda xt, at: torch.zeros(int(at.sum()), len(tokenizer)), tokenizer), found)
    assert result.accuracy.count == 3
    assert math.isfinite(result.perplexity.value)


def test_a_target_longer_than_the_model(tokenizer):
    with pytest.raises(UserError, match=r"has 1 tokens, more than fit into the 1 "):
        encode_pair(tokenizer, "the", " cat", max_length=1)


def test_load_passages(tmp_path):
    path = tmp_path / "cloze.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in PASSAGES) + "\n", encoding="utf-8")
    assert load_passages(path, None) == PASSAGES
    assert load_passages(path, 2) == PASSAGES[:2]
    path.write_text("")
    assert load_passages(path, None) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"txt": "a b"}', "line 2"),
        ("not json", "line 2"),
        ('{"text": "word"}', "'word' is not a cloze passage, which has two words at least"),
        ("[1]", "line 2"),
    ],
)
def test_broken_passages_name_their_line(tmp_path, line, message):
    path = tmp_path / "cloze.jsonl"
    path.write_text('{"text": "a b"}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        load_passages(path, None)
    with pytest.raises(UserError, match="cannot be read"):
        load_passages(tmp_path / "none.jsonl", None)


def test_nothing_is_printed_and_loggers_are_left_as_they_were(tokenizer, gpt2, capfd):
    level = logging.getLogger("lm_eval").level
    run_cloze(AutoregressiveLM(gpt2, tokenizer, batch_size=3), PASSAGES)
    run_cloze(denoiser_lm(always(tokenizer, "cat"), tokenizer), PASSAGES)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert logging.getLogger("lm_eval").level == level
