import pytest
import torch

from halfstep.evaluation.latency import time_calls, time_generation
from halfstep.model.gpt2 import new_gpt2
from halfstep.samplers.sampler import Sampler


def test_rounds_alternate_between_calls_and_warmups_do_not_count():
    now, log = [0.0], []

    def call(name, seconds):
        def run():
            log.append(name)
            now[0] += seconds

        return run

    times = time_calls(
        {"fast": call("fast", 1.0), "slow": call("slow", 3.0)},
        num_warmups=1,
        num_repeats=2,
        synchronize=lambda: log.append("sync"),
        clock=lambda: now[0],
    )
    assert times == {"fast": [1.0, 1.0], "slow": [3.0, 3.0]}
    assert log == ["sync", "fast", "sync", "sync", "slow", "sync"] * 3


def test_both_models_generate_the_same_number_of_tokens():
    vocab, length, calls = 9, 8, []

    def logits_at(xt, at):
        calls.append(xt.shape[0])
        return torch.zeros(int(at.sum()), vocab)

    torch.manual_seed(0)
    gpt2 = new_gpt2(vocab_size=vocab, length=length, hidden_size=8, num_blocks=1, num_heads=2, dropout=0.0)
    result = time_generation(
        logits_at,
        gpt2.eval(),
        samplers=[Sampler("confidence", {"threshold": 0.0}), Sampler("ancestral", {"num_steps": 64})],
        batch_size=3,
        length=length,
        mask_token_id=vocab - 1,
        num_warmups=0,
        num_repeats=2,
        device=torch.device("cpu"),
    )
    one, many = result["denoiser"]
    assert [one[key] for key in ("sampler", "setting", "num_steps")] == ["confidence", "threshold=0.0", None]
    assert [many[key] for key in ("sampler", "setting", "num_steps")] == ["ancestral", "num_steps=64", 64]
    assert one["nfe"] == 1
    assert 1 < many["nfe"] <= length - 1
    # Two repeats: sequences evaluated in all are twice the batch times the evaluations of each.
    assert sum(calls) == pytest.approx(2 * 3 * (one["nfe"] + many["nfe"]))
    assert result["autoregressive"]["nfe"] == length - 1
    assert result["autoregressive"]["kv_cache"] is True
    for entry in (one, many, result["autoregressive"]):
        assert entry["seconds_min"] <= entry["seconds"]["value"] <= entry["seconds_max"]
        assert entry["tokens_per_second"] == pytest.approx(3 * (length - 1) / entry["seconds"]["value"])
        assert (entry["seconds"]["count"], entry["seconds"]["unit"]) == (2, "seconds")
