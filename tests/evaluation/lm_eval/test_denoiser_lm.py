import copy
import math
from types import SimpleNamespace

import pytest
import torch

from halfstep.data.texts.encoding import encode_pair
from halfstep.evaluation.lm_eval.denoiser_lm import DenoiserLM
from halfstep.run.errors import UserError
from halfstep.samplers.sampler import Sampler


def requests(*arguments):
    return [SimpleNamespace(args=argument) for argument in arguments]


@pytest.fixture
def make_lm(tokenizer):
    def make(logits_at, tokenizer=tokenizer, **changes):
        settings = {"max_length": 16, "mask_token_id": tokenizer.mask_token_id, "num_draws": 8}
        settings |= {"batch_size": 3, "seed": 0, "device": torch.device("cpu")}
        return DenoiserLM(logits_at, tokenizer, **{**settings, **changes})

    return make


@pytest.fixture
def neighbours(tokenizer):
    """A denoiser that looks at the tokens left and right, masked or not."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(len(tokenizer), len(tokenizer), generator=generator) for _ in range(2))

    def logits_at(xt, at):
        return left[xt.roll(1, dims=1)[at]] + right[xt.roll(-1, dims=1)[at]]

    return logits_at


@pytest.fixture
def alone(tokenizer):
    """A denoiser that looks at nothing, and the log-probability it gives a text."""
    logits = torch.randn(len(tokenizer), generator=torch.Generator().manual_seed(0))
    clean = torch.arange(len(tokenizer)) != tokenizer.mask_token_id
    log_p = logits.double().masked_fill(~clean, -math.inf).log_softmax(-1)

    def logits_at(xt, at):
        assert (xt[:, 0] == tokenizer.bos_token_id).all()
        assert (xt[:, -1] == tokenizer.eos_token_id).all()
        assert xt.shape[1] <= 16
        return logits.expand(int(at.sum()), -1)

    return logits_at, lambda text: log_p[tokenizer.encode(text)].sum().item()


def test_drawn_likelihoods_have_the_enumerated_mean(make_lm, neighbours):
    pair = ("the cat", " saw a red bird")
    ((exact, is_greedy),) = make_lm(neighbours, num_draws=15).loglikelihood(requests(pair), disable_tqdm=True)
    values, errors = [], []
    for seed in range(300):
        lm = make_lm(neighbours, num_draws=6, seed=seed)
        ((value, greedy),) = lm.loglikelihood(requests(pair), disable_tqdm=True)
        assert greedy == is_greedy
        values.append(value)
        errors += lm.standard_errors
    values, errors = torch.tensor(values), torch.tensor(errors)
    # Five standard errors: a false alarm of 6e-7 if the seeds were free.
    assert values.std() > 0.05
    assert abs(values.mean() - exact) < 5 * values.std() / math.sqrt(300)
    # Six draws tell their variance to a third, 300 times six to a few per cent; slopes fitted to five points add some.
    assert (errors**2).mean().sqrt().item() == pytest.approx(values.std().item(), rel=0.25)


def test_exact_where_nothing_depends_on_context(make_lm, alone):
    logits_at, log_p = alone
    lm = make_lm(logits_at, num_draws=4)
    pairs = [("the cat", " saw a red bird"), ("", "a dog ran"), ("a", " cat")]
    answers = lm.loglikelihood(requests(*pairs), disable_tqdm=True)
    assert [value for value, _ in answers] == pytest.approx([log_p(text) for _, text in pairs], rel=1e-6)
    told = lm.monte_carlo()
    # Float32 logits of one row or several may differ in the last bit.
    assert told.pop("mean_standard_error") == pytest.approx(0, abs=1e-6)
    # One token has one subset, no more than the draws; of the others the error may be 0 or the last bit.
    assert told.pop("num_exact") >= 1
    assert told == {"num_draws": 4, "seed": 0, "num_log_likelihoods": 3}
    assert lm.get_model_info()["monte_carlo"]["num_log_likelihoods"] == 3


def test_one_draw_tells_no_error(make_lm, neighbours):
    lm = make_lm(neighbours, num_draws=1)
    lm.loglikelihood(requests(("the", " cat"), ("the", " cat saw")), disable_tqdm=True)
    assert lm.standard_errors == [0.0, None]
    assert lm.monte_carlo()["mean_standard_error"] is None


@pytest.mark.parametrize("num_words", [1, 13, 14, 40])
def test_rolling_counts_every_token_of_a_long_text_once(make_lm, alone, num_words):
    logits_at, log_p = alone
    text = " ".join(["the cat saw a red dog", "a bird ran to the house"] * 4).split()[:num_words]
    lm = make_lm(logits_at)
    (value,) = lm.loglikelihood_rolling(requests((" ".join(text),)), disable_tqdm=True)
    assert value == pytest.approx(log_p(" ".join(text)), rel=1e-6)
    assert len(lm.standard_errors) == 1


def test_rolling_windows_see_the_token_before_them(make_lm, tokenizer):
    seen = []

    def logits_at(xt, at):
        seen.extend((row.tolist(), mask.tolist()) for row, mask in zip(xt, at, strict=True))
        return torch.zeros(int(at.sum()), len(tokenizer))

    words = ["the", "cat", "saw", "a", "dog"]
    make_lm(logits_at, max_length=6, num_draws=7).loglikelihood_rolling(requests((" ".join(words),)), disable_tqdm=True)
    bos, eos, mask = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.mask_token_id
    the, cat, saw = tokenizer.encode("the cat saw")
    assert ([bos, mask, mask, mask, eos], [False, True, True, True, False]) in seen
    # Five tokens in windows of three: the last has two to judge, and room for two before them.
    assert ([bos, cat, saw, mask, mask, eos], [False, False, False, True, True, False]) in seen
    assert not any(the in row for row, _ in seen[-3:])


def test_an_empty_text_is_certain(make_lm, alone):
    assert make_lm(alone[0]).loglikelihood_rolling(requests(("",)), disable_tqdm=True) == [0.0]


def always(tokenizer, *words):
    """A denoiser that says a word by position, with near certainty."""
    ids = torch.tensor([tokenizer.convert_tokens_to_ids(word) for word in words])

    def logits_at(xt, at):
        position = at.nonzero()[:, 1]
        logits = torch.full((len(position), len(tokenizer)), -50.0)
        return logits.scatter(1, ids[position % len(ids)][:, None], 0.0)

    return logits_at


def test_generates_up_to_the_stop_or_the_end_of_the_document(make_lm, tokenizer):
    lm = make_lm(always(tokenizer, "▁cat", "▁dog", "▁bird", "▁red"), sampler=Sampler("ancestral", {"num_steps": 2}))
    settings = {"until": ["red"], "max_gen_toks": 8}
    # After BOS and two words comes position 3.
    assert lm.generate_until(requests(("the a", settings)), disable_tqdm=True) == [""]
    assert lm.generate_until(requests(("the", settings)), disable_tqdm=True) == ["bird "]
    # The earliest of several counts.
    several = {"until": ["dog", "red", ""], "max_gen_toks": 8}
    assert lm.generate_until(requests(("the", several)), disable_tqdm=True) == ["bird "]
    ended = make_lm(always(tokenizer, "▁cat", "▁dog", "▁bird", "<eos>"), sampler=Sampler("ancestral", {"num_steps": 2}))
    assert ended.generate_until(requests(("", settings)), disable_tqdm=True) == ["dog bird"]


TEMPLATE = (
    "{% for m in messages %}<bos>{{ m.role }} {{ m.content }}<end>{% endfor %}{{ '<bos>cat' if add_generation_prompt }}"
)


@pytest.fixture
def chat(tokenizer):
    """The tokenizer with a chat template."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_a_context_of_a_chat_template_is_read_as_it_stands(make_lm, chat):
    seen = []

    def logits_at(xt, at):
        seen.extend(xt.tolist())
        position = at.nonzero()[:, 1]
        answer = torch.tensor(chat.convert_tokens_to_ids(["▁dog", "▁bird", "<end>", "▁red"]))
        logits = torch.full((len(position), len(chat)), -50.0)
        return logits.scatter(1, answer[position % 4][:, None], 0.0)

    lm = make_lm(logits_at, chat, sampler=Sampler("ancestral", {"num_steps": 1}))
    context = lm.apply_chat_template([{"role": "the", "content": "cat saw"}])
    assert context == "<bos>the cat saw<end><bos>cat"
    given = ["<bos>", "▁the", "▁cat", "▁saw", "<end>", "<bos>", "▁cat"]
    mask = chat.mask_token
    # Positions 7 to 9 are red, dog, bird.
    answered = lm.generate_until(requests((context, {"until": [], "max_gen_toks": 6})), disable_tqdm=True)
    assert answered == ["red dog bird"]
    assert chat.convert_ids_to_tokens(seen[0]) == [*given, *[mask] * 6]
    lm.loglikelihood(requests((context, " dog")), disable_tqdm=True)
    assert chat.convert_ids_to_tokens(seen[1]) == [*given, mask, "<eos>"]
    # A prefix of the answer leaves its message open.
    opened = [{"role": "the", "content": "cat"}, {"role": "a", "content": "red"}]
    assert lm.apply_chat_template(opened, add_generation_prompt=False) == "<bos>the cat<end><bos>a red"


