"""The sampler against exact enumeration on a tiny vocabulary, and what it promises about work and repetition."""

import itertools
import math
from collections import Counter
from dataclasses import FrozenInstanceError

import pytest
import torch
from scipy.stats import chisquare

from halfstep.diffusion.posterior import posterior_probs
from halfstep.diffusion.subs import subs_log_probs
from halfstep.samplers.adjust import keep_top_k, keep_top_p, with_temperature
from halfstep.samplers.ancestral import planned_unmask_steps, sample, unmask_steps
from halfstep.samplers.autoregressive import sample_autoregressive
from halfstep.samplers.base import Uniforms, fill
from halfstep.samplers.confidence import Confidence

VOCAB, MASK, LENGTH = 3, 2, 3


class TableDenoiser:
    """A denoiser with arbitrary but fixed logits for every partly masked sequence."""

    def __init__(self, vocab_size: int = VOCAB, length: int = LENGTH) -> None:
        generator = torch.Generator().manual_seed(11)
        self.table = {
            xt: 1.5 * torch.randn(length, vocab_size, dtype=torch.float64, generator=generator)
            for xt in itertools.product(range(vocab_size), repeat=length)
        }
        self.num_rows = 0

    def full(self, xt: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.table[tuple(row)] for row in xt.tolist()])

    def logits_at(self, xt: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        self.num_rows += len(xt)
        return self.full(xt)[at]


def exact_distribution(
    denoiser: TableDenoiser, x_init: tuple[int, ...], num_steps: int, vocab_size: int
) -> dict[tuple[int, ...], float]:
    """Probabilities of whole sequences, by going through all trajectories of the plain ancestral sampler."""
    current = {x_init: 1.0}
    for step in range(num_steps):
        t, s = 1 - step / num_steps, 1 - (step + 1) / num_steps
        after: Counter[tuple[int, ...]] = Counter()
        for xt, probability in current.items():
            tokens = torch.tensor([xt])
            p_x0 = subs_log_probs(denoiser.full(tokens), tokens, vocab_size - 1).exp()
            rows = posterior_probs(
                p_x0, tokens, torch.tensor([1.0 - t]).double(), torch.tensor([1.0 - s]).double(), vocab_size - 1
            )[0]
            outcomes = [[(token, p) for token, p in enumerate(row) if p > 0] for row in rows.tolist()]
            for outcome in itertools.product(*outcomes):
                after[tuple(token for token, _ in outcome)] += probability * math.prod(p for _, p in outcome)
        current = after
    return current


@pytest.mark.parametrize(
    ("vocab_size", "x_init"), [(3, (2, 2, 2)), (3, (2, 1, 2)), (4, (3, 3)), (2, (1, 1, 1)), (3, (2, 2, 0, 2, 2))]
)
@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_samples_have_the_exact_distribution_over_sequences(
    num_steps: int, vocab_size: int, x_init: tuple[int, ...]
) -> None:
    """Chi-square at a false-alarm rate of 1e-4 for each of fifteen cases, for a fixed seed."""
    denoiser = TableDenoiser(vocab_size, len(x_init))
    num_samples = 4000
    u_time, u_token = Uniforms(5, range(num_samples), len(x_init)).first
    samples = sample(
        denoiser.logits_at,
        torch.tensor([x_init]).repeat(num_samples, 1),
        num_steps=num_steps,
        mask_token_id=vocab_size - 1,
        u_time=u_time,
        u_token=u_token,
    )
    exact = exact_distribution(denoiser, x_init, num_steps, vocab_size)
    assert sum(exact.values()) == pytest.approx(1)
    counts = Counter(map(tuple, samples.tokens.tolist()))
    assert counts.keys() <= exact.keys()
    # Outcomes that are due less than five times go together, as the chi-square approximation wants it.
    frequent = [xs for xs, p in exact.items() if p * num_samples >= 5]
    observed = [counts[xs] for xs in frequent]
    expected = [exact[xs] * num_samples for xs in frequent]
    if len(frequent) < len(exact):
        observed.append(num_samples - sum(observed))
        expected.append(num_samples - sum(expected))
    assert len(exact) == 1 or chisquare(observed, expected).pvalue > 1e-4


def test_the_network_is_asked_only_where_something_unmasks() -> None:
    denoiser = TableDenoiser()
    u_time, u_token = Uniforms(0, range(20), LENGTH).first
    x_init = torch.full((20, LENGTH), MASK)
    samples = sample(denoiser.logits_at, x_init, num_steps=100, mask_token_id=MASK, u_time=u_time, u_token=u_token)
    distinct = torch.tensor([len(set(row)) for row in unmask_steps(u_time, 100).tolist()])
    assert (samples.nfe == distinct).all()
    assert denoiser.num_rows == int(distinct.sum())
    assert (x_init == MASK).all()


def test_given_tokens_stay_and_need_no_evaluation() -> None:
    denoiser = TableDenoiser()
    u_time, u_token = Uniforms(0, [0], LENGTH).first
    x_init = torch.tensor([[1, 0, 1]])
    samples = sample(denoiser.logits_at, x_init, num_steps=4, mask_token_id=MASK, u_time=u_time, u_token=u_token)
    assert samples.tokens.tolist() == [[1, 0, 1]]
    assert samples.nfe.tolist() == [0]
    assert samples.unmask_step.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("num_steps", [1, 3, 8, 1000])
def test_every_step_is_equally_likely_and_the_ends_are_in_range(num_steps: int) -> None:
    u = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert unmask_steps(u, num_steps).tolist() == [num_steps, 1]
    grid = (torch.arange(5 * num_steps, dtype=torch.float64) + 0.5) / (5 * num_steps)
    assert unmask_steps(grid, num_steps).bincount()[1:].tolist() == [5] * num_steps


def test_a_sample_depends_on_its_seed_and_index_only() -> None:
    together = Uniforms(3, [4, 5, 6], 10).first
    alone = Uniforms(3, [5], 10).first
    for batch, single in zip(together, alone, strict=True):
        assert torch.equal(batch[1], single[0])
    assert not torch.equal(Uniforms(4, [5], 10).first[0], alone[0])


def test_each_step_is_shown() -> None:
    seen = []
    u_time, u_token = Uniforms(0, [0], LENGTH).first
    sample(
        TableDenoiser().logits_at,
        torch.full((1, LENGTH), MASK),
        num_steps=4,
        mask_token_id=MASK,
        u_time=u_time,
        u_token=u_token,
        on_step=lambda step, tokens: seen.append((step, int((tokens == MASK).sum()))),
    )
    assert [step for step, _ in seen] == [1, 2, 3, 4]
    assert seen[-1][1] == 0


def test_no_steps_and_shapes_that_differ_are_refused() -> None:
    u = torch.zeros(1, LENGTH, dtype=torch.float64)
    with pytest.raises(ValueError, match="num_steps is 0"):
        unmask_steps(u, 0)
    shapes = [((2, 2), (1, 3), (1, 3)), ((1, 2), (1, 3), (1, 3)), ((1, 3), (1, 3), (1, 2)), ((1, 3), (1, 3), (1, 4))]
    for x_shape, time_shape, token_shape in shapes:
        with pytest.raises(ValueError, match="x_init has shape"):
            sample(
                TableDenoiser().logits_at,
                torch.zeros(x_shape).long(),
                num_steps=1,
                mask_token_id=MASK,
                u_time=torch.zeros(time_shape, dtype=torch.float64),
                u_token=torch.zeros(token_shape, dtype=torch.float64),
            )


def test_tokens_on_either_side_of_the_mask_are_kept() -> None:
    u = torch.full((1, LENGTH), 0.9, dtype=torch.float64)
    x_init = torch.tensor([[0, 1, 2]])
    samples = sample(TableDenoiser().logits_at, x_init, num_steps=2, mask_token_id=1, u_time=u, u_token=u)
    assert samples.tokens[0, [0, 2]].tolist() == [0, 2]
    assert samples.tokens[0, 1] in (0, 2)
    assert samples.unmask_step.tolist() == [[0, 1, 0]]


def _constant_logits(tokens: torch.Tensor, state: int | None) -> tuple[torch.Tensor, int]:
    """Token 0 with certainty; the state counts the tokens seen."""
    return torch.tensor([[50.0, 0.0, 0.0]]).expand(len(tokens), 3), (state or 0) + tokens.shape[1]


def test_autoregressive_samples_keep_their_prefix_and_count_from_its_end() -> None:
    seen = []

    def next_logits(tokens: torch.Tensor, state: int | None) -> tuple[torch.Tensor, int]:
        logits, state = _constant_logits(tokens, state)
        seen.append(state)
        return logits, state

    u = torch.full((2, 5), 0.5, dtype=torch.float64)
    prefix = torch.tensor([[1, 1], [0, 1]])
    samples = sample_autoregressive(next_logits, prefix, length=5, mask_token_id=MASK, u_token=u)
    assert samples.tokens.tolist() == [[1, 1, 0, 0, 0], [0, 1, 0, 0, 0]]
    assert samples.unmask_step.tolist() == [[0, 0, 1, 2, 3]] * 2
    assert samples.nfe.tolist() == [3, 3]
    assert seen == [2, 3, 4]
    # A prefix that is already as long as the text is the text.
    whole = sample_autoregressive(next_logits, prefix, length=2, mask_token_id=MASK, u_token=u[:, :2])
    assert torch.equal(whole.tokens, prefix)
    assert whole.nfe.tolist() == [0, 0]


@pytest.mark.parametrize(("prefix_length", "length", "u_length"), [(0, 3, 3), (4, 3, 3), (1, 3, 2), (1, 3, 4)])
def test_a_prefix_that_does_not_fit_is_refused(prefix_length: int, length: int, u_length: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        sample_autoregressive(
            _constant_logits,
            torch.zeros(1, prefix_length).long(),
            length=length,
            mask_token_id=MASK,
            u_token=torch.zeros(1, u_length, dtype=torch.float64),
        )


def test_sampling_records_no_gradient_and_samples_do_not_change() -> None:
    weight = torch.zeros(VOCAB, requires_grad=True)
    are_recorded = []

    def logits_at(xt: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        logits = weight.expand(int(at.sum()), VOCAB)
        are_recorded.append((logits * 2).requires_grad)
        return logits

    def next_logits(tokens: torch.Tensor, state: None) -> tuple[torch.Tensor, None]:
        return logits_at(tokens, torch.ones(len(tokens), dtype=torch.bool)), None

    u = torch.full((1, 3), 0.5, dtype=torch.float64)
    x_init = torch.full((1, 3), MASK)
    samples = sample(logits_at, x_init, num_steps=1, mask_token_id=MASK, u_time=u, u_token=u)
    sample_autoregressive(next_logits, torch.zeros(1, 1).long(), length=3, mask_token_id=MASK, u_token=u)
    assert are_recorded == [False] * 3
    with pytest.raises(FrozenInstanceError):
        samples.tokens = x_init  # type: ignore[misc]


def test_autoregressive_samples_have_the_exact_distribution() -> None:
    """A bigram model over two tokens: chi-square over the sequences, false-alarm rate 1e-4."""
    bigram = torch.tensor([[0.2, 0.8, 0.0], [0.7, 0.3, 0.0]], dtype=torch.float64)

    def next_logits(tokens: torch.Tensor, state: int | None) -> tuple[torch.Tensor, int]:
        assert tokens.shape[1] == 1
        logits = bigram[tokens[:, -1]].log()
        logits[:, MASK] = 50.0
        return logits, (state or 0) + 1

    _, u_token = Uniforms(1, range(3000), 3).first
    samples = sample_autoregressive(
        next_logits, torch.zeros(3000, 1).long(), length=3, mask_token_id=MASK, u_token=u_token
    )
    counts = Counter(map(tuple, samples.tokens.tolist()))
    sequences = [(0, a, b) for a in (0, 1) for b in (0, 1)]
    expected = [3000 * float(bigram[0, a] * bigram[a, b]) for _, a, b in sequences]
    assert chisquare([counts[x] for x in sequences], expected).pvalue > 1e-4
    assert samples.nfe.tolist() == [2] * 3000
    assert samples.unmask_step[0].tolist() == [0, 1, 2]


def test_even_steps_unmask_equally_many_and_in_an_order_left_to_chance() -> None:
    u_time, _ = Uniforms(0, range(300), 8).first
    is_masked = torch.ones(300, 8, dtype=torch.bool)
    is_masked[:, 2] = False
    steps = planned_unmask_steps(u_time, is_masked, 7)
    assert (steps[:, 2] == 0).all()
    assert (steps[is_masked].view(300, 7).sort(dim=1).values == torch.arange(1, 8)).all()
    # 7 positions in 3 steps, the first of which takes the odd one; 12 into 4 leave no odd one.
    assert planned_unmask_steps(u_time, is_masked, 3)[0].bincount().tolist() == [1, 3, 2, 2]
    u_time, _ = Uniforms(1, range(1), 12).first
    assert planned_unmask_steps(u_time, u_time > -1, 4)[0].bincount()[1:].tolist() == [3, 3, 3, 3]
    # Larger numbers come first, as in unmask_steps; every position is first equally often: 300 / 7 each, five sigma.
    first = (steps == 1).sum(dim=0)
    assert (first[is_masked[0]] - 300 / 7).abs().max() < 5 * math.sqrt(300 / 7)
    with pytest.raises(ValueError, match="num_steps is 0"):
        planned_unmask_steps(u_time, u_time > -1, 0)


def test_even_steps_evaluate_every_sequence_in_every_step() -> None:
    denoiser = TableDenoiser()
    u_time, u_token = Uniforms(0, range(20), LENGTH).first
    x_init = torch.full((20, LENGTH), MASK)
    steps = planned_unmask_steps(u_time, x_init == MASK, LENGTH)
    samples = sample(
        denoiser.logits_at,
        x_init,
        num_steps=LENGTH,
        mask_token_id=MASK,
        u_time=u_time,
        u_token=u_token,
        unmask_step=steps,
    )
    assert torch.equal(samples.unmask_step, steps)
    assert samples.nfe.tolist() == [LENGTH] * 20


def test_the_nucleus_is_the_smallest_set_of_likely_tokens() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3, 0.0], [0.97, 0.01, 0.01, 0.01, 0.0]]).double().log()

    def kept(top_p: float) -> list[list[int]]:
        return [row.nonzero()[:, 0].tolist() for row in keep_top_p(logits, top_p) > -torch.inf]

    assert kept(0.39) == [[1], [0]]
    assert kept(0.41) == [[1, 3], [0]]
    assert kept(0.71) == [[1, 2, 3], [0]]
    assert kept(1.0) == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert torch.equal(keep_top_p(logits, 0.41)[0, 3], logits[0, 3])
    for top_p in (0.0, 1.1):
        with pytest.raises(ValueError, match="top_p is"):
            keep_top_p(logits, top_p)


