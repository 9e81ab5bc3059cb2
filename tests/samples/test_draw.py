import hashlib
import json
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from halfstep.data.tokens.packed import load_tokens
from halfstep.model.denoiser import Denoiser
from halfstep.model.gpt2 import new_gpt2
from halfstep.run.errors import UserError, nan_as_user_error
from halfstep.samplers import ancestral
from halfstep.samplers.base import Uniforms, fill
from halfstep.samplers.confidence import Confidence
from halfstep.samplers.sampler import Sampler, sampler_of
from halfstep.samples.draw import AUTOREGRESSIVE, Request, draw, draw_batches, requests_of
from halfstep.samples.table import METADATA_KEY, Batch, read_sample_sets, write_samples

pytestmark = pytest.mark.stage  # takes seconds
CPU = torch.device("cpu")
TWO_FIVE = [Sampler("ancestral", {"num_steps": num_steps}) for num_steps in (2, 5)]
FOUR = torch.arange(12).view(4, 3)


class Tokenizer:
    mask_token_id, bos_token_id = 96, 1


@pytest.fixture
def denoiser(published: Path) -> Denoiser:
    return Denoiser.from_pretrained(published)


def _continued(prefixes: torch.Tensor) -> torch.Tensor:
    x_init = torch.full((len(prefixes), 16), 96)
    x_init[:, : prefixes.shape[1]] = prefixes
    return x_init


def _batches(model, prefixes=FOUR, batch_size=3, samplers=TWO_FIVE, **options) -> list[Batch]:
    rows = [*range(7, 7 + len(prefixes))]
    request = Request("continuations", _continued(prefixes), rows, prefixes.shape[1])
    options = {"tokenizer": Tokenizer(), "seed": 3, "device": CPU, **options}
    return draw_batches(model, samplers, request, batch_size=batch_size, **options)


def _tokens(*args, **options) -> list[list[int]]:
    return [row for batch in _batches(*args, **options) for row in batch.samples.tokens.tolist()]


def test_ancestral_samples_of_a_seed_are_what_they_always_were(denoiser: Denoiser) -> None:
    batches = list(_batches(denoiser, batch_size=4))
    hashes = [hashlib.sha256(batch.samples.tokens.numpy().tobytes()).hexdigest()[:16] for batch in batches]
    assert hashes == ["76cae164b415a80b", "605185381bb83a37"]
    assert [batch.samples.nfe.tolist() for batch in batches] == [[2, 2, 2, 2], [4, 5, 4, 4]]


def test_the_batch_size_does_not_change_the_samples(denoiser: Denoiser) -> None:
    prefixes = torch.zeros(7, 0, dtype=torch.int64)
    samplers = [*TWO_FIVE, Sampler("confidence", {"threshold": 0.025})]
    at_once, by_two, alone = (_tokens(denoiser, prefixes, size, samplers) for size in (7, 2, 1))
    assert at_once == by_two == alone


def test_prefixes_stay_and_no_mask_is_left(denoiser: Denoiser) -> None:
    tokens = torch.tensor(_tokens(denoiser))
    assert torch.equal(tokens[:, :3], FOUR.repeat(2, 1))
    assert (tokens != 96).all()


def test_a_sampler_is_its_policy_in_the_one_loop(denoiser: Denoiser) -> None:
    threshold = 0.9
    denoiser.output_layer.linear.weight.data *= 30
    (batch,) = _batches(denoiser, batch_size=4, samplers=[Sampler("confidence", {"threshold": threshold})])
    assert (batch.sampler, batch.setting, batch.num_steps) == ("confidence", "threshold=0.9", None)
    _, u_token = Uniforms(3, range(4), 16).first
    expected = fill(denoiser, _continued(FOUR), Confidence(96, threshold), mask_token_id=96, u_token=u_token)
    for name, tensor in vars(expected).items():
        assert torch.equal(getattr(batch.samples, name), tensor)
    assert 1 < int(expected.nfe.max()) < 13


