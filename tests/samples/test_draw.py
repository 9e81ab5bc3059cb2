import json
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from halfstep.model.denoiser import Denoiser
from halfstep.model.gpt2 import new_gpt2
from halfstep.run.errors import UserError, nan_as_user_error
from halfstep.run.work import Journal
from halfstep.samplers.base import Samples
from halfstep.samples.draw import Batch, autoregressive_sampler, denoiser_sampler, draw_batches
from halfstep.samples.table import METADATA_KEY, write_samples

CPU = torch.device("cpu")


@pytest.fixture
def sampler(published: Path):
    return denoiser_sampler(Denoiser.from_pretrained(published), seed=3, device=CPU)


def _tokens(sampler, prefixes: torch.Tensor, batch_size: int) -> list[list[int]]:
    rows = [-1] * len(prefixes)
    batches = draw_batches(sampler, prefixes, rows, length=16, num_steps=[2, 5], batch_size=batch_size)
    return [row for batch in batches for row in batch.samples.tokens.tolist()]


def test_the_batch_size_does_not_change_the_samples(sampler) -> None:
    prefixes = torch.zeros(7, 0, dtype=torch.int64)
    assert _tokens(sampler, prefixes, 7) == _tokens(sampler, prefixes, 2) == _tokens(sampler, prefixes, 1)


def test_prefixes_stay_and_no_mask_is_left(sampler) -> None:
    prefixes = torch.arange(12).view(4, 3)
    tokens = torch.tensor(_tokens(sampler, prefixes, 3))
    assert torch.equal(tokens[:4, :3], prefixes)
    assert torch.equal(tokens[4:, :3], prefixes)
    assert (tokens != 96).all()


def test_the_autoregressive_sampler_starts_at_bos_and_its_cache_changes_nothing() -> None:
    torch.manual_seed(0)
    model = new_gpt2(vocab_size=9, length=16, hidden_size=8, num_blocks=2, num_heads=2, dropout=0.0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    draw = autoregressive_sampler(model, mask_token_id=8, bos_token_id=1, seed=0, device=CPU)
    samples = draw(torch.zeros(3, 0, dtype=torch.int64), 10, range(3), 0)
    assert (samples.tokens[:, 0] == 1).all()
    assert (samples.tokens != 8).all()
    # What was drawn so far, given again as a prefix without a cache, is continued in the same way.
    again = draw(samples.tokens[:, :6], 10, range(3), 0)
    assert torch.equal(again.tokens, samples.tokens)


def test_samples_are_written_with_their_settings(sampler, tmp_path: Path) -> None:
    prefixes = torch.arange(6).view(2, 3)
    batches = draw_batches(sampler, prefixes, [4, 9], length=8, num_steps=[2, 3], batch_size=2)
    path = tmp_path / "samples.parquet"
    write_samples(path, batches, decode=lambda ids: " ".join(map(str, ids)), metadata={"seed": 3})
    table = pq.read_table(path)
    assert json.loads(table.schema.metadata[METADATA_KEY]) == {"seed": 3}
    rows = table.to_pylist()
    assert [(r["sample_index"], r["prefix_row"], r["num_steps"]) for r in rows] == [
        (0, 4, 2), (1, 9, 2), (0, 4, 3), (1, 9, 3),
    ]  # fmt: skip
    for row in rows:
        assert row["text"] == " ".join(map(str, row["token_ids"]))
        assert [step == 0 for step in row["unmask_step"]] == [True] * 3 + [False] * 5
        assert row["nfe"] == len(set(row["unmask_step"]) - {0})


def test_a_model_that_predicts_nan_is_told_instead_of_drawn_from(published: Path) -> None:
    denoiser = Denoiser.from_pretrained(published)
    torch.nn.init.constant_(denoiser.output_layer.linear.bias, float("nan"))
    sampler = denoiser_sampler(denoiser, seed=0, device=CPU)
    with pytest.raises(UserError, match=r"models/3 predicts NaN"), nan_as_user_error("models/3"):
        _tokens(sampler, torch.zeros(2, 0, dtype=torch.int64), 2)


def test_batches_that_were_drawn_before_are_not_drawn_again(sampler, tmp_path: Path) -> None:
    prefixes = torch.arange(12).view(4, 3)
    arguments = {"length": 16, "num_steps": [2, 5], "batch_size": 3}
    expected = list(draw_batches(sampler, prefixes, [7, 8, 9, 10], **arguments))
    calls: list[int] = []

    def counted(*request) -> Samples:
        calls.append(request[-1])
        return sampler(*request)

    def drawn(num_batches: int) -> list[Batch]:
        batches = draw_batches(
            counted, prefixes, [7, 8, 9, 10], **arguments, remember=Journal(tmp_path / "journal").remember
        )
        return list(islice(batches, num_batches))

    assert len(drawn(3)) == len(calls) == 3
    found = drawn(4)
    assert calls == [2, 2, 5, 5]
    for batch, other in zip(found, expected, strict=True):
        assert (batch.indices, batch.num_steps, batch.prefix_rows) == (
            other.indices, other.num_steps, other.prefix_rows,
        )  # fmt: skip
        for name, tensor in vars(other.samples).items():
            assert torch.equal(getattr(batch.samples, name), tensor)
            assert getattr(batch.samples, name).dtype == tensor.dtype
