"""Resolvers: what DVC's templates cannot work out themselves.

DVC templates cannot count, Hydra composes before DVC reads: `${rounds:N}` becomes the mapping that `foreach` in
`dvc.yaml` expands into `distill@1` ... `distill@N`, `${models:N}` the list behind `sample@m` and `evaluate@m`, and
`${frontiers:N}` the mapping behind `frontier@m`, with the further autoregressive models, to the parameter that says how
each is drawn. `${inputs:}` becomes the list behind `inputs@STAGE`, the stages that read files which parameters name.
`${given:KEY}` is KEY, which must not be null.
"""

import os
import posixpath
import shutil
import sys

from omegaconf import DictConfig, ListConfig, OmegaConf

NO_INPUTS = "pipeline/no-inputs.json"
MAX_ROUNDS = 30
"""As in `halfstep.settings`, which nothing here may import."""


def _checked(rounds: object) -> int:
    if isinstance(rounds, bool) or not isinstance(rounds, int) or not 0 <= rounds <= MAX_ROUNDS:
        raise ValueError(f"rounds is {rounds!r}: give an integer from 0 to {MAX_ROUNDS}, such as rounds=3")
    return rounds


def schedule(rounds: object) -> DictConfig:
    """`{'1': {'teacher': '0', 'start': 'models/0'}, ...}`, as `halfstep.settings.schedule_of` has it."""
    return OmegaConf.create(
        {
            str(k): {"teacher": str(k - 1), "start": "models/0" if k == 1 else f"states/{k - 1}"}
            for k in range(1, _checked(rounds) + 1)
        }
    )


def models(rounds: object) -> ListConfig:
    """`['ar', '0', '1', ...]`: the baseline, the first teacher, and the student of each round."""
    return OmegaConf.create(["ar", *(str(k) for k in range(_checked(rounds) + 1))])


def frontiers(rounds: object, _root_: DictConfig) -> DictConfig:
    """`{'ar': 'frontier.temperatures', '0': 'frontier.samplers', ...}`, as `halfstep.settings.frontiers_of` has it."""
    rivals = (f"ar-{depth}" for depth in OmegaConf.select(_root_, "rivals"))
    return OmegaConf.create(
        {"ar": "frontier.temperatures", "0": "frontier.samplers"}
        | dict.fromkeys((str(k) for k in range(1, _checked(rounds) + 1)), "frontier.student_samplers")
        | dict.fromkeys(rivals, "frontier.temperatures")
    )


def inputs(_root_: DictConfig) -> DictConfig:
    """`{stages: [prepare], files: {prepare: inputs/prepare.json, ...}}`, as `halfstep.settings.named_inputs` has it."""

    def value(key: str) -> object:
        return OmegaConf.select(_root_, key)

    scores_by_baseline = posixpath.normpath(str(value("evaluate.scorer"))) == "models/ar"
    reads = {
        "prepare": value("data.source") in ("text", "pydocs")
        or value("data.cloze") is not None
        or not str(value("data.tokenizer.source")).startswith("train-"),
        "pretrain": value("pretrain.init_from") is not None,
        "baseline": value("baseline.init_from") is not None,
        "evaluate": not scores_by_baseline
        or bool(value("evaluate.likelihood_on"))
        or (bool(value("evaluate.downstream_tasks")) and value("evaluate.downstream_include_path") is not None),
    }
    return OmegaConf.create(
        {
            "stages": [stage for stage, is_reading in reads.items() if is_reading],
            "files": {
                # A dependency that is left out where there are no such files is beyond DVC.
                stage: f"inputs/{stage}.json" if is_reading else NO_INPUTS
                for stage, is_reading in reads.items()
            }
            | {
                "scorer": "models/ar" if scores_by_baseline else NO_INPUTS,
                "distill": "models/ar" if value("distill.objective") == "gumbel" else NO_INPUTS,
            },
        }
    )


def given(key: str, _root_: DictConfig) -> object:
    """A parameter that only the user can say."""
    if (value := OmegaConf.select(_root_, key)) is None:
        raise ValueError(f"{key} is null: only you know its value, so it has to be given, as -S {key}=FOLDER")
    return value


OmegaConf.register_new_resolver("given", given, replace=True)
OmegaConf.register_new_resolver("rounds", schedule, replace=True)
OmegaConf.register_new_resolver("models", models, replace=True)
OmegaConf.register_new_resolver("frontiers", frontiers, replace=True)
OmegaConf.register_new_resolver("inputs", inputs, replace=True)

# DVC starts stages as `python`. Where the path has none they get the one that DVC runs in.
if shutil.which("python") is None:
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), os.path.dirname(sys.executable)])
