"""Samplers that choose what to write: each against a slow version written from its formula, and at its limits."""

import itertools
import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from halfstep.diffusion.categorical import draw_categorical
from halfstep.samplers.ancestral import planned_unmask_steps
from halfstep.samplers.base import Samples, Uniforms
from halfstep.samplers.choices import entropy, sureness, written_by
from halfstep.samplers.remask import Remask, visible_shares
from halfstep.samplers.sampler import Sampler

VOCAB, MASK, LENGTH, NUM_SAMPLES = 5, 4, 6, 40

SETTINGS = {
    "ancestral": {"num_steps": 3, "counts": "cosine"},
    "ordered": {"num_steps": 3, "score": "margin", "noise": 1.0, "counts": "even"},
    "entropy_bound": {"gamma": 0.7},
    "confidence": {"threshold": 0.5},
    "factor": {"factor": 1.0},
    "klass": {"threshold": 0.4, "max_kl": 0.1, "history": 1},
    "remask": {"num_steps": 8, "schedule": "cap", "eta": 0.3},
}


def table_logits(xt: Tensor, at: Tensor) -> Tensor:
    """Logits that depend on the whole sequence, some of them nearly certain."""
    rows = []
    for row in xt.tolist():
        generator = torch.Generator().manual_seed(hash(tuple(row)) % 2**31)
        rows.append(4 * torch.randn(LENGTH, VOCAB, dtype=torch.float64, generator=generator))
    return torch.stack(rows)[at]


