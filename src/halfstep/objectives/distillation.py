"""The objectives that train students: each is a file beside this one with `build` and the class of its settings.

One that asks the teacher has `teacher_passes`, too, by which `halfstep plan` counts what that costs.
"""

from dataclasses import dataclass

from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.model.base import MaskedModel
from halfstep.objectives import OBJECTIVES
from halfstep.objectives.base import Objective
from halfstep.settings.plugins import plugin_module
from halfstep.settings.training import DistillSettings


@dataclass(frozen=True)
class Distillation:
    """What `build` of an objective that trains students makes it from.

    Attributes:
        round_index: from 1.
        teacher: frozen, in evaluation mode, on the device.
        student: to be trained, a copy of the teacher.
        schedule: of the noise that both are trained with.
        settings: `settings.own` are the objective's own.
        is_teacher_sharded: every process has a part of the teacher, so that all must ask it equally often.
    """

    round_index: int
    teacher: MaskedModel
    student: MaskedModel
    schedule: LogLinearSchedule
    settings: DistillSettings
    is_teacher_sharded: bool = False


def distillation_objective(given: Distillation) -> Objective:
    """The objective that `distill.objective` names, for one round."""
    return plugin_module(OBJECTIVES, given.settings.objective).build(given)
