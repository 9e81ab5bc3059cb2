"""The models of a run by name, the rounds that make them, and the stages that read files of the user."""

import posixpath
import re
from collections.abc import Sequence
from typing import Literal

from halfstep.run.errors import UserError, shown
from halfstep.settings.base import Settings

BASELINE = "ar"
"""Name of the autoregressive model among the models of a pipeline run."""
FIRST_TEACHER = "0"

DrawnBy = Literal["frontier.temperatures", "frontier.samplers", "frontier.student_samplers"]


class RoundSettings(Settings):
    """One entry of the schedule: the model that teaches this round, and what its student's training goes on from."""

    teacher: str
    start: str


def schedule_of(rounds: int) -> dict[str, RoundSettings]:
    """The rounds as stages: round k, from 1, has model k-1 as its teacher; after the first, it goes on from a state."""
    return {
        str(k): RoundSettings(teacher=str(k - 1), start="models/0" if k == 1 else f"states/{k - 1}")
        for k in range(1, rounds + 1)
    }


def models_of(rounds: int) -> list[str]:
    """Every model of a pipeline run: the baseline, the first teacher 0, and the student of each round."""
    return [BASELINE, *(str(k) for k in range(rounds + 1))]


def rivals_of(depths: Sequence[int]) -> list[str]:
    """The further autoregressive models, by their numbers of blocks."""
    return [f"{BASELINE}-{depth}" for depth in depths]


def frontiers_of(rounds: int, depths: Sequence[int]) -> dict[str, DrawnBy]:
    """Every model of `frontier@m`, and the parameter by which its stage differs from the others': how it is drawn."""
    # An autoregressive model has no sampler to choose.
    found: dict[str, DrawnBy] = {BASELINE: "frontier.temperatures", FIRST_TEACHER: "frontier.samplers"}
    found |= {str(k): "frontier.student_samplers" for k in range(1, rounds + 1)}
    return found | dict.fromkeys(rivals_of(depths), "frontier.temperatures")


def depth_of(model: str) -> int | None:
    """Blocks of a further autoregressive model, by its name; None of other models."""
    depth = model.removeprefix(f"{BASELINE}-")
    return int(depth) if depth != model else None


class InputFiles(Settings):
    """For each stage that may read files which parameters name: where it is noted what they hold, or that none are.

    `scorer` is models/ar where that judges the samples, and `distill` where the objective asks it.
    """

    prepare: str
    pretrain: str
    baseline: str
    evaluate: str
    scorer: str
    distill: str


class InputSettings(Settings):
    """The stages that do read such files, and the notes on which all four depend."""

    stages: list[str]
    files: InputFiles


def scores_by_baseline(scorer: str) -> bool:
    """Whether a scorer is the pipeline's own autoregressive model, rather than files of the user."""
    return posixpath.normpath(scorer) == f"models/{BASELINE}"


def check_model_name(name: str) -> str:
    """The name of a model as a person gives it to a stage: it becomes part of the paths that are read and written.

    Raises:
        UserError: it is neither `ar`, `ar-NUMBER` nor a number.
    """
    if not re.fullmatch(rf"({BASELINE}-)?[1-9][0-9]{{0,3}}|{BASELINE}|{FIRST_TEACHER}", name):
        raise UserError(f"model {shown(name)} is not known: give {BASELINE}, 0, 1, ...; folders are given by --model")
    return name
