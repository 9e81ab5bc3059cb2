"""`halfstep generate`: any sampler by its name, any model by its folder."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.model.hub_folders import published
from typer.testing import CliRunner

from halfstep.data.tokenizer import load_tokenizer
from halfstep.metrics.estimate import Estimate
from halfstep.metrics.frontier import FrontierRow, write_frontier
from halfstep.metrics.record import Record, Row, write_record
from halfstep.model.denoiser import Denoiser
from halfstep.model.hub import open_hub
from halfstep.samplers.ancestral import sample
from halfstep.samplers.base import Uniforms, fill
from halfstep.samplers.confidence import Confidence
from halfstep.samplers.sampler import Sampler
from halfstep.tools.best import best_sampler
from halfstep.tools.cli import app

BEST = {"score": "entropy", "noise": 0.0, "counts": "cosine"}


ORDER = "score=entropy,noise=0.0,counts=cosine"


def run(*arguments: object):
    return CliRunner().invoke(app, ["generate", *map(str, arguments)])


def test_a_denoiser_writes_by_the_sampler_that_is_named(folders: dict[str, Path]) -> None:
    model, tokenizer = Denoiser.from_pretrained(folders["denoiser"]), load_tokenizer(folders["denoiser"])
    mask = tokenizer.mask_token_id
    given = [tokenizer.bos_token_id, *tokenizer.encode("the cat", add_special_tokens=False)]
    x_init = torch.tensor([given + [mask] * (11 - len(given)) + [tokenizer.eos_token_id]] * 2)
    uniforms = Uniforms(5, range(2), 12)
    u_time, u_token = uniforms.first

    def eight(num_steps: int):
        return sample(model, x_init, num_steps=num_steps, mask_token_id=mask, u_time=u_time, u_token=u_token)

    expected = {
        (): Sampler("ordered", BEST | {"num_steps": 16}).sample(model, x_init, mask_token_id=mask, uniforms=uniforms),
        ("--num-steps", 3): eight(3),
        ("--sampler", "ancestral", "--num-steps=3"): eight(3),
        ("--sampler", "confidence", "--threshold", 0.7): fill(
            model, x_init, Confidence(mask, 0.7), mask_token_id=mask, u_token=u_token
        ),
    }
    for arguments, samples in expected.items():
        result = run("--model", folders["denoiser"], "--prompt", "the cat", "--num-samples", 2, "--seed", 5, *arguments)
        assert result.exit_code == 0, result.output
        texts = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in samples.tokens.tolist()]
        assert result.stdout.splitlines() == texts
    shown = run("--model", folders["denoiser"], "--num-steps", 2, "--show", "--pause-seconds", 0)
    assert "denoising step 2 of 2" in shown.stdout


def test_a_causal_model_writes_too(folders: dict[str, Path]) -> None:
    likeliest = [run("--model", folders["causal"], "--prompt", "the", "--top-k", 1, "--seed", s) for s in (0, 1)]
    assert [result.exit_code for result in likeliest] == [0, 0]
    assert likeliest[0].stdout == likeliest[1].stdout
    assert likeliest[0].stdout.startswith("the")


def test_the_best_that_was_measured_for_so_many_evaluations_is_taken(folders: dict[str, Path], tmp_path: Path) -> None:
    """At entropy 2 ancestral sampling is worth 4, and ordered 8 in the budget of 8 but 3 in that of 16."""
    ways = {("ancestral", "num_steps=8"): 4.0, ("ordered", f"num_steps=8,{ORDER}"): 8.0}
    ways["ordered", f"num_steps=16,{ORDER}"] = 3.0
    rows, samples = [], []
    for (sampler, setting), perplexity in ways.items():
        evaluations = float(setting.partition("=")[2].partition(",")[0])
        for temperature, entropy in ((0.8, 1.0), (1.0, 3.0)):
            row = FrontierRow(
                model="0",
                sampler=sampler,
                setting=setting,
                temperature=temperature,
                evaluations=evaluations,
                equivalent_evaluations=evaluations,
                seconds_per_sample=0.1,
                perplexity=perplexity,
                num_samples=2,
            )
            rows.append(row)
            nll = 10 * (math.log(perplexity) + 0.1 * (entropy - 2))
            samples += [(sampler, setting, temperature, i, nll, 10, entropy) for i in range(2)]
    write_frontier(tmp_path / "frontier" / "0", rows, samples)
    text = Row("data_entropy", Estimate(2.0, None, 2, "nats"))
    write_record(tmp_path / "metrics" / "0.json", Record("0", "denoiser", 0, 1, "ar", False, (text,), (), {}))
    model = tmp_path / "models" / "0"
    for num_evaluations, sampler, setting in (
        (8, "ancestral", "num_steps=8"),
        (16, "ordered", f"num_steps=16,{ORDER}"),
    ):
        best, temperature = best_sampler(model, num_evaluations)
        assert (best.name, best.setting, temperature) == (sampler, setting, pytest.approx(0.9))
    # Nothing so cheap, and a model of no project.
    for folder, num_evaluations in ((model, 2), (Path("/models"), 16)):
        best, temperature = best_sampler(folder, num_evaluations)
        assert (best.setting, temperature) == (f"num_steps={num_evaluations},{ORDER}", 1.0)
    # A causal model has no sampler to choose, however many evaluations it may take.
    shutil.copytree(folders["causal"], tmp_path / "models" / "ar")
    causal = [replace(row, model="ar", sampler="autoregressive", setting="") for row in rows[:2]]
    write_frontier(tmp_path / "frontier" / "ar", causal, [("autoregressive", "", *of[2:]) for of in samples[:4]])
    write_record(
        tmp_path / "metrics" / "ar.json", Record("ar", "autoregressive", None, 1, "ar", False, (text,), (), {})
    )
    result = run("--model", tmp_path / "models" / "ar", "--evaluations", 64)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sampler", "surest"], "--sampler: there is no sampler 'surest'; there are ancestral, confidence"),
        (["--sampler", "confidence"], "--sampler: confidence needs threshold"),
        (["--sampler", "confidence", "--threshold", "1.5"], "threshold of confidence is 1.5"),
        (["--num-steps", "0"], "num_steps of ancestral is 0"),
        (["--num-stepz", "4"], "ancestral has no setting num_stepz"),
        (["--num-steps", "[4, 8]"], "num_steps of ancestral is [4, 8]"),
        (["--num-steps", "{"], "--num-steps { is not understood"),
        (["extra"], "extra is not understood"),
    ],
)
def test_samplers_that_cannot_be_are_one_line(arguments: list[str], message: str, folders: dict[str, Path]) -> None:
    result = run("--model", folders["denoiser"], *arguments)
    assert message in str(result.exception)


def test_a_text_longer_than_the_positions_of_a_model_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """The denoiser's are rotary, and have no end; what a network of transformers was trained on may be shorter."""
    assert run("--model", folders["denoiser"], "--length", 13, "--num-steps", 1).exit_code == 0
    message = "has 12 positions: give 12 or less"
    assert message in str(run("--model", folders["causal"], "--length", 13).exception)
    tokenizer = load_tokenizer(folders["denoiser"])
    published(tmp_path / "bert", "bert", vocab_size=len(tokenizer), max_position_embeddings=12)
    known = {"mask_token_id": tokenizer.mask_token_id, "num_tokens": len(tokenizer)}
    model = open_hub(tmp_path / "bert", None, **known, length=10, noise_epsilon=1e-3)
    for written in (model, tokenizer):
        written.save_pretrained(tmp_path / "model")
    assert message in str(run("--model", tmp_path / "model", "--length", 13).exception)
    assert run("--model", tmp_path / "model", "--length", 12).exit_code == 0
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "the cat"}')
    respond = ["respond", str(prompts), str(tmp_path / "answers.jsonl"), "--model", str(tmp_path / "model")]
    assert message in str(CliRunner().invoke(app, [*respond, "--length", "13"]).exception)
    assert run("--model", folders["causal"], "--length", 12).exit_code == 0
