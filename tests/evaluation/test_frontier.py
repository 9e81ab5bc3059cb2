"""Stage `frontier@m` in process: a tiny denoiser and a tiny GPT-2 of half its depth."""

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from stages import frontier

from halfstep.data.tokenizer import load_tokenizer, train_word_tokenizer
from halfstep.data.tokens.seeds import derive_seed
from halfstep.evaluation import scorer
from halfstep.evaluation.frontier import documents_of
from halfstep.evaluation.metrics.generative_perplexity import unigram_entropy
from halfstep.metrics.frontier import read_curves
from halfstep.model.config import DenoiserConfig
from halfstep.model.denoiser import Denoiser
from halfstep.model.gpt2 import new_gpt2
from halfstep.model.joint import JointHeadConfig, JointModel
from halfstep.run.errors import UserError
from halfstep.samplers.adjust import with_temperature
from halfstep.samplers.base import Uniforms
from halfstep.samplers.sampler import Sampler
from halfstep.samples.draw import draw, from_nothing
from halfstep.tools.planning.compose import composed_params

ROOT = Path(__file__).parents[2]
LENGTH, NUM_SAMPLES = 12, 5
SAMPLERS = [
    {"name": "ancestral", "num_steps": [3]},
    {"name": "ordered", "num_steps": [4], "score": ["margin"], "noise": [1.0], "counts": ["cosine"]},
]
pytestmark = pytest.mark.stage


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_tokens: Callable[..., None]) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    values = composed_params(["objective=sdtt"], ROOT).model_dump(mode="json")
    values["data"].update(context_length=LENGTH)
    values["sample"].update(prefix_length=4, continuation_length=LENGTH, give_ends=True)
    values["runtime"].update(device="cpu", num_threads=1)
    values["evaluate"].update(scorer="models/ar", num_bootstrap_resamples=50, mauve_num_buckets=2, batch_size=4)
    values["frontier"].update(
        samplers=SAMPLERS, student_samplers=SAMPLERS[:1], temperatures=[0.8, 1.0], num_samples=NUM_SAMPLES, batch_size=2
    )
    Path("params.yaml").write_text(yaml.safe_dump(values))
    tokenizer = train_word_tokenizer(["Anna lost a b c d e f. Ben found it."], 30)
    vocab_size = len(tokenizer)
    torch.manual_seed(0)
    denoiser = Denoiser(DenoiserConfig(vocab_size, tokenizer.mask_token_id, LENGTH, 8, 2, 2, 4, 0.0, 1e-3))
    for weight in denoiser.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    gpt2 = new_gpt2(vocab_size=vocab_size, length=LENGTH, hidden_size=8, num_blocks=1, num_heads=2, dropout=0.0)
    for name, model in {"0": denoiser, "1": denoiser, "ar": gpt2}.items():
        (Path("models") / name).mkdir(parents=True)
        model.save_pretrained(Path("models") / name)
        tokenizer.save_pretrained(Path("models") / name)
    rows = np.random.default_rng(0).integers(0, vocab_size - 1, size=(8, LENGTH)).astype(np.uint16)
    write_tokens(Path("data/tokens"), {"train": rows, "valid": rows}, vocab_size=vocab_size)
    return tmp_path


def measured(model: str, target: str = "frontier", **changes: Any) -> Path:
    """The folder that the stage writes."""
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["frontier"].update(changes)
    Path("changed.yaml").write_text(yaml.safe_dump(values))
    folder = Path(target) / model
    frontier.main(model, Path("models") / model, folder, Path("changed.yaml"), Path("data/tokens"))
    return folder


def rows_of(folder: Path) -> list[dict[str, str]]:
    """All that is written but the time that it took."""
    found = []
    for name in ("rows.csv", "samples.csv"):
        with (folder / name).open(newline="") as stream:
            found += [{k: v for k, v in row.items() if k != "seconds_per_sample"} for row in csv.DictReader(stream)]
    return found


def test_rows_are_what_draw_gives(project: Path) -> None:
    curves = read_curves(measured("0"))
    assert [curve.name for curve in curves] == [
        ("0", "ancestral", "num_steps=3"), ("0", "ordered", "num_steps=4,score=margin,noise=1.0,counts=cosine"),
    ]  # fmt: skip
    model = Denoiser.from_pretrained(Path("models/0")).eval()
    tokenizer = train_word_tokenizer(["Anna lost a b c d e f. Ben found it."], 30)
    x_init = from_nothing(NUM_SAMPLES, LENGTH, tokenizer, give_ends=True)
    for curve, entry in zip(curves, SAMPLERS, strict=True):
        sampler = Sampler(entry["name"], {key: value[0] for key, value in entry.items() if key != "name"})
        assert [row.temperature for row in curve.rows] == [0.8, 1.0]
        for row, entropies in zip(curve.rows, curve.entropies, strict=True):
            drawn = draw(
                model, sampler, x_init, mask_token_id=tokenizer.mask_token_id,
                uniforms=Uniforms(derive_seed(0, "frontier"), range(NUM_SAMPLES), LENGTH),
                adjust=partial(with_temperature, temperature=row.temperature) if row.temperature != 1 else None,
            )  # fmt: skip
            assert row.evaluations == drawn.nfe.double().mean().item()
            # The first teacher's depth is 1.
            assert row.equivalent_evaluations == row.evaluations
            assert entropies.tolist() == [unigram_entropy(ids) for ids in drawn.tokens.tolist()]
            assert row.seconds_per_sample > 0
            assert row.num_samples == NUM_SAMPLES
            assert row.perplexity_low is not None
            assert row.perplexity_high is not None
            assert row.perplexity is not None
            assert row.perplexity_low <= row.perplexity <= row.perplexity_high