def test_top_k_keeps_k_and_temperature_sharpens() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3, 0.0]]).double().log()
    assert (keep_top_k(logits, 2)[0] > -torch.inf).tolist() == [False, True, False, True, False]
    assert torch.equal(keep_top_k(logits, 9), logits)
    squared = torch.tensor([[0.01, 0.16, 0.04, 0.09, 0.0]]).double()
    torch.testing.assert_close(with_temperature(logits, 0.5).softmax(-1), squared / squared.sum())
    with pytest.raises(ValueError, match="top_k is 0"):
        keep_top_k(logits, 0)
    with pytest.raises(ValueError, match="temperature is 0"):
        with_temperature(logits, 0)


@pytest.mark.parametrize(
    "adjust", [lambda logits: keep_top_k(logits, 1), lambda logits: with_temperature(logits, 1e-3)]
)
def test_top_1_and_a_temperature_near_zero_are_greedy(adjust) -> None:
    """Whatever is drawn; in three steps of one position each the likeliest token is known."""
    denoiser = TableDenoiser()
    x_init = torch.full((50, LENGTH), MASK)
    u_time, u_token = Uniforms(2, range(50), LENGTH).first
    steps = planned_unmask_steps(u_time, x_init == MASK, LENGTH)
    samples = sample(
        denoiser.logits_at,
        x_init,
        num_steps=LENGTH,
        mask_token_id=MASK,
        u_time=u_time,
        u_token=u_token,
        unmask_step=steps,
        adjust=adjust,
    )
    expected = x_init.clone()
    for step in range(1, LENGTH + 1):
        likeliest = denoiser.full(expected)[..., :MASK].argmax(dim=-1)
        expected = torch.where(steps == step, likeliest, expected)
    assert torch.equal(samples.tokens, expected)


