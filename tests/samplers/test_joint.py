"""Tokens drawn together: exact for the joint head's distribution, however many passes it takes."""

import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from tests.model.test_joint import MASK, VOCAB, conditionals, joint_model, log_probs

from halfstep.model.joint import JointModel
from halfstep.run.errors import UserError
from halfstep.samplers.base import Asked, Policy, Samples, Uniforms
from halfstep.samplers.joint import DrawTogether
from halfstep.samplers.sampler import sampler_of

AT_ONCE = {"num_steps": 1, "score": "entropy", "noise": 0.0, "counts": "even"}
SPECULATIVE = {**AT_ONCE, "drawing": "speculative"}


def draw(model: JointModel, x_init: torch.Tensor, name: str = "ordered", *, first: int = 0, **values: Any) -> Samples:
    values = {key: value for key, value in values.items() if key != "options"} | values.get("options", {})
    options = {key: values.pop(key) for key in ("adjust", "likeliest") if key in values}
    uniforms = Uniforms(7, range(first, first + len(x_init)), x_init.shape[1])
    return sampler_of(name, values, "here").sample(model, x_init, mask_token_id=MASK, uniforms=uniforms, **options)


@pytest.mark.parametrize("drawing", ["sequential", "speculative"])
@pytest.mark.parametrize("x_init", [(MASK, MASK, MASK), (MASK, 1, MASK, MASK, 0)])
def test_texts_have_the_heads_distribution_over_sequences(x_init: tuple[int, ...], drawing: str) -> None:
    """Chi-square at a false-alarm rate of 1e-4 for each of four cases, for a fixed seed."""
    model, num_samples = joint_model("left_to_right"), 4000
    drawn = draw(model, torch.tensor([x_init]).repeat(num_samples, 1), **AT_ONCE, drawing=drawing)
    outcomes = torch.tensor(list(itertools.product(range(VOCAB - 1), repeat=len(x_init))))
    given = torch.tensor(x_init)
    x = outcomes[((outcomes == given) | (given == MASK)).all(dim=1)]
    expected = conditionals(model, given.expand(len(x), -1), x, torch.zeros(x.shape)).sum(dim=1).exp() * num_samples
    counts = Counter(map(tuple, drawn.tokens.tolist()))
    observed = torch.tensor([counts[tuple(row)] for row in x.tolist()])
    assert observed.sum() == num_samples
    # Outcomes that are due less than five times go together, as the chi-square approximation wants it.
    rare = expected < 5
    observed, expected = (
        torch.cat([n[~rare], n[rare].sum()[None]])[: None if rare.any() else -1] for n in (observed, expected)
    )
    assert chisquare(observed, expected * (num_samples / expected.sum())).pvalue > 1e-4


@pytest.mark.parametrize("name", ["ordered", "ancestral", "entropy_bound", "remask"])
@pytest.mark.parametrize("max_passes", [None, 1, 2])
def test_speculation_changes_no_token_and_saves_passes(name: str, max_passes: int | None) -> None:
    values = {
        "ordered": {**AT_ONCE, "num_steps": 2, "noise": 1.0}, "ancestral": {"num_steps": 2},
        "entropy_bound": {"gamma": 9.0}, "remask": {"num_steps": 4, "schedule": "conf", "eta": 1.0},
    }[name]  # fmt: skip
    model, x_init = joint_model(), torch.full((200, 5), MASK)
    one_by_one, speculative = (
        draw(model, x_init, name, **values, drawing=drawing, head_passes=max_passes)
        for drawing in ("sequential", "speculative")
    )
    assert (speculative.tokens != MASK).all()
    if max_passes is None:
        assert torch.equal(one_by_one.tokens, speculative.tokens)
        assert torch.equal(one_by_one.nfe, speculative.nfe)
        assert (speculative.head_passes <= one_by_one.head_passes).all()
        assert speculative.head_passes.sum() < 0.8 * one_by_one.head_passes.sum()
    else:
        # A pass settles one position at least, so it saves evaluations.
        assert (speculative.head_passes <= max_passes * speculative.nfe).all()
        assert speculative.nfe.sum() <= one_by_one.nfe.sum()


def test_one_by_one_a_pass_is_made_for_each_token_but_the_first() -> None:
    x_init = torch.tensor([[MASK] * 5, [MASK, 0, MASK, 1, 2], [0, 1, MASK, 2, 0], [0, 1, 2, 0, 1]])
    drawn = draw(joint_model(), x_init, **AT_ONCE, drawing="sequential")
    assert drawn.head_passes.tolist() == [4, 1, 0, 0]
    assert drawn.nfe.tolist() == [1, 1, 1, 0]


def test_passes_that_are_limited_settle_what_no_limit_does() -> None:
    """From left to right all is asked for at first: what the first passes settle is the beginning of the whole text."""
    model, x_init = joint_model("left_to_right"), torch.full((300, 5), MASK)
    whole = draw(model, x_init, **SPECULATIVE)
    for most in (1, 2, 3):
        limited = draw(model, x_init, **SPECULATIVE, head_passes=most)
        first = limited.unmask_step == 1
        assert torch.equal(limited.tokens[first], whole.tokens[first])
        assert (first.sum(dim=1) >= most + 1).all()
        assert (first.int().diff(dim=1) <= 0).all()
        assert most > 2 or not first.all()