def test_a_model_of_half_the_depth_costs_half(project: Path) -> None:
    (curve,) = read_curves(measured("ar"))
    for row in curve.rows:
        # BOS is given; an autoregressive model does not know the end that a denoiser is given.
        assert (row.sampler, row.setting, row.evaluations) == ("autoregressive", "", LENGTH - 1)
        assert row.equivalent_evaluations == (LENGTH - 1) / 2


def test_an_autoregressive_model_begins_at_bos_where_no_ends_are_given(project: Path) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["sample"]["give_ends"] = False
    Path("params.yaml").write_text(yaml.safe_dump(params))
    (curve,) = read_curves(measured("ar"))
    assert {row.evaluations for row in curve.rows} == {LENGTH - 1}


def test_a_student_has_samplers_of_its_own(project: Path) -> None:
    assert [curve.name for curve in read_curves(measured("1"))] == [("1", "ancestral", "num_steps=3")]


def test_the_passes_of_a_joint_head_are_added_to_the_cost(project: Path) -> None:
    trunk = Denoiser.from_pretrained(Path("models/1"))
    model = JointModel.untrained(trunk, JointHeadConfig(8, 2, 2, "sampler"))
    torch.nn.init.normal_(model.joint_head.out.weight)
    model.save_pretrained(Path("models/1"))
    choose_objective("joint", hidden_size=8, num_layers=2, num_heads=2, order="both", train_trunk=False)
    sampler = {"name": "ancestral", "num_steps": [2], "drawing": ["sequential"]}
    (curve,) = read_curves(measured("1", student_samplers=[sampler]))
    x_init = from_nothing(NUM_SAMPLES, LENGTH, load_tokenizer(Path("models/1")), give_ends=True)
    for row in curve.rows:
        assert row.evaluations == 2
        # Of each step's tokens all but the first.
        assert row.head_passes == int((x_init[0] == x_init[0, 1]).sum()) - row.evaluations
        assert row.equivalent_evaluations == row.evaluations + 2 / trunk.config.num_blocks * row.head_passes


def choose_objective(name: str, **own: Any) -> None:
    values = yaml.safe_load(Path("params.yaml").read_text())
    del values["distill"][values["distill"]["objective"]]
    values["distill"] |= {"objective": name, name: own}
    Path("params.yaml").write_text(yaml.safe_dump(values))


def test_samplers_of_a_head_that_no_model_has_are_refused(project: Path) -> None:
    sampler = {"name": "ancestral", "num_steps": [2], "drawing": ["speculative"]}
    for key in ("samplers", "student_samplers"):
        with pytest.raises(UserError, match=rf"frontier\.{key} has drawing \['speculative'\] of ancestral, for which"):
            measured("1", **{key: [sampler]})


def test_the_batch_size_changes_nothing(project: Path) -> None:
    assert rows_of(measured("0")) == rows_of(measured("0", "other", batch_size=5))


class Killed(Exception):
    """In place of the end of the process."""


def test_cut_off_it_goes_on_after_the_last_batch_whatever_draws_other_models(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def draw_or_die(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments[1].name)
        if len(calls) == 5:
            raise Killed
        return draw(*arguments, **options)

    monkeypatch.setattr("halfstep.evaluation.frontier.draw", draw_or_die)
    with pytest.raises(Killed):
        measured("0")
    assert not Path("frontier/0").exists()
    read = []
    monkeypatch.setattr(
        scorer, "_read_batch", lambda model, texts, do=scorer._read_batch: read.append(1) or do(model, texts)
    )
    gone_on = rows_of(measured("0", student_samplers=SAMPLERS[1:]))
    # 2 samplers at 2 temperatures in batches of 2, 2 and 1; the one that was cut off twice.
    assert len(calls) == 12 + 1
    # 5 texts in batches of 4: not again the held-out text and the first way, drawn by the first 3 calls.
    assert len(read) == 4 * 2 - 2
    monkeypatch.undo()
    monkeypatch.setenv("DVC_ROOT", str(project / "again"))
    monkeypatch.chdir(project)
    assert rows_of(measured("0", "other")) == gone_on


def test_a_model_of_another_name_is_refused() -> None:
    with pytest.raises(UserError, match=r"model '\.\./0' is not known"):
        frontier.main("../0", params_path=ROOT / "params.yaml")


def test_documents_end_with_eos() -> None:
    tokenizer = train_word_tokenizer(["Anna lost a b c d e f. Ben found it."], 30)
    ids = tokenizer("Anna lost a.", add_special_tokens=False)["input_ids"]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    found = documents_of([bos, *ids, eos, *ids, eos, *ids[:2], eos], tokenizer)
    assert found == ["Anna lost a.", "Anna lost a.", "Anna lost", ""]
