"""The model card says what is known of a model, and no more."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from tests.model.hub_folders import MASK, NUM_TOKENS, published
from tests.report.conftest import Project

from halfstep.model.hub import open_hub
from halfstep.tools.card import model_card
from halfstep.tools.export import export_denoiser

LICENSE = {"license": "other", "license_name": "base-terms", "license_link": "https://example.org/terms"}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A finished run whose first teacher began as a BERT in a folder, with its metrics and a model 2."""
    made = Project(tmp_path)
    published(tmp_path / "base", "bert")
    (tmp_path / "base" / "README.md").write_text(f"---\n{yaml.safe_dump(LICENSE)}---\nA base.\n")
    made.write_params(pretrain__init_from="base")
    made.write_metrics()
    model = tmp_path / "models" / "2"
    model.mkdir(parents=True)
    given = {"mask_token_id": MASK, "num_tokens": NUM_TOKENS, "length": 24, "noise_epsilon": 1e-3}
    open_hub(tmp_path / "base", None, **given).save_pretrained(model)
    return made


def card_of(project: Project) -> ModelCard:
    return model_card(project.root / "models" / "2", project.root / "models" / "2")


def test_an_exported_model_has_a_card_of_what_was_measured(project: Project, tmp_path: Path) -> None:
    export_denoiser(project.root / "models" / "2", tmp_path / "out", "plain")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    metadata = {**LICENSE, "library_name": "transformers", "pipeline_tag": "fill-mask"}
    assert card.data.to_dict() == {**metadata, "tags": ["halfstep", "masked-diffusion"]}
    assert "round 2 of 2, objective `joint`" in card.text
    assert str(tmp_path) not in card.content
    # Cells of perplexity are those of the report: the student's and its teacher's best for so much.
    frontier = project.experiment().frontier
    assert frontier is not None
    best = {(way.model, way.sampler, way.setting): frontier.value(way) for way in frontier.found}
    setting = "num_steps=16,score=entropy"
    row = f"| 16 | ordered (16 steps) | {best['2', 'ordered', setting]} | {best['0', 'ordered', setting]} |"
    assert row in card.text
    assert card.text.count("\n| ") == 4
    assert "--sampler ordered --num-steps 16 --score entropy --temperature 0.9" in card.text
    assert "AutoModelForMaskedLM.from_pretrained" in card.text


def test_what_is_not_known_is_left_out(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.root / "metrics" / "2.json").unlink()
    project.write_params(pretrain__init_from="owner/base", pretrain__init_revision="v1")
    # The hub cannot be asked for the base's own card.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    card = card_of(project)
    assert (card.data.base_model, card.data.license) == ("owner/base", None)
    assert "[owner/base](https://huggingface.co/owner/base) at revision `v1`" in card.text
    assert "Licence: that of the base: see there." in card.text
    assert "erplexity" not in card.text
    project.write_params()
    assert "trained from nothing on `stories`" in card_of(project).text
    # Of a folder that lies elsewhere nothing is known but how it is loaded.
    elsewhere = (project.root / "models").rename(project.root / "kept") / "2"
    alone: dict[str, Any] = model_card(elsewhere, elsewhere).data.to_dict()
    assert alone == {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["halfstep", "masked-diffusion"],
    }


def test_figures_of_a_joint_head_are_not_those_of_a_model_without(project: Project, tmp_path: Path) -> None:
    model = project.root / "models" / "2"
    (model / "joint_head.json").write_text("{}")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_bytes((model / "config.json").read_bytes())
    text = model_card(tmp_path / "out", model).text
    assert "a joint head, which is left out here" in text
    assert "erplexity" not in text
    assert "erplexity" in card_of(project).text