def test_confidence_decodes_all_at_once_or_the_surest_first() -> None:
    denoiser = TableDenoiser()
    x_init = torch.full((50, LENGTH), MASK)
    x_init[:25, 1] = 0
    u_time, u_token = Uniforms(2, range(50), LENGTH).first
    options = {"mask_token_id": MASK, "u_token": u_token}
    at_once = fill(denoiser.logits_at, x_init, Confidence(MASK, 0.0), **options)
    one_step = sample(denoiser.logits_at, x_init, num_steps=1, u_time=u_time, **options)
    assert torch.equal(at_once.tokens, one_step.tokens)
    assert at_once.nfe.tolist() == [1] * 50

    one_by_one = fill(denoiser.logits_at, x_init, Confidence(MASK, 1.0), **options)
    assert one_by_one.nfe.tolist() == [2] * 25 + [3] * 25
    assert (one_by_one.unmask_step[25:].sort(dim=1).values == torch.arange(1, 4)).all()
    p = subs_log_probs(denoiser.full(x_init), x_init, MASK).exp().amax(-1)
    first = p.masked_fill(x_init != MASK, -1).argmax(dim=1)
    assert torch.equal((one_by_one.unmask_step == 1).int().argmax(dim=1), first)
    # In between: exactly what is sure enough goes first.
    threshold = float(p[-1].sort().values[1])
    some = fill(denoiser.logits_at, x_init, Confidence(MASK, threshold), **options)
    assert torch.equal(some.unmask_step[25:] == 1, p[25:] >= threshold)
    assert int((some.unmask_step[-1] == 1).sum()) == 2
    with pytest.raises(ValueError, match="x_init has shape"):
        fill(denoiser.logits_at, x_init[:2], Confidence(MASK, 1.0), **options)


def test_confidence_shows_its_steps_and_adjusts_what_it_draws() -> None:
    seen = []
    x_init = torch.full((1, LENGTH), MASK)
    samples = fill(
        TableDenoiser().logits_at,
        x_init,
        Confidence(MASK, 1.5),
        mask_token_id=MASK,
        u_token=torch.full((1, LENGTH), 1 - 2**-53, dtype=torch.float64),
        adjust=lambda logits: keep_top_k(logits, 1),
        on_step=lambda step, tokens: seen.append((step, int((tokens == MASK).sum()))),
    )
    assert seen == [(1, 2), (2, 1), (3, 0)]
    assert (samples.tokens != MASK).all()
