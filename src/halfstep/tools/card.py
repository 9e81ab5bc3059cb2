"""The model card: what a model's folder is, where it comes from, what was measured of it, and how to load it."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from halfstep.metrics.frontier import AtEntropy, best_within
from halfstep.metrics.record import Record, read_record
from halfstep.model.families import FAMILIES, Authors, family_of
from halfstep.model.hub import is_own, own_config
from halfstep.model.joint import HEAD_CONFIG_FILE
from halfstep.model.layouts import MODEL_TYPE
from halfstep.model.loading import CONFIG_FILE, locate, read_values
from halfstep.report.frontier import ANSWER_BUDGET, Frontier, lowest_front, read_frontier
from halfstep.report.records import format_number
from halfstep.run.errors import UserError
from halfstep.settings import Params, load_params, load_reported
from halfstep.settings.graph import BASELINE, FIRST_TEACHER, scores_by_baseline

CARD_FILE = "README.md"
LICENSE_ENTRIES = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class _Made:
    """A model `models/NAME` of a project: how it was made, and what was measured of it."""

    root: Path
    name: str
    params: Params

    @property
    def base(self) -> tuple[str | Path, str | None] | None:
        """What it began as, a folder or a hub id, and its revision; None where it was trained from nothing."""
        section = self.params.pretrain if self.name.isdigit() else self.params.baseline
        if section.init_from is None or self.name.startswith(f"{BASELINE}-"):
            return None
        path = self.root / os.path.expanduser(section.init_from)
        return (path, None) if path.exists() else (section.init_from, section.init_revision)

    @cached_property
    def record(self) -> Record | None:
        path = self.root / "metrics" / f"{self.name}.json"
        return read_record(path) if path.is_file() else None

    @cached_property
    def frontier(self) -> Frontier | None:
        if self.record is None or not (self.root / "frontier" / self.name).is_dir():
            return None
        models = list(dict.fromkeys((FIRST_TEACHER, self.name)))
        return read_frontier(self.root, models, [self.record], load_reported(self.root / "params.yaml"))


def model_card(folder: Path, source: Path) -> ModelCard:
    """The card of a model.

    Args:
        folder: with its config.json.
        source: which was written there: of `models/NAME` in a project it is known how it was made.
    Raises:
        UserError: what the project says of it cannot be read.
    """
    source = source.resolve()
    root, made = source.parent.parent, None
    if source.parent.name == "models" and (root / "params.yaml").is_file():
        made = _Made(root, source.name, load_params(root / "params.yaml"))
    values = read_values(folder / CONFIG_FILE)
    lost_head = (source / HEAD_CONFIG_FILE).is_file() and not (folder / HEAD_CONFIG_FILE).is_file()
    frontier = made.frontier if made and not lost_head else None
    entries: dict[str, Any] = {"tags": ["halfstep", "masked-diffusion"]}
    paragraphs = [f"# {folder.name}"]
    if made:
        entries |= _base_entries(made)
        paragraphs += _origin(made, entries)
    paragraphs += _loading(folder, values, entries)
    paragraphs.append("MODEL is the id of this repository, FOLDER a folder with its files.")
    if lost_head:
        paragraphs.append("It was trained with a joint head, which is left out here: no other tools know one.")
    if frontier and made and made.record:
        paragraphs += _measured(frontier, made.name, made.record)
    return ModelCard(f"---\n{ModelCardData(**entries).to_yaml()}\n---\n\n" + "\n\n".join(paragraphs) + "\n")


def _base_entries(made: _Made) -> dict[str, Any]:
    """The base, where it is on the hub, and its licence, where its own card can be had and names one."""
    if made.base is None:
        return {}
    source, revision = made.base
    entries = {} if isinstance(source, Path) else {"base_model": source}
    try:
        data = ModelCard.load(locate(source, revision, CARD_FILE) / CARD_FILE).data
    except (UserError, OSError, ValueError, yaml.YAMLError):
        return entries
    return entries | {name: data.get(name) for name in LICENSE_ENTRIES if data.get(name)}


def _origin(made: _Made, entries: dict[str, Any]) -> list[str]:
    params, name = made.params, made.name
    if name == FIRST_TEACHER:
        text = "A masked diffusion language model"
    elif name.isdigit():
        text = (
            f"A masked diffusion language model, the student of round {name} of {params.rounds}, objective"
            f" `{params.distill.objective}`"
        )
    else:
        text = "An autoregressive language model"
    if made.base is None:
        return [f"{text}, trained from nothing on `{params.data.source}`."]
    source, revision = made.base
    at = f" at revision `{revision}`" if revision else ""
    base = (
        "a model from a local folder"
        if isinstance(source, Path)
        else f"[{source}](https://huggingface.co/{source}){at}"
    )
    terms = f"`{entries['license']}`, as that of the base" if "license" in entries else "that of the base: see there"
    is_untouched = name == FIRST_TEACHER and params.pretrain.num_train_steps == 0
    seen = "is as it was there" if is_untouched else f"was trained on `{params.data.source}`"
    return [f"{text}. It began as {base} and {seen}.", f"Licence: {terms}."]


def _loading(folder: Path, values: Any, entries: dict[str, Any]) -> list[str]:
    """How it is loaded; adds to the entries what it is loaded by."""
    values = values if isinstance(values, dict) else {}
    model_type = values.get("model_type", MODEL_TYPE)
    entries |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if is_own(values):
        config, is_decoder = own_config(values, folder / CONFIG_FILE), family_of(values, folder).is_decoder
        predicts = "the next token" if config.is_shifted else "its own token"
        entries["pipeline_tag"] = "text-generation" if is_decoder else "fill-mask"
        return [
            _code(f"AutoModelFor{'CausalLM' if is_decoder else 'MaskedLM'}"),
            f"It looks at both sides, masks with token {config.mask_token_id}, and the logits of a position predict"
            f" {predicts}. `from_pretrained` is of transformers 5.2 or newer.",
        ]
    if (family := FAMILIES.get(model_type)) and family.authors:
        return [_of_authors(family.authors)]
    if model_type == MODEL_TYPE:
        entries["library_name"] = "halfstep"
        return ["```python\nfrom halfstep.model.opening import open_denoiser\n\nmodel = open_denoiser(MODEL)\n```"]
    entries["tags"] = ["halfstep"]
    return [_code("AutoModelForCausalLM")]


def _of_authors(authors: Authors) -> str:
    code = (
        f", whose code is `{authors.entries['auto_map']['AutoConfig'].split('--')[0]}`'s"
        if "auto_map" in authors.entries
        else ""
    )
    return f"In the layout of `{authors.layout}`: for the tools of its authors{code}."


def _code(auto_class: str) -> str:
    return (
        f"```python\nfrom transformers import {auto_class}, AutoTokenizer\n\n"
        f"model, tokenizer = {auto_class}.from_pretrained(MODEL), AutoTokenizer.from_pretrained(MODEL)\n```"
    )


def _measured(frontier: Frontier, name: str, record: Record) -> list[str]:
    """What some evaluations buy, and how to draw so."""
    ways = lowest_front(frontier.of(name))
    if not ways:
        return []
    scorer = "an autoregressive model of the same run" if scores_by_baseline(record.scorer) else f"`{record.scorer}`"
    header = ("evaluations", "drawn by", "perplexity", *(["first teacher"] if name != FIRST_TEACHER else []))
    rows = [header, ("---:", *["---"] * (len(header) - 1)), *(_row(frontier, way, name) for way in ways)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    count = ways[0].perplexity.count if ways[0].perplexity else 0
    found = [
        f"Perplexity under {scorer} at the entropy of the validation text, {frontier.entropy:.3f} nats, or above, with"
        f" 95 % intervals over {count} samples; evaluations of the network per sample, each model drawn in its best"
        " way:",
        table,
    ]
    way = best_within(ways, ANSWER_BUDGET) or ways[0]
    if name.isdigit():
        options = [part.replace("_", "-").replace("=", " ") for part in way.setting.split(",")]
        command = " --".join([f"halfstep generate --model FOLDER --sampler {way.sampler}", *options])
        found.append(f"```\n{command} --temperature {way.temperature:.3g}\n```")
    return found


def _row(frontier: Frontier, way: AtEntropy, name: str) -> list[str]:
    cost = way.equivalent_evaluations or 0.0
    cells = [format_number(round(cost, 1)), frontier.describe(way), frontier.value(way)]
    teacher = frontier.of(FIRST_TEACHER)
    return cells if name == FIRST_TEACHER else [*cells, frontier.value(best_within(teacher, cost))]