def masked(num_samples: int = NUM_SAMPLES) -> Tensor:
    x_init = torch.full((num_samples, LENGTH), MASK)
    x_init[: num_samples // 2, 2] = 1
    x_init[: num_samples // 4, 5] = 0
    return x_init


def drawn_by(name: str, x_init: Tensor, seed: int = 0, **values) -> Samples:
    uniforms = Uniforms(seed, range(len(x_init)), x_init.shape[1])
    return Sampler(name, values).sample(table_logits, x_init, mask_token_id=MASK, uniforms=uniforms)


Chooses = Callable[[int, dict[int, Tensor]], list[int]]
"""(step, p by masked position) -> the positions that are written."""


def slowly(x_init: Tensor, choose: Callable[[list[int], int], Chooses], seed: int = 0) -> list[list[int]]:
    """One sequence at a time, one position at a time; tokens by the same numbers."""
    texts = []
    for index, row in enumerate(x_init.tolist()):
        _, u_token = Uniforms(seed, [index], LENGTH).first
        chooses, step = choose(row, index), 0
        while MASK in row:
            step += 1
            positions = [i for i, token in enumerate(row) if token == MASK]
            xt = torch.tensor([row])
            logits = table_logits(xt, xt == MASK)
            logits[:, MASK] = -torch.inf
            by_position = dict(zip(positions, logits, strict=True))
            for i in chooses(step, {i: logits.softmax(-1) for i, logits in by_position.items()}):
                row[i] = int(draw_categorical(by_position[i][None], u_token[:, i]))
        texts.append(row)
    return texts


def entropy_of(p: Tensor) -> float:
    return -sum(x * math.log(x) for x in p.tolist() if x > 0)


def surest_first(p: dict[int, Tensor]) -> list[int]:
    return sorted(p, key=lambda i: -float(p[i].max()))


@pytest.mark.parametrize("gamma", [0.0, 0.4, 1.5])
@pytest.mark.parametrize("score", ["entropy", "confidence", "margin"])
def test_the_entropy_bound_is_that_of_the_paper(gamma: float, score: str) -> None:
    keys = {
        "entropy": entropy_of,
        "confidence": lambda p: -float(p.max()),
        "margin": lambda p: -float(p.sort().values[-1] - p.sort().values[-2]),
    }

    def choose(step: int, p: dict[int, Tensor]) -> list[int]:
        order = sorted(p, key=lambda i: keys[score](p[i]))
        chosen = order[:1]
        for n in range(2, len(order) + 1):
            entropies = [entropy_of(p[i]) for i in order[:n]]
            if sum(entropies) - max(entropies) <= gamma:
                chosen = order[:n]
        return chosen

    found = drawn_by("entropy_bound", masked(), gamma=gamma, score=score)
    assert found.tokens.tolist() == slowly(masked(), lambda row, index: choose)
    if gamma == 0:
        assert torch.equal(found.nfe, (masked() == MASK).sum(dim=1))


def test_positions_that_are_certain_are_written_beside_another_for_nothing() -> None:
    def logits_at(xt: Tensor, at: Tensor) -> Tensor:
        logits = torch.zeros(*xt.shape, VOCAB, dtype=torch.float64)
        logits[:, ::2, 0] = 1000.0
        return logits[at]

    x_init = torch.full((3, LENGTH), MASK)
    samples = Sampler("entropy_bound", {"gamma": 0.0}).sample(
        logits_at, x_init, mask_token_id=MASK, uniforms=Uniforms(0, range(3), LENGTH)
    )
    assert samples.unmask_step.tolist() == [[1, 1, 1, 2, 1, 3]] * 3


@pytest.mark.parametrize("factor", [0.3, 1.0, 3.0])
def test_the_factor_rule_is_that_of_the_paper(factor: float) -> None:
    def choose(step: int, p: dict[int, Tensor]) -> list[int]:
        order = surest_first(p)
        fulfilling = [n for n in range(1, len(order) + 1) if (n + 1) * (1 - float(p[order[n - 1]].max())) < factor]
        return order[: max([1, *fulfilling])]

    assert drawn_by("factor", masked(), factor=factor).tokens.tolist() == slowly(masked(), lambda row, i: choose)


@pytest.mark.parametrize(("history", "fallback"), [(1, 1), (2, 2)])
def test_klass_is_that_of_the_paper(history: int, fallback: int) -> None:
    def choose(row: list[int], index: int) -> Chooses:
        past: list[dict[int, Tensor]] = []

        def at_step(step: int, p: dict[int, Tensor]) -> list[int]:
            past.append(p)

            def has_settled(i: int) -> bool:
                pairs = list(itertools.pairwise(past))[-history:]
                kls = [
                    sum(x * math.log(x / y) for x, y in zip(b[i].tolist(), a[i].tolist(), strict=True) if x > 0)
                    for a, b in pairs
                ]
                return len(kls) == history and max(kls) < 3.0

            ready = [i for i in p if float(p[i].max()) >= 0.5 and has_settled(i)]
            return ready or surest_first(p)[:fallback]

        return at_step

    values = {"threshold": 0.5, "max_kl": 3.0, "history": history, "fallback": fallback}
    found = drawn_by("klass", masked(), **values)
    assert found.tokens.tolist() == slowly(masked(), choose)
    if history == 1:  # some are written together because they have settled
        assert int(found.nfe.sum()) < int((masked() == MASK).sum())


@pytest.mark.parametrize("counts", ["even", "cosine"])
@pytest.mark.parametrize("noise", [0.0, 0.7])
def test_ordered_writes_so_many_of_the_surest(counts: str, noise: float) -> None:
    def left(step: int, num: int) -> int:
        return (
            num - math.ceil(num * step / 4)
            if counts == "even"
            else math.floor(num * math.cos(math.pi / 2 * step / 4) + 1e-9)
        )

    def choose(row: list[int], index: int) -> Chooses:
        num = row.count(MASK)

        def at_step(step: int, p: dict[int, Tensor]) -> list[int]:
            u, _ = Uniforms(0, [index], LENGTH).at(step)
            key = {i: entropy_of(p[i]) + noise * math.log(-math.log(float(u[0, i]))) for i in p}
            return sorted(p, key=lambda i: key[i])[: left(step - 1, num) - left(step, num)]

        return at_step

    found = drawn_by("ordered", masked(), num_steps=4, score="entropy", noise=noise, counts=counts)
    assert found.tokens.tolist() == slowly(masked(), choose)


def test_ordered_with_one_token_a_step_and_no_noise_is_greedy_order() -> None:
    found = drawn_by("ordered", masked(), num_steps=LENGTH, score="confidence", noise=0.0, counts="even")
    assert found.tokens.tolist() == slowly(masked(), lambda row, i: lambda step, p: surest_first(p)[:1])
    # A row with fewer masks than steps is not evaluated in steps that write nothing.
    assert torch.equal(found.nfe, (masked() == MASK).sum(dim=1))


def test_counts_leave_the_share_that_the_schedule_states() -> None:
    num_masked, steps = torch.tensor([[1], [7], [62]]), torch.arange(17)
    for counts in ("even", "cosine"):
        written = written_by(steps, 16, num_masked, counts)
        assert (written[:, 0] == 0).all()
        assert (written[:, -1:] == num_masked).all()
        assert (written.diff(dim=1) >= 0).all()
    assert written_by(8, 16, torch.tensor(100), "cosine") == 100 - math.floor(100 * math.cos(math.pi / 4))
    assert written_by(2, 3, torch.tensor(6), "cosine") == 3  # cos(pi / 3) is 1 / 2, but not in floating point
    u_time = torch.rand(1, 62, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    planned = planned_unmask_steps(u_time, u_time > -1, 16, "cosine")[0].bincount(minlength=17)
    assert torch.equal(planned[1:], written_by(steps, 16, torch.tensor(62), "cosine").diff())


def test_how_sure_a_prediction_is() -> None:
    p = torch.tensor([[0.5, 0.25, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]]).double()
    torch.testing.assert_close(entropy(p.log()), torch.tensor([1.5 * math.log(2), 0, math.log(4)]).double())
    torch.testing.assert_close(sureness(p.log(), "confidence").exp(), torch.tensor([0.5, 1, 0.25]).double())
    torch.testing.assert_close(sureness(p.log(), "margin"), torch.tensor([0.25, 1, 0]).double())


@pytest.mark.parametrize("schedule", ["cap", "rescale", "conf", "loop"])
def test_remask_that_never_masks_again_is_ancestral(schedule: str) -> None:
    loop = {"loop_from": 0.99, "loop_to": 0.98} if schedule == "loop" else {}
    found = drawn_by("remask", masked(), num_steps=7, schedule=schedule, eta=0.0, **loop)
    if schedule != "loop":  # whose shares differ
        assert torch.equal(found.tokens, drawn_by("ancestral", masked(), num_steps=7).tokens)
        assert torch.equal(found.unmask_step, drawn_by("ancestral", masked(), num_steps=7).unmask_step)
    assert (found.tokens != MASK).all()


def remask_distribution(schedule: str, eta: float, alphas: list[float], length: int) -> dict[tuple[int, ...], float]:
    """Probabilities of whole sequences over two tokens, by going through all trajectories of the published sampler.

    A state is the sequence and, of each written token, the probability that it had when it was written.
    """
    mask = 2
    states: dict[tuple, float] = {(((mask,) * length), ((0.0,) * length)): 1.0}
    for alpha_t, alpha_s in itertools.pairwise(alphas):
        most = min(1.0, (1 - alpha_s) / alpha_t) if alpha_t else 1.0
        after: Counter = Counter()
        for (xt, p_written), probability in states.items():
            p = bigram(torch.tensor([xt]))[0]
            weights = {i: math.exp(-p_written[i]) for i in range(length) if xt[i] != mask}
            outcomes = []
            for i in range(length):
                share = {
                    "cap": min(eta, most),
                    "rescale": eta * most,
                    "loop": min(eta, most) if alpha_t == alpha_s else 0.0,
                    "conf": eta * most * weights[i] / sum(weights.values()) if i in weights else 0.0,
                }[schedule]
                if xt[i] != mask:
                    outcomes.append([(xt[i], p_written[i], 1 - share), (mask, 0.0, share)])
                else:
                    written = (alpha_s - (1 - share) * alpha_t) / (1 - alpha_t)
                    outcomes.append(
                        [(k, float(p[i, k]), written * float(p[i, k])) for k in range(2)] + [(mask, 0.0, 1 - written)]
                    )
            for outcome in itertools.product(*outcomes):
                tokens, kept, chances = zip(*outcome, strict=True)
                after[tokens, kept] += probability * math.prod(chances)
        states = {state: p for state, p in after.items() if p > 0}
    total: Counter = Counter()
    for (tokens, _), probability in states.items():
        total[tokens] += probability
    return total


def bigram(xt: Tensor) -> Tensor:
    """p of two tokens at every position, by the tokens beside it."""
    neighbours = torch.nn.functional.pad(xt, (1, 1), value=2)
    left, right = neighbours[:, :-2], neighbours[:, 2:]
    one = torch.sigmoid(
        (3.0 * (left == 1) - 1.8 * (left == 0) + 1.6 * (right == 1) - 2.4 * (right == 0)).double() + 0.3
    )
    return torch.stack([1 - one, one], dim=-1)


@pytest.mark.parametrize(("schedule", "eta"), [("cap", 0.5), ("rescale", 0.9), ("conf", 1.0), ("loop", 0.9)])
def test_remask_has_the_distribution_of_the_published_transitions(schedule: str, eta: float) -> None:
    """Chi-square over all sequences at a false-alarm rate of 1e-4 for each of four cases, for a fixed seed."""
    length, num_samples, num_steps = 3, 8000, 6

    def logits_at(xt: Tensor, at: Tensor) -> Tensor:
        p = bigram(xt)
        return torch.cat([p.log(), torch.zeros(*xt.shape, 1)], dim=-1)[at]

    loop = {"loop_from": 0.9, "loop_to": 0.1, "loop_alpha": 0.6} if schedule == "loop" else {}
    samples = Sampler("remask", {"num_steps": num_steps, "schedule": schedule, "eta": eta, **loop}).sample(
        logits_at,
        torch.full((num_samples, length), 2),
        mask_token_id=2,
        uniforms=Uniforms(3, range(num_samples), length),
    )
    alphas = visible_shares(num_steps, tuple(loop.values()) if loop else None)
    exact = remask_distribution(schedule, eta, alphas, length)
    assert sum(exact.values()) == pytest.approx(1)
    counts = Counter(map(tuple, samples.tokens.tolist()))
    assert counts.keys() <= exact.keys()
    observed, expected = zip(*((counts[x], p * num_samples) for x, p in exact.items()), strict=True)
    assert min(expected) > 5
    assert chisquare(observed, expected).pvalue > 1e-4
    plain = remask_distribution(schedule, 0.0, alphas, length)
    difference = [plain[x] * num_samples for x in exact]
    assert chisquare(observed, difference).pvalue < 1e-4, "the test could not tell it from ancestral sampling"


@pytest.mark.parametrize("schedule", ["cap", "rescale", "conf", "loop"])
def test_a_token_is_masked_again_as_often_as_its_schedule_says(schedule: str) -> None:
    """Shares of 40,000 rows within five standard errors, and what is left of a number uniform in mean and variance.

    False alarms: less than 1e-6 for each of some twenty comparisons, for a fixed seed.
    """
    num_rows, eta, mask = 40_000, 0.7, 2
    alphas = [0.0, 0.4, 0.4, 0.8, 1.0]
    generator = torch.Generator().manual_seed(5)
    policy = Remask(
        mask,
        torch.full((num_rows, 2), mask),
        torch.full((num_rows, 2), 2.0, dtype=torch.float64),
        lambda step: torch.rand(2, num_rows, 2, dtype=torch.float64, generator=generator),
        alphas=alphas,
        schedule=schedule,
        eta=eta,
        loop=None,
    )
    written = torch.zeros(num_rows, 2, dtype=torch.int64)
    p = torch.tensor([0.9, 0.2], dtype=torch.float64)
    policy.p_written = p.expand(num_rows, 2)
    for step in (2, 3, 4):
        alpha_t, alpha_s = alphas[step - 1], alphas[step]
        most = min(1.0, (1 - alpha_s) / alpha_t)
        weights = (-p).exp() / (-p).exp().sum()
        share = {
            "cap": torch.full((2,), min(eta, most)),
            "rescale": torch.full((2,), eta * most),
            "conf": eta * most * weights,
            "loop": torch.full((2,), min(eta, most) if alpha_t == alpha_s else 0.0),
        }[schedule]
        found = policy.forgets(step, written)
        forgotten = torch.zeros(num_rows, 2, dtype=torch.bool) if found is None else found[0]
        error = (share * (1 - share) / num_rows).sqrt()
        assert ((forgotten.double().mean(dim=0) - share).abs() <= 5 * error).all(), step
        left = policy.u_time[forgotten]
        if len(left):
            assert abs(float(left.mean()) - 1 / 2) < 5 / math.sqrt(12 * len(left))
            assert abs(float(left.var()) - 1 / 12) < 5 / math.sqrt(180 * len(left))


def test_given_tokens_are_never_masked_again() -> None:
    x_init = masked()
    found = drawn_by("remask", x_init, num_steps=30, schedule="rescale", eta=0.9)
    assert torch.equal(found.tokens[x_init != MASK], x_init[x_init != MASK])
    assert (found.unmask_step[x_init != MASK] == 0).all()
    assert (found.tokens != MASK).all()


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("block_length", [None, 2])
def test_a_text_does_not_depend_on_what_else_is_in_the_batch(name: str, block_length: int | None) -> None:
    x_init = masked(8)
    sampler = Sampler(name, {**SETTINGS[name], "block_length": block_length})
    together = sampler.sample(table_logits, x_init, mask_token_id=MASK, uniforms=Uniforms(1, range(8), LENGTH))
    assert torch.equal(together.tokens[x_init != MASK], x_init[x_init != MASK])
    assert (together.tokens != MASK).all()
    for i in range(8):
        alone = sampler.sample(table_logits, x_init[i : i + 1], mask_token_id=MASK, uniforms=Uniforms(1, [i], LENGTH))
        assert torch.equal(alone.tokens[0], together.tokens[i])
        assert alone.nfe[0] == together.nfe[i]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_block_is_written_when_those_before_it_are(name: str) -> None:
    x_init = masked()
    found = drawn_by(name, x_init, **SETTINGS[name], block_length=2)
    first = (x_init == MASK).int().argmax(dim=1, keepdim=True)
    block = (torch.arange(LENGTH) - first) // 2
    for row in range(len(x_init)):
        is_own = x_init[row] == MASK
        steps = [found.unmask_step[row][is_own & (block[row] == b)] for b in range(3)]
        for earlier, later in itertools.pairwise(some for some in steps if len(some)):
            assert earlier.max() < later.min()


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "remask"])
def test_a_block_as_long_as_the_text_is_no_block(name: str) -> None:
    x_init = torch.full((10, LENGTH), MASK)
    whole, block = (drawn_by(name, x_init, **SETTINGS[name], block_length=n) for n in (None, LENGTH))
    if SETTINGS[name].get("noise"):
        assert whole.tokens.shape == block.tokens.shape  # the noise is another one
    else:
        assert torch.equal(whole.tokens, block.tokens)