def test_a_causal_model_starts_at_bos_and_its_cache_changes_nothing() -> None:
    torch.manual_seed(0)
    model = new_gpt2(vocab_size=97, length=16, hidden_size=8, num_blocks=2, num_heads=2, dropout=0.0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    (batch,) = _batches(model, torch.zeros(3, 0, dtype=torch.int64), samplers=[AUTOREGRESSIVE])
    assert (batch.sampler, batch.setting, batch.num_steps) == ("autoregressive", "", 15)
    samples = batch.samples
    assert (samples.tokens[:, 0] == 1).all()
    assert (samples.tokens != 96).all()
    # What was drawn so far, given again as a prefix without a cache, is continued in the same way.
    assert _tokens(model, samples.tokens[:, :6], samplers=[AUTOREGRESSIVE]) == samples.tokens.tolist()
    # Of the likeliest token alone nothing is left to chance, and every token is a step.
    seen: list[int] = []
    given, uniforms = _continued(samples.tokens[:, :6]), Uniforms(0, range(3), 16)
    greedy = draw(
        model, AUTOREGRESSIVE, given, mask_token_id=96, uniforms=uniforms,
        adjust=lambda logits: logits.masked_fill(logits < logits.amax(-1, keepdim=True), -torch.inf),
        on_step=lambda step, tokens: seen.append(step),
    )  # fmt: skip
    with torch.inference_mode():
        logits = model(greedy.tokens).logits[:, 5:-1, :96]
    assert torch.equal(greedy.tokens[:, 6:], logits.argmax(dim=-1))
    assert seen == [*range(1, 11)]


def test_a_causal_model_answers_prompts_of_different_lengths_as_each_alone() -> None:
    model = new_gpt2(vocab_size=97, length=16, hidden_size=16, num_blocks=1, num_heads=2, dropout=0.0).eval()
    torch.nn.init.normal_(model.transformer.wte.weight, std=1.0)
    x_init = torch.full((3, 16), 96)
    for row, num_given in enumerate((1, 4, 9)):
        x_init[row, :num_given] = torch.arange(1, num_given + 1)
    uniforms = Uniforms(5, range(3), 16)
    found = draw(model, AUTOREGRESSIVE, x_init, mask_token_id=96, uniforms=uniforms)
    assert found.nfe.tolist() == [15, 12, 7]
    assert torch.equal(found.unmask_step == 0, x_init != 96)
    assert torch.equal(found.tokens[x_init != 96], x_init[x_init != 96])
    for row in range(3):
        alone = draw(model, AUTOREGRESSIVE, x_init[row, None], mask_token_id=96, uniforms=Uniforms(5, [row], 16))
        assert torch.equal(alone.tokens[0], found.tokens[row])


def test_what_is_asked_for_of_prompts_are_answers_to_them(tmp_path: Path, write_tokens) -> None:
    rows = np.array([[~1, ~2, 3, 4, 5], [~1, ~6, ~7, 8, 9]], np.int32)
    write_tokens(tmp_path, {"train": rows, "valid": rows}, vocab_size=97)
    tokens = load_tokens(tmp_path, "valid")
    assert tokens[:].tolist() == [[1, 2, 3, 4, 5], [1, 6, 7, 8, 9]]
    assert tokens.stored(slice(None)).tolist() == rows.tolist()
    settings = SimpleNamespace(num_samples=3, num_prefixes=2, continuations_per_prefix=2, give_ends=False)
    unconditional, continuations = requests_of(settings, tokens, 5, Tokenizer())
    first, second = [1, 2, 96, 96, 96], [1, 6, 7, 96, 96]
    assert unconditional.x_init.tolist() == [first, second, first]
    assert (unconditional.prefix_rows, unconditional.prefix_length) == ([0, 1, 0], 0)
    assert continuations.x_init.tolist() == [first, first, second, second]
    assert continuations.prefix_rows == [0, 0, 1, 1]


def test_a_causal_model_that_fills_in_reads_all_and_keeps_what_is_given() -> None:
    """Against a loop without a cache, of the likeliest tokens."""
    torch.manual_seed(0)
    model = new_gpt2(vocab_size=9, length=6, hidden_size=8, num_blocks=2, num_heads=2, dropout=0.0, fills_in=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    model.eval()
    mask = 8
    x_init = torch.tensor([[1, 8, 3, 8, 5, 2], [1, 4, 8, 8, 8, 2], [1, 2, 3, 4, 5, 2]])
    seen: list[list[int]] = []
    options = {"mask_token_id": mask, "likeliest": True}
    drawn = draw(
        model, AUTOREGRESSIVE, x_init, uniforms=Uniforms(0, range(3), 6), **options,
        on_step=lambda step, tokens: seen.append(tokens[0].tolist()),
    )  # fmt: skip
    for row, tokens in zip(x_init, drawn.tokens, strict=True):
        sequence = [*row.tolist()]
        for given in row.tolist():
            with torch.inference_mode():
                logits = model(torch.tensor([sequence])).logits[0, -1, :mask]
            sequence.append(int(logits.argmax()) if given == mask else given)
        assert tokens.tolist() == sequence[6:]
    assert drawn.nfe.tolist() == [2, 3, 0]
    assert drawn.unmask_step.tolist() == [[0, 1, 0, 2, 0, 0], [0, 0, 1, 2, 3, 0], [0] * 6]
    assert seen[-1] == drawn.tokens[0].tolist()
    # What is drawn by chance depends on the others in the batch as little.
    options["likeliest"] = False
    together = draw(model, AUTOREGRESSIVE, x_init, uniforms=Uniforms(0, range(3), 6), **options)
    alone = draw(model, AUTOREGRESSIVE, x_init[1:2], uniforms=Uniforms(0, [1], 6), **options)
    assert torch.equal(alone.tokens[0], together.tokens[1])
    assert int(alone.nfe) == int(together.nfe[1])


def test_the_likeliest_tokens_go_where_the_whole_distribution_is_surest(denoiser: Denoiser) -> None:
    x_init = torch.full((3, 16), 96)
    seen: list[torch.Tensor] = [x_init]
    draw(
        denoiser, Sampler("ordered", {"num_steps": 16, "score": "entropy", "noise": 0.0, "counts": "even"}), x_init,
        mask_token_id=96, uniforms=Uniforms(0, range(3), 16), likeliest=True,
        on_step=lambda step, tokens: seen.append(tokens.clone()),
    )  # fmt: skip
    for before, after in pairwise(seen):
        with torch.inference_mode():
            log_p = denoiser(before)[..., :96].log_softmax(dim=-1)
        entropies = -(log_p.exp() * log_p).sum(dim=-1)
        rows, place = torch.arange(3), (after != before).int().argmax(dim=1)
        # Two entropies may be equal but for rounding.
        least = entropies.masked_fill(before != 96, torch.inf).amin(dim=1)
        torch.testing.assert_close(entropies[rows, place], least, rtol=0, atol=1e-5)
        assert torch.equal(after[rows, place], log_p[rows, place].argmax(dim=-1))


def test_samples_are_written_and_read_with_how_they_were_drawn(denoiser: Denoiser, tmp_path: Path) -> None:
    path = tmp_path / "samples.parquet"
    samplers = [*TWO_FIVE, Sampler("confidence", {"threshold": 0.5})]
    batches = list(_batches(denoiser, samplers=samplers))
    about = {"seed": 3, "prefix_length": 3}
    write_samples(path, batches, decode=lambda ids: " ".join(map(str, ids)), metadata=about)
    assert json.loads(pq.read_schema(path).metadata[METADATA_KEY]) == about
    sets = read_sample_sets(path)
    assert [(*s.drawn, s.num_steps) for s in sets] == [
        ("ancestral", "num_steps=2", 1.0, 2), ("ancestral", "num_steps=5", 1.0, 5),
        ("confidence", "threshold=0.5", 1.0, None),
    ]  # fmt: skip
    for number, found in enumerate(sets):
        drawn = [batch.samples for batch in batches[2 * number : 2 * number + 2]]
        assert found.token_ids == torch.cat([samples.tokens for samples in drawn]).tolist()
        assert found.nfe == torch.cat([samples.nfe for samples in drawn]).tolist()
        assert (found.prefix_rows, found.prefix_length) == ([7, 8, 9, 10], 3)
        assert found.texts == [" ".join(map(str, ids)) for ids in found.token_ids]
        for steps, nfe in zip(found.unmask_step, found.nfe, strict=True):
            assert [step == 0 for step in steps] == [True] * 3 + [False] * 13
            assert nfe == len({*steps} - {0})
    first = read_sample_sets(path, num_samples=1)
    assert [s.token_ids for s in first] == [s.token_ids[:1] for s in sets]


def test_a_model_that_predicts_nan_is_told_instead_of_drawn_from(denoiser: Denoiser) -> None:
    torch.nn.init.constant_(denoiser.output_layer.linear.bias, float("nan"))
    with pytest.raises(UserError, match=r"models/3 predicts NaN"), nan_as_user_error("models/3"):
        _tokens(denoiser)


def test_batches_that_were_drawn_before_are_not_drawn_again(
    denoiser: Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(_batches(denoiser))
    calls: list[str] = []
    sample = Sampler.sample

    def counted(sampler: Sampler, *args, **options):
        calls.append(sampler.setting)
        return sample(sampler, *args, **options)

    monkeypatch.setattr(Sampler, "sample", counted)

    def drawn(num_batches: int) -> list[Batch]:
        return list(islice(_batches(denoiser, folder=tmp_path / "batches"), num_batches))

    assert len(drawn(3)) == len(calls) == 3
    found = drawn(4)
    assert calls == ["num_steps=2"] * 2 + ["num_steps=5"] * 2
    for batch, other in zip(found, expected, strict=True):
        same = ("sampler", "setting", "num_steps", "indices", "prefix_rows")
        assert [getattr(batch, name) for name in same] == [getattr(other, name) for name in same]
        for name, tensor in vars(other.samples).items():
            assert torch.equal(getattr(batch.samples, name), tensor)
            assert getattr(batch.samples, name).dtype == tensor.dtype


def test_every_combination_of_settings_is_one_way_to_draw() -> None:
    ways = ancestral.Settings(name="ancestral", num_steps=[16, 4], counts=["binomial", "even"]).ways()
    assert [(Sampler("ancestral", way).setting, Sampler("ancestral", way).num_steps) for way in ways] == [
        ("num_steps=4", 4), ("num_steps=4,counts=even", 4), ("num_steps=16", 16), ("num_steps=16,counts=even", 16),
    ]  # fmt: skip
    blocks = ancestral.Settings(name="ancestral", num_steps=[4], block_length=[None, 8]).ways()
    assert [Sampler("ancestral", way).setting for way in blocks] == ["num_steps=4", "num_steps=4,block_length=8"]


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("surest", {}, "there is no sampler 'surest'; there are ancestral, confidence"),
        ("autoregressive", {}, "there is no sampler 'autoregressive'"),
        ("confidence", {"threshold": 1.5}, r"threshold of confidence is 1\.5: .* less than"),
        ("confidence", {"threshold": "0.5"}, r"threshold of confidence is '0\.5'"),
        ("confidence", {}, "confidence needs threshold"),
        ("ancestral", {"threshold": 0.5}, "ancestral has no setting threshold"),
        ("ordered", {"num_steps": 4, "score": "luck", "noise": 0, "counts": "even"}, "score of ordered is 'luck'"),
        ("entropy_bound", {"gamma": -1}, "gamma of entropy_bound is -1"),
        ("remask", {"num_steps": 4, "schedule": "cap", "eta": 2}, "eta of remask is 2"),
        ("ancestral", {"num_steps": 4, "block_length": 0}, "block_length of ancestral is 0"),
    ],
)
def test_samplers_that_cannot_be_are_one_line(name: str, values: dict, message: str) -> None:
    with pytest.raises(UserError, match=rf"^--sampler: .*{message}") as caught:
        sampler_of(name, values, "--sampler")
    assert "\n" not in str(caught.value)
