"""Models of others through the whole graph: a ModernBERT and a LLaDA stage by stage in one process, a LLaDA by DVC."""

import csv
import json
from pathlib import Path

import pytest
import yaml
from stages import baseline, distill, evaluate, frontier, latency, prepare, pretrain, report, sample, track

from halfstep.data.corpora.stories import stories
from halfstep.data.tokenizer import train_word_tokenizer
from halfstep.metrics.record import read_record
from halfstep.tools.planning.compose import composed_params
from tests.model.hub_folders import llada, published
from tests.pipeline.project import Project, stages_run

ROOT = Path(__file__).parents[2]
MODELS = ("ar", "0", "1", "2", "3")


def publish(folder: Path, kind: str) -> str:
    """A tiny model with its tokenizer, as it lies on the hub."""
    tokenizer = train_word_tokenizer(stories(100, 0), 200)
    if kind == "llada":
        llada(folder, len(tokenizer) + 3, mask_token_id=tokenizer.mask_token_id)
    else:
        published(folder, kind, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=["modernbert", "llada"])
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The preset `hub-smoke`, finished."""
    root = tmp_path_factory.mktemp(request.param)
    source = publish(tmp_path_factory.mktemp("hub") / "model", request.param)
    given = [f"pretrain.init_from={source}", "runtime.device=cpu", "runtime.num_threads=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("DVC_ROOT", str(root))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
        values = composed_params(["preset=hub-smoke", *given], ROOT).model_dump(mode="json")
        Path("params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        params = Path("params.yaml")
        tokens, tokenizer = Path("data/tokens"), Path("data/tokenizer")
        prepare.main(params, tokens, tokenizer, Path("data/cloze.jsonl"))
        pretrain.main(params, tokens, tokenizer, Path("models/0"), Path("curves/0.csv"))
        baseline.main("ar", params, tokens, tokenizer, None, None)
        for round_index in (1, 2, 3):
            distill.main(round_index, params_path=params, tokens_path=tokens, tokenizer_path=tokenizer)
        for model in MODELS:
            sample.main(model, None, None, params, tokens)
            evaluate.main(model, None, None, params, tokens, Path("data/cloze.jsonl"), None, None)
            frontier.main(model, None, None, params, tokens)
        latency.main(params)
        report.main(Path(), Path("reports"))
        track.main(Path())
    return root


@pytest.mark.stage
def test_the_last_student_is_a_folder_of_transformers(project: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    is_llada = "llada" in project.name
    auto_class = AutoModelForCausalLM if is_llada else AutoModelForMaskedLM
    student = auto_class.from_pretrained(project / "models" / "3")
    assert type(student).__name__ == ("LlamaForCausalLM" if is_llada else "ModernBertForMaskedLM")
    assert AutoTokenizer.from_pretrained(project / "models" / "3").mask_token_id is not None
    first, last = (auto_class.from_pretrained(project / "models" / name).state_dict() for name in "03")
    assert any((first[name] != last[name]).any() for name in first)
    timed = json.loads((project / "metrics/latency.json").read_text())
    assert timed["num_parameters"]["denoiser"] == student.num_parameters()


@pytest.mark.stage
def test_every_model_is_measured_drawn_in_both_ways_and_reported(project: Path) -> None:
    for model in MODELS:
        record = read_record(project / f"metrics/{model}.json")
        for metric in ("bits_per_byte", "cloze_accuracy"):
            assert record.get(metric) is not None
    with (project / "reports/frontier.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert {(row["model"], row["sampler"]) for row in rows} == {
        ("ar", "autoregressive"), *((model, name) for model in MODELS[1:] for name in ("ancestral", "ordered"))
    }  # fmt: skip
    # The teacher has two blocks, and so has the rival.
    assert {float(row["equivalent_evaluations"]) / float(row["evaluations"]) for row in rows} == {1.0}
    assert "<img" in (project / "reports/index.html").read_text()
    assert json.loads((project / "mlflow.json").read_text())["run_ids"].keys() == {*MODELS}


@pytest.mark.system
def test_dvc_runs_a_llada_by_the_preset(tmp_path: Path) -> None:
    """As far as a rival that is weighted by its teacher's blocks."""
    project = Project(tmp_path / "a project")
    source = publish(tmp_path / "llada", "llada")
    options = ["-S", "preset=hub-smoke", "-S", f"pretrain.init_from={source}", "-S", "model.num_blocks=1"]
    output = project.dvc("exp", "run", *options, "frontier@ar", "latency")
    before = {"inputs@prepare", "inputs@pretrain", "prepare", "pretrain", "baseline"}
    assert set(stages_run(output)) == {*before, "frontier@ar", "latency"}
    assert json.loads((project.path / "models/0/config.json").read_text())["model_type"] == "llama"
    with (project.path / "frontier/ar/rows.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert {float(row["equivalent_evaluations"]) / float(row["evaluations"]) for row in rows} == {0.5}
    output = project.dvc("exp", "run", "-S", "preset=hub-smoke", code=None)
    assert "pretrain.init_from is null: only you know its value" in output
