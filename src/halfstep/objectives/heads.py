"""What the objectives that train a joint head share: its settings and its student."""

import copy
from typing import ClassVar, Literal

from halfstep.model.base import MaskedModel
from halfstep.model.joint import JointHeadConfig, JointModel, Order
from halfstep.run.errors import UserError
from halfstep.settings import base
from halfstep.settings.base import PositiveInt

TrainingOrder = Literal["random", "left_to_right", "both"]
"""Orders that a head meets in training: of all masked positions at random, in every other sequence from left to right
instead (`both`), or of some of them always from left to right, which the head is then bound to."""


class HeadSettings(base.Settings):
    """Sizes of the joint head (`hidden_size` null: the trunk's); the `order` that it learns, see `TrainingOrder`; and
    `train_trunk`: whether the trunk learns with it, or stays as it is."""

    makes_head: ClassVar[bool] = True

    hidden_size: PositiveInt | None
    num_layers: PositiveInt
    num_heads: PositiveInt
    order: TrainingOrder
    train_trunk: bool

    @property
    def of_head(self) -> Order:
        """The order that the head itself prescribes."""
        return "left_to_right" if self.order == "left_to_right" else "sampler"


def with_head(teacher: MaskedModel, settings: HeadSettings) -> JointModel:
    """A copy of a teacher, with a new head where it has none; torch's own generator draws its weights.

    Raises:
        UserError: it has a head of other sizes, or the sizes are of no head.
    """
    size = settings.hidden_size or teacher.projection()[0].shape[1]
    if size % (2 * settings.num_heads):
        raise UserError(
            f"the joint head's hidden_size {size} does not give each of num_heads {settings.num_heads} an even width"
        )
    config = JointHeadConfig(size, settings.num_layers, settings.num_heads, settings.of_head)
    student = (
        copy.deepcopy(teacher)
        if isinstance(teacher, JointModel)
        else JointModel.untrained(copy.deepcopy(teacher), config)
    )
    if student.joint_head.config != config:
        raise UserError(
            f"the teacher has a joint head of {student.joint_head.config}, but the student is to have {config}"
        )
    student.trunk.requires_grad_(settings.train_trunk)
    return student