def test_no_template_or_one_of_many_is_refused(make_lm, alone, chat):
    with pytest.raises(UserError, match="has no chat template: leave --apply_chat_template out"):
        make_lm(alone[0]).chat_template(True)
    lm = make_lm(alone[0], chat)
    assert lm.chat_template(True) == TEMPLATE
    assert lm.chat_template(False) is None
    with pytest.raises(UserError, match="--apply_chat_template is 'rag': give it without a name"):
        lm.chat_template("rag")
    chat.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(UserError, match="refuses"):
        lm.apply_chat_template([{"role": "user", "content": "cat"}])


def test_long_prompts_lose_their_beginning(make_lm, tokenizer):
    lm = make_lm(always(tokenizer, "▁cat"), sampler=Sampler("ancestral", {"num_steps": 1}))
    (text,) = lm.generate_until(requests(("dog " * 30, {"until": [], "max_gen_toks": 4})), disable_tqdm=True)
    assert text == "cat cat cat cat"
    assert lm.num_truncated == 1


@pytest.mark.parametrize(
    ("num_steps", "settings", "message"),
    [
        (None, {"max_gen_toks": 4}, "num_steps=8"),
        (2, {}, "max_gen_toks is 256"),
        (2, {"max_gen_toks": 16}, "max_gen_toks is 16"),
        (2, {"max_gen_toks": 4, "do_sample": True, "temperature": 0.7}, "temperature"),
    ],
)
def test_what_cannot_be_generated_is_refused(make_lm, alone, num_steps, settings, message):
    sampler = num_steps and Sampler("ancestral", {"num_steps": num_steps})
    with pytest.raises(UserError, match=message):
        make_lm(alone[0], sampler=sampler).generate_until(requests(("the", settings)), disable_tqdm=True)


