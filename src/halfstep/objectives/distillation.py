"""The objectives that train students: each is a file beside this one with `build` and the class of its settings.

One whose student is more than a copy of the teacher has `student`, too, which makes it; one that computes more than the
student has `costs`, by which `halfstep plan` counts that.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.model.base import MaskedModel
from halfstep.model.denoiser import Denoiser
from halfstep.model.hub import HubModel, no_place
from halfstep.model.joint import trunk_of
from halfstep.objectives import OBJECTIVES
from halfstep.objectives.base import Objective
from halfstep.run.errors import UserError
from halfstep.settings.plugins import plugin_module
from halfstep.settings.training import DistillSettings, LoraSettings


@dataclass(frozen=True)
class Distillation:
    """What `build` of an objective that trains students makes it from.

    Attributes:
        round_index: from 1.
        teacher: frozen, in evaluation mode, on the device.
        student: to be trained, see `student_of`.
        schedule: of the noise that both are trained with.
        settings: `settings.own` are the objective's own.
        is_teacher_sharded: every process has a part of the teacher, so that all must ask it equally often.
        autoregressive: models/ar, frozen, in evaluation mode, on the device, for objectives that ask it.
    """

    round_index: int
    teacher: MaskedModel
    student: MaskedModel
    schedule: LogLinearSchedule
    settings: DistillSettings
    is_teacher_sharded: bool = False
    autoregressive: Any = None


@dataclass(frozen=True)
class Costs:
    """What an objective takes beside one evaluation of a student like its teacher, its gradient, and their weights.

    Attributes:
        passes: forward passes of networks of that size, each as (positions that pass through, positions that it
            projects to the vocabulary), both over those of the batch. A gradient counts as two passes.
        num_trained: networks that are trained.
        num_at_once: evaluations of each sequence that one gradient goes through.
    """

    passes: Sequence[tuple[float, float]] = ()
    num_trained: int = 1
    num_at_once: int = 1


def adapt(teacher: MaskedModel, path: Path | None, settings: LoraSettings) -> None:
    """Give a teacher an adapter, in place, if it has none and its student is to have one: the student copies it.

    Args:
        path: folder that the teacher was read from; None where nothing is written.
    Raises:
        UserError: it is no network of transformers, or has an adapter of other sizes.
    """
    if settings.rank is None:
        return
    trunk, targets = trunk_of(teacher), settings.targets
    if not isinstance(trunk, HubModel):
        raise UserError(
            f"distill.lora.rank is {settings.rank}, but {path} is no network of transformers: -S distill.lora.rank=null"
        )
    if trunk.adapter is None:
        trunk.adapt(path, rank=settings.rank, alpha=settings.alpha, targets=targets)
    found = trunk.adapter
    assert found is not None
    wanted = settings.rank, settings.alpha, found.targets if targets is None else tuple(sorted(targets))
    if (found.rank, found.alpha, found.targets) != wanted:
        raise UserError(f"{path} has an adapter of other sizes or layers than distill.lora's: dvc repro distill@1")


def own_trunk(teacher: MaskedModel, objective: str) -> Denoiser:
    """A teacher without its joint head, if it is one to which an objective can add an input.

    Raises:
        UserError: it is no denoiser of ours.
    """
    trunk = trunk_of(teacher)
    if not isinstance(trunk, Denoiser):
        raise UserError(no_place(objective))
    return trunk


def student_of(teacher: MaskedModel, settings: DistillSettings) -> MaskedModel:
    """The student of a teacher before its training: a copy, without a joint head if the objective trains none.

    Raises:
        UserError: the teacher does not fit the objective.
    """
    make = getattr(plugin_module(OBJECTIVES, settings.objective), "student", None)
    return copy.deepcopy(trunk_of(teacher)) if make is None else make(teacher, settings.own)


def distillation_objective(given: Distillation) -> Objective:
    """The objective that `distill.objective` names, for one round."""
    return plugin_module(OBJECTIVES, given.settings.objective).build(given)