def test_an_untrained_head_draws_what_independent_draws_are() -> None:
    model, x_init = joint_model(trained=False), torch.full((50, 5), MASK)
    for name, values in (("ordered", {**AT_ONCE, "num_steps": 2}), ("ancestral", {"num_steps": 3})):
        alone, together = (draw(model, x_init, name, **values, drawing=d) for d in ("independent", "speculative"))
        assert torch.equal(alone.tokens, together.tokens)
        assert (alone.head_passes == 0).all()
        assert (together.head_passes <= together.nfe).all()


@pytest.mark.parametrize("drawing", ["sequential", "speculative", "parallel"])
def test_a_text_does_not_depend_on_the_batch(drawing: str) -> None:
    model, x_init = joint_model(), torch.full((6, 5), MASK)
    values = {**AT_ONCE, "num_steps": 2, "noise": 1.0, "drawing": drawing, "head_passes": 2, "block_length": 3}
    together = draw(model, x_init, **values)
    for index in range(6):
        alone = draw(model, x_init[:1], first=index, **values)
        assert torch.equal(alone.tokens[0], together.tokens[index])
        assert alone.head_passes[0] == together.head_passes[index]


def test_the_likeliest_tokens_are_chosen_one_after_the_other() -> None:
    model, xt = joint_model("left_to_right"), torch.full((1, 5), MASK)
    at, x = xt == MASK, torch.zeros(1, 5, dtype=torch.int64)
    arrangement = model.arrange(at, torch.zeros(1, 5))
    for place in range(5):
        hidden = model.conditional(model.hidden_at(xt, at), x, arrangement)
        x[0, place] = log_probs(model, hidden)[0, place].argmax()
    for drawing in ("sequential", "speculative"):
        assert torch.equal(draw(model, xt, **AT_ONCE, drawing=drawing, likeliest=True).tokens, x)


def test_parallel_draws_write_all_that_is_asked_for_and_with_passes_enough_are_exact() -> None:
    model, x_init = joint_model(), torch.full((100, 5), MASK)
    exact = draw(model, x_init, **SPECULATIVE)
    changed = []
    for passes in (1, 2, 4):
        drawn = draw(model, x_init, **AT_ONCE, drawing="parallel", head_passes=passes)
        assert (drawn.nfe == 1).all()
        assert (drawn.tokens != MASK).all()
        changed.append(int((drawn.tokens != exact.tokens).any(dim=1).sum()))
    assert changed[0] > changed[1] > changed[2] == 0


class Fixed:
    """A model whose trunk and head have given distributions, whatever is drawn: hidden states are logits."""

    def __init__(self, p: list[float], q: list[float], num_rows: int) -> None:
        self.p, self.q = (torch.tensor(probabilities, dtype=torch.float64).log() for probabilities in (p, q))
        self.num_rows = num_rows

    def arrange(self, at: torch.Tensor, priority: torch.Tensor) -> Any:
        return JointModel.arrange(self, at, priority)  # type: ignore[arg-type]

    @property
    def joint_head(self) -> Any:
        return joint_model("left_to_right").joint_head

    def conditional(self, hidden: torch.Tensor, tokens: torch.Tensor, arrangement: Any) -> torch.Tensor:
        ordered = self.q.expand(*tokens.shape, -1).clone()
        ordered[:, 0] = self.p
        return ordered


@pytest.mark.parametrize(
    ("p", "q"),
    [
        ([0.5, 0.3, 0.2], [0.2, 0.2, 0.6]),
        ([0.5, 0.5, 0.0], [0.25, 0.25, 0.5]),
        ([0.9, 0.1, 0.0], [0.0, 0.0, 1.0]),
        ([0.25, 0.5, 0.25], [0.25, 0.5, 0.25]),
    ],
)
def test_one_number_gives_the_heads_distribution_and_the_draft_as_often_as_can_be(
    p: list[float], q: list[float]
) -> None:
    """Over a grid of the number's values, closed form: errors are of the grid's width."""
    num_rows = 20_000
    model = Fixed(p, q, num_rows)
    u = (torch.arange(num_rows, dtype=torch.float64) + 0.5) / num_rows
    asked = Asked(model.p.expand(2 * num_rows, -1), lambda rows: iter([rows]))
    writes = torch.ones(num_rows, 2, dtype=torch.bool)
    together = DrawTogether(model, "speculative", None)  # type: ignore[arg-type]
    written, tokens, _ = together(asked, None, writes, Policy(MASK), torch.stack([u, u], dim=1), False)
    assert written.all()
    drafts, drawn = tokens.view(-1, 2).unbind(1)
    for token, probability in enumerate(q):
        assert (drawn == token).double().mean().item() == pytest.approx(probability, abs=4 / num_rows)
    total_variation = sum(max(a - b, 0) for a, b in zip(p, q, strict=True))
    assert (drawn != drafts).double().mean().item() == pytest.approx(total_variation, abs=4 / num_rows)


def test_a_model_without_a_head_is_refused() -> None:
    x_init = torch.full((1, 5), MASK)
    with pytest.raises(UserError, match="the model has no joint head, by which drawing=speculative draws"):
        draw(joint_model().trunk, x_init, **SPECULATIVE)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"drawing": "both"}, "drawing of ordered is 'both'"),
        ({"head_passes": 2}, "head_passes is for a joint head, but drawing is independent"),
        ({"drawing": "speculative", "head_passes": 0}, "head_passes of ordered is 0"),
    ],
)
def test_settings_that_do_not_fit_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sampler_of("ordered", {**AT_ONCE, **values}, "here")