def test_broken_weights_are_an_error(make_lm, tokenizer):
    def broken(xt, at):
        return torch.full((int(at.sum()), len(tokenizer)), math.nan)

    with pytest.raises(UserError, match=r"NaN for ' cat' after 'the'"):
        make_lm(broken).loglikelihood(requests(("the", " cat")), disable_tqdm=True)
    with pytest.raises(UserError, match="NaN"):
        make_lm(broken).loglikelihood_rolling(requests(("the cat",)), disable_tqdm=True)


def test_nothing_and_too_much_to_judge(make_lm, alone):
    with pytest.raises(UserError, match="no tokens of its own"):
        make_lm(alone[0]).loglikelihood(requests(("the", "")), disable_tqdm=True)
    with pytest.raises(UserError, match=r"has 15 tokens, more than fit into the 15 that are read"):
        make_lm(alone[0]).loglikelihood(requests(("the", " cat" * 15)), disable_tqdm=True)


def test_white_space_at_the_end_of_the_context_goes_to_the_continuation(tokenizer):
    assert encode_pair(tokenizer, "the cat ", "saw", 16) == encode_pair(tokenizer, "the cat", " saw", 16)
    assert encode_pair(tokenizer, " ", "saw", 16)[0] == [tokenizer.bos_token_id]


def test_no_requests(make_lm, alone):
    lm = make_lm(alone[0])
    assert lm.loglikelihood([], disable_tqdm=True) == []
    assert lm.monte_carlo()["mean_standard_error"] is None
