"""What `params.yaml` holds: one frozen model per section, no defaults, unknown keys refused.

`params.yaml` is composed from `pipeline/conf` by Hydra and never edited, so every value is stated there and
nowhere else. `load_params` reads and checks all of it; a stage unpacks its own section into plain values.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, AliasPath, BaseModel, ConfigDict, Field, ValidationError

from halfstep.run.errors import UserError, one_line, shown
from halfstep.settings.base import MAX_ROUNDS, MAX_SEED, NumBlocks, Settings, each_once
from halfstep.settings.data import CorpusSettings
from halfstep.settings.evaluation import EvaluateSettings, FrontierSettings, LatencySettings, SampleSettings
from halfstep.settings.graph import (
    DrawnBy,
    InputSettings,
    RoundSettings,
    frontiers_of,
    models_of,
    schedule_of,
    scores_by_baseline,
)
from halfstep.settings.messages import describe
from halfstep.settings.plugins import Plugin
from halfstep.settings.runtime import LaunchSettings, RuntimeSettings
from halfstep.settings.tracking import TrackingSettings
from halfstep.settings.training import (
    WITHOUT_INFLUENCE,
    BaselineSettings,
    DistillSettings,
    ModelSettings,
    NoiseSettings,
    PretrainSettings,
    TrainingSettings,
    num_parts_of,
)

Kind = TypeVar("Kind", bound=BaseModel)


class Params(Settings):
    """All of `params.yaml`."""

    preset: str
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)]
    rounds: Annotated[int, Field(ge=0, le=MAX_ROUNDS)]
    schedule: dict[str, RoundSettings]
    models: list[str]
    rivals: Annotated[tuple[NumBlocks, ...], Field(strict=False), AfterValidator(each_once)]
    frontiers: dict[str, DrawnBy]
    inputs: InputSettings
    runtime: RuntimeSettings
    launch: LaunchSettings
    data: Annotated[CorpusSettings, Plugin("halfstep.data.corpora", key="source", group="data")]
    model: ModelSettings
    noise: NoiseSettings
    pretrain: PretrainSettings
    baseline: BaselineSettings
    distill: Annotated[
        DistillSettings, Plugin("halfstep.objectives", key="objective", has_section=True, group="objective")
    ]
    sample: SampleSettings
    evaluate: EvaluateSettings
    frontier: FrontierSettings
    latency: LatencySettings
    tracking: TrackingSettings

    def deciding(self, *sections: str) -> dict[str, Any]:
        """Some sections as plain values, without those that change no step."""
        without = {name: WITHOUT_INFLUENCE for name in sections if isinstance(getattr(self, name), TrainingSettings)}
        without["data"] = {"num_workers"}
        return self.model_dump(mode="json", include=set(sections), exclude=without)


def named_inputs(params: Params) -> dict[str, dict[str, str | tuple[str, ...]]]:
    """For each stage that may read files which no other stage wrote: the parameters that name them, with their values.

    A value may be a hub id as well: only its reader knows. A corpus that reads the user's files has them in `path`;
    `pydocs` reads the running Python's own.
    """
    data, evaluate = params.data, params.evaluate
    named: dict[str, dict[str, Any]] = {
        "prepare": {
            "data.source": "pydocs" if data.source == "pydocs" else None,
            "data.path": getattr(data, "path", None),
            "data.cloze": data.cloze,
            "data.tokenizer.source": None if data.tokenizer.source.startswith("train-") else data.tokenizer.source,
        },
        "pretrain": {"pretrain.init_from": params.pretrain.init_from},
        "baseline": {"baseline.init_from": params.baseline.init_from},
        "evaluate": {
            "evaluate.scorer": None if scores_by_baseline(evaluate.scorer) else evaluate.scorer,
            **{f"evaluate.likelihood_on.{text.name}": text.source for text in evaluate.likelihood_on},
            "evaluate.downstream_include_path": evaluate.downstream_include_path if evaluate.downstream_tasks else None,
        },
    }
    return {stage: {key: value for key, value in of.items() if value is not None} for stage, of in named.items()}


def load_params(path: Path) -> Params:
    """Read and check the composed parameters.

    Raises:
        UserError: the file is missing, is not YAML, has an unknown key or a value that does not fit, or
            contradicts itself (the schedule is not what `rounds` gives, a length exceeds the context).
    """
    params = _read(path, Params)
    for problem in _contradictions(params):
        raise UserError(f"{path}{problem}")
    return params


class Reported(BaseModel):
    """What a report needs of `params.yaml`; the rest may be that of another version."""

    model_config = ConfigDict(frozen=True)

    seed: int
    rounds: int
    models: list[str]
    rivals: tuple[int, ...]
    frontiers: dict[str, str]
    num_blocks: int = Field(validation_alias=AliasPath("model", "num_blocks"))
    baseline_from: str | None = Field(validation_alias=AliasPath("baseline", "init_from"))
    num_givens: tuple[int, ...] = Field(validation_alias=AliasPath("frontier", "num_givens"))
    num_bootstrap_resamples: int = Field(validation_alias=AliasPath("evaluate", "num_bootstrap_resamples"))


def load_reported(path: Path) -> Reported:
    """Read what a report needs of composed parameters.

    Raises:
        UserError: the file is missing, is not YAML, or lacks some of it.
    """
    return _read(path, Reported)


def _read(path: Path, kind: type[Kind]) -> Kind:
    values = _read_yaml(path)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(describe(error, path, kind, values)) from None


def _read_yaml(path: Path) -> Any:
    way_out = "it is composed from pipeline/conf: dvc exp run"
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a file; {way_out}")
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not there; run in the project's root, or compose it: dvc exp run") from None
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}; {way_out}") from None


def _contradictions(params: Params) -> Iterator[str]:
    """What does not go together, each with an override that resolves it."""
    rounds, context, models = params.rounds, params.data.context_length, models_of(params.rounds)
    frontiers = frontiers_of(rounds, params.rivals)
    composed = "the file is composed, not edited: dvc exp run -S"
    if (params.schedule, params.models, params.frontiers) != (schedule_of(rounds), models, frontiers):
        yield (
            f" contradicts itself: rounds is {rounds}, but schedule holds rounds {shown(list(params.schedule))},"
            f" models {shown(params.models)} and frontiers {shown(list(params.frontiers))}; {composed} rounds={rounds}"
        )
    stages = [stage for stage, named in named_inputs(params).items() if named]
    # By hand a stage needs no stage that watches its inputs.
    if "DVC_STAGE" in os.environ and params.inputs.stages != stages:
        yield (
            f" contradicts itself: files are read by the stages {shown(stages)}, but inputs.stages is"
            f" {shown(params.inputs.stages)}; {composed} KEY=VALUE"
        )
    lengths = {
        "sample.continuation_length": params.sample.continuation_length,
        "latency.length": params.latency.length or context,
    }
    for key, length in lengths.items():
        if length > context:
            yield (
                f": {key} is {length}, more than data.context_length {context};"
                f" give fewer: dvc exp run -S {key}={context}"
            )
    if (most := max(params.baseline.num_givens, default=0)) > context - 2:
        yield (
            f": baseline.num_givens is {most}, more than the {context - 2} tokens of a sequence beside BOS and EOS:"
            f" dvc exp run -S baseline.num_givens=[{context // 2}]"
        )
    fewest = params.distill.num_teacher_steps**rounds
    if rounds and params.distill.base_num_steps < fewest:
        yield (
            f": distill.base_num_steps is {params.distill.base_num_steps}, but rounds {rounds} with"
            f" {params.distill.num_teacher_steps} teacher steps each need {fewest} or more:"
            f" dvc exp run -S distill.base_num_steps={fewest}"
        )
    for section in ("pretrain", "baseline", *(["distill"] if rounds else [])):
        try:
            num_parts_of(getattr(params, section), section, params.launch.num_processes)
        except UserError as error:
            yield f": {error}"
    if rounds and (rank := params.distill.lora.rank) is not None:
        if params.pretrain.init_from is None:
            yield (
                f": distill.lora.rank is {rank}, but the first teacher is none of transformers': dvc exp run -S"
                " distill.lora.rank=null, or pretrain.init_from=MODEL"
            )
        if params.launch.strategy == "fsdp":
            yield (
                f": distill.lora.rank is {rank}, and launch.strategy is fsdp, but what is frozen is whole on every"
                " device: dvc exp run -S launch.strategy=ddp"
            )
    baseline = params.baseline
    asks = rounds and params.distill.asks_autoregressive
    if asks and not baseline.num_train_steps and baseline.init_from is None:
        yield (
            f": distill.objective is {params.distill.objective}, which asks models/ar, but baseline.num_train_steps is"
            " 0: dvc exp run -S baseline.num_train_steps=1000, or objective=sdtt"
        )
    students_serve = not rounds or getattr(params.distill.own, "makes_head", False)
    for key, samplers, has_head in (
        ("sample.samplers", params.sample.samplers, False),
        ("frontier.samplers", params.frontier.samplers, False),
        ("frontier.student_samplers", params.frontier.student_samplers, students_serve),
        ("latency.samplers", params.latency.samplers, False),
    ):
        if not has_head and (asking := [sampler for sampler in samplers if sampler.needs_head]):
            other = "objective=joint" if key == "frontier.student_samplers" else f"{key}=[{{name: ancestral, ...}}]"
            yield (
                f": {key} has drawing {shown(list(asking[0].drawing))} of {asking[0].name}, for which a model needs a"
                f" joint head, but these have none; those of the objectives joint and joint_sdtt have one: dvc exp"
                f" run -S {other}"
            )
    buckets = params.evaluate.mauve_num_buckets
    for what, num_texts in (
        (
            "sample.num_prefixes and their continuations",
            params.sample.num_prefixes * (1 + params.sample.continuations_per_prefix),
        ),
        ("frontier.num_samples and as many of the validation text", 2 * params.frontier.num_samples),
    ):
        if buckets != "auto" and buckets > num_texts:
            yield (
                f": evaluate.mauve_num_buckets is {buckets}, more than the {num_texts} texts to sort into them, {what}:"
                " dvc exp run -S evaluate.mauve_num_buckets=auto"
            )
