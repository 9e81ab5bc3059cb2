import json
import math

import pytest
import torch
import yaml

from halfstep.evaluation.lm_eval.autoregressive_lm import AutoregressiveLM
from halfstep.evaluation.lm_eval.denoiser_lm import DenoiserLM
from halfstep.evaluation.metrics.downstream import run_downstream
from halfstep.metrics.estimate import Estimate
from halfstep.run.errors import UserError

QUESTIONS = [
    {"context": "the cat saw", "choices": ["a red dog", "a red bird ran to"], "gold": gold} for gold in (0, 0, 1, 0)
]


@pytest.fixture
def write_task(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(name, rows, **definition):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(tmp_path / f"{name}.jsonl")}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "context",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        }
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**task, **definition}))
        return tmp_path

    return write


@pytest.fixture
def short_lm(tokenizer):
    """Gives a denoiser of equal probabilities: the fewer tokens, the likelier."""

    def uniform(xt, at):
        return torch.zeros(int(at.sum()), len(tokenizer))

    return lambda: DenoiserLM(
        uniform,
        tokenizer,
        max_length=16,
        mask_token_id=tokenizer.mask_token_id,
        num_draws=4,
        batch_size=4,
        seed=0,
        device=torch.device("cpu"),
    )


def measured(new_lm, tasks, folder, limit=None):
    """The estimates by metric, in the order measured."""
    return {row.metric: row.estimate for row in run_downstream(new_lm, tasks, include_path=folder, limit=limit)}


def test_choices_are_scored_and_counted(write_task, short_lm):
    found = measured(short_lm, ["ours"], write_task("ours", QUESTIONS))
    # The short choice wins, and is right three times of four: s / sqrt(n) = sqrt(3 * 1/16 + 9/16) / sqrt(3) / 2.
    assert found["downstream.ours.acc"] == Estimate(0.75, 0.25, 4, "1")
    # By character the longer choice is the likelier: 4 log V over 17 against 3 log V over 9.
    assert found["downstream.ours.acc_norm"].value == 0.25
    assert found["num_truncated.ours"].value == 0
    error = found["monte_carlo_error.ours"]
    assert (error.value, error.count, error.unit) == (pytest.approx(0, abs=1e-6), 8, "nats")


def test_limit_and_order_and_counts_of_each_task(write_task, short_lm):
    write_task("second", QUESTIONS)
    folder = write_task("first", QUESTIONS)
    found = measured(short_lm, ["second", "first"], folder, limit=2)
    assert [metric for metric in found if metric.endswith(".acc")] == ["downstream.second.acc", "downstream.first.acc"]
    for task in ("first", "second"):
        assert found[f"downstream.{task}.acc"].count == 2
        assert found[f"monte_carlo_error.{task}"].count == 4


def test_a_metric_that_is_no_mean_has_an_error_too(write_task, short_lm, tokenizer):
    rows = [{"context": "the", "word": word} for word in (" cat", " red dog")] * 50
    folder = write_task(
        "words", rows, output_type="loglikelihood", doc_to_target="word", doc_to_choice=None, target_delimiter="",
        metric_list=[{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}],
    )  # fmt: skip
    perplexity = measured(short_lm, ["words"], folder)["downstream.words.perplexity"]
    log_v = math.log(len(tokenizer) - 1)
    assert perplexity.value == pytest.approx(math.exp(1.5 * log_v), rel=1e-5)
    # One token or two: a deviation of half log V. The delta method is good for a few per cent of a mean of 100, and
    # 1000 resamples tell a deviation to 2 %.
    assert perplexity.standard_error == pytest.approx(perplexity.value * log_v * 0.5 / 10, rel=0.15)


def test_an_autoregressive_model_draws_nothing(write_task, gpt2, tokenizer):
    folder = write_task("ours", QUESTIONS)
    found = measured(lambda: AutoregressiveLM(gpt2, tokenizer, batch_size=2), ["ours"], folder)
    assert "monte_carlo_error.ours" not in found
    assert found["downstream.ours.acc"].value in (0.25, 0.75)


def test_no_tasks_need_nothing(short_lm, tmp_path):
    assert run_downstream(short_lm, [], include_path=tmp_path / "nowhere", limit=None) == []


def test_what_cannot_be_run_is_one_line(few_tasks, write_task, short_lm, tmp_path):
    folder = write_task("ours", QUESTIONS)
    with pytest.raises(UserError, match=r"names 'outs', which neither lm-eval"):
        run_downstream(short_lm, ["ours", "outs"], include_path=folder, limit=None)
    with pytest.raises(UserError, match="is not a folder"):
        run_downstream(short_lm, ["ours"], include_path=tmp_path / "nowhere", limit=None)
    (tmp_path / "ours.jsonl").unlink()
    with pytest.raises(UserError, match="ours cannot be loaded"):
        run_downstream(short_lm, ["ours"], include_path=folder, limit=None)
    write_task("none", [])
    with pytest.raises(UserError, match="none cannot be loaded"):
        run_downstream(short_lm, ["none"], include_path=folder, limit=None)


def test_the_hub_out_of_reach_is_one_line(few_tasks, short_lm, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="arc_easy cannot be loaded"):
        run_downstream(short_lm, ["arc_easy"], include_path=None, limit=None)
