"""The models, the noise, and how they are trained."""

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, model_validator

from halfstep.run.errors import UserError
from halfstep.settings.base import (
    MAX_INT,
    NonNegativeInt,
    NumBlocks,
    PositiveInt,
    Probability,
    Settings,
    Several,
    each_once,
)


class ModelSettings(Settings):
    """Sizes of the denoiser; the autoregressive baseline takes the same width, depth and heads.

    `absolute_positions`: embeddings of positions are learned, beside the rotary ones, as a grid needs them.
    """

    hidden_size: PositiveInt
    num_blocks: NumBlocks
    num_heads: PositiveInt
    cond_dim: PositiveInt
    dropout: Probability
    absolute_positions: bool

    @property
    def of_baseline(self) -> dict[str, Any]:
        """The sizes that the autoregressive baseline has too."""
        return self.model_dump(exclude={"cond_dim", "absolute_positions"})

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "ModelSettings":
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} does not give each of num_heads {self.num_heads} an even width"
            )
        return self


class NoiseSettings(Settings):
    """The log-linear schedule: a token is masked at time t with probability (1 - epsilon) t."""

    epsilon: Annotated[float, Field(gt=0, lt=1)]


class TrainingSettings(Settings):
    """What the training loop needs, whatever the loss."""

    num_train_steps: NonNegativeInt
    batch_size: PositiveInt
    num_accumulation_steps: PositiveInt
    learning_rate: PositiveFloat
    lr_schedule: Literal["constant", "linear", "cosine"]
    num_warmup_steps: NonNegativeInt
    adam_beta1: Probability
    adam_beta2: Probability
    adam_epsilon: PositiveFloat
    weight_decay: NonNegativeFloat
    max_grad_norm: PositiveFloat
    on_nonfinite: Literal["stop", "skip"]
    """What a NaN or infinite loss or gradient does: end the run, or leave out the step's update."""
    max_nonfinite_steps: NonNegativeInt
    """With skip: steps left out in the whole run at most; one more ends it."""
    ema_decay: Probability
    log_every_steps: PositiveInt
    validate_every_steps: PositiveInt
    num_valid_sequences: PositiveInt
    checkpoint_every_seconds: PositiveFloat
    checkpoint_every_steps: PositiveInt | None

    @model_validator(mode="after")
    def _accumulation_divides_batch(self) -> "TrainingSettings":
        if self.batch_size % self.num_accumulation_steps:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of num_accumulation_steps"
                f" {self.num_accumulation_steps}"
            )
        return self


WITHOUT_INFLUENCE = {"checkpoint_every_seconds", "checkpoint_every_steps", "on_nonfinite", "max_nonfinite_steps"}
"""Training settings that change no step: a run that was cut off goes on when they are changed."""


def num_parts(num_accumulation_steps: int, num_processes: int) -> int:
    """The equal parts in which all processes together compute a batch, each of them as many."""
    return math.lcm(num_accumulation_steps, num_processes)


def num_parts_of(settings: TrainingSettings, section: str, num_processes: int) -> int:
    """`num_parts` of a section's batch.

    Raises:
        UserError: the batch cannot be divided so.
    """
    parts = num_parts(settings.num_accumulation_steps, num_processes)
    if settings.batch_size % parts:
        raise UserError(
            f"{section}.batch_size is {settings.batch_size}, which {num_processes} processes with"
            f" num_accumulation_steps {settings.num_accumulation_steps} cannot compute in {parts} equal parts: dvc exp"
            f" run -S {section}.batch_size={math.ceil(settings.batch_size / parts) * parts}, or another"
            " launch.processes_per_node"
        )
    return parts


class PretrainSettings(TrainingSettings):
    """The first teacher: from scratch, or from `init_from` (a local folder or a hub id).

    `init_shift`: whether a position's state predicts the token after it, of a network of transformers whose kind does
    not settle it.
    """

    min_time: Annotated[float, Field(ge=0, lt=1)]
    init_from: str | None
    init_revision: str | None
    init_shift: bool | None


class BaselineSettings(TrainingSettings):
    """The autoregressive model: from scratch, or from `init_from` (a local folder or a hub id).

    `num_givens`: of each sequence it first reads one of so many tokens, at random places, with those that every
    sequence has at the same place, and then writes all; empty: it reads nothing before.
    """

    num_givens: Annotated[tuple[NonNegativeInt, ...], Field(strict=False), AfterValidator(each_once)]
    init_from: str | None
    init_revision: str | None

    @model_validator(mode="after")
    def _one_that_reads_is_new(self) -> "BaselineSettings":
        if self.num_givens and self.init_from is not None:
            raise ValueError(f"num_givens is for a model from scratch, but init_from is {self.init_from}")
        return self


class LoraSettings(Settings):
    """`rank` of the matrices that a student learns beside its teacher's, which stay as they are (null: it learns all);
    `alpha` / rank times their product is added; `targets` are linear layers, by the ends of their names (null: all but
    the head)."""

    rank: PositiveInt | None
    alpha: PositiveInt
    targets: Several[str] | None


class DistillSettings(TrainingSettings):
    """One round of distillation; every round has the same settings.

    `objective` names a file of `halfstep.objectives`. Its own settings lie in the section of that name.
    """

    objective: str
    min_time: Annotated[float, Field(ge=0, lt=1)]
    base_num_steps: PositiveInt
    num_teacher_steps: Annotated[int, Field(ge=2, le=MAX_INT)]
    next_teacher: Literal["student", "ema"]
    reset_optimizer: bool
    reset_ema: bool
    lora: LoraSettings

    @property
    def own(self) -> Any:
        """The objective's own settings."""
        return getattr(self, self.objective)

    @property
    def asks_autoregressive(self) -> bool:
        """Whether the objective learns from models/ar, too."""
        return getattr(self.own, "asks_autoregressive", False)
