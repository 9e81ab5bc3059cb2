"""What is drawn from the models, and how they are judged and timed."""

from itertools import product
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, field_validator, model_validator

from halfstep.settings.base import (
    MAX_INT,
    NonNegativeInt,
    PositiveInt,
    PositiveInts,
    Probability,
    Settings,
    Several,
    each_once,
)
from halfstep.settings.plugins import Plugin, plugin_names

Drawing = Literal["independent", "sequential", "speculative", "parallel"]
"""How the tokens of one evaluation are drawn: each for itself, or by a joint head in one of three ways."""


class SamplerSettings(Settings):
    """A sampler: the name of the file in `samplers/` that has its other settings, each a list of values to combine.

    `block_length`: positions of a block, which are written in turn from left to right, and to each of which the other
    settings apply; null: all at once. `drawing`: whether and how a joint head draws what an evaluation writes, in
    `head_passes` passes at most (null: as many as it takes), see `halfstep.samplers.joint`.
    """

    name: str
    block_length: Several[PositiveInt | None] = (None,)
    drawing: Several[Drawing] = ("independent",)
    head_passes: Several[PositiveInt | None] = (None,)

    @model_validator(mode="after")
    def _passes_are_of_a_head(self) -> "SamplerSettings":
        if self.head_passes != (None,) and "independent" in self.drawing:
            raise ValueError("head_passes is for a joint head, but drawing is independent: drawing=[speculative]")
        return self

    @property
    def needs_head(self) -> bool:
        """Whether only a model with a joint head has this sampler."""
        return any(drawing != "independent" for drawing in self.drawing)

    def ways(self) -> list[dict[str, Any]]:
        """One value of each setting, in every combination, in ascending order: each is one way to draw samples."""
        last = {name: getattr(self, name) for name in ("block_length", "drawing", "head_passes")}
        values = self.model_dump(exclude={"name", *last}) | last
        ordered = (some if None in some else sorted(some) for some in values.values())
        return [dict(zip(values, each, strict=True)) for each in product(*ordered)]


def _each_way_once(samplers: tuple[SamplerSettings, ...]) -> tuple[SamplerSettings, ...]:
    each_once(tuple({"name": sampler.name, **way} for sampler in samplers for way in sampler.ways()))
    return samplers


Samplers = Annotated[
    tuple[Annotated[SamplerSettings, Plugin("halfstep.samplers", key="name")], ...],
    Field(strict=False, min_length=1),
    AfterValidator(_each_way_once),
]


class SampleSettings(Settings):
    """Which samples are drawn from every model; lengths are in tokens and include the prefix.

    `num_steps` are those of `samplers` by default; an autoregressive model has a sampler of its own. `give_ends`: BOS
    and EOS, which every sequence has at its ends, are given and not written.
    """

    num_steps: PositiveInts
    samplers: Samplers
    give_ends: bool
    num_samples: PositiveInt
    num_prefixes: PositiveInt
    prefix_length: PositiveInt
    continuation_length: PositiveInt
    continuations_per_prefix: PositiveInt
    batch_size: PositiveInt

    @model_validator(mode="after")
    def _prefix_leaves_room(self) -> "SampleSettings":
        if self.prefix_length >= self.continuation_length:
            raise ValueError(
                f"prefix_length {self.prefix_length} leaves nothing to continue in continuation_length"
                f" {self.continuation_length}"
            )
        return self


class TextSourceSettings(Settings):
    """Other text to judge by likelihood: local files (as data.path of the text corpus) or a data set of the hub.

    `name` becomes the name of a folder, so it is one, beginning with a letter or digit.
    `hub_config` and `split` are for the hub; `text_column` is for it and for `.jsonl` and `.parquet` files.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$", max_length=100)]
    source: Annotated[str, Field(min_length=1)]
    hub_config: str | None = None
    split: Annotated[str, Field(min_length=1)] = "test"
    text_column: Annotated[str, Field(min_length=1)] = "text"


class EvaluateSettings(Settings):
    """How models are judged. `metrics` are those that run, each a file of halfstep/evaluation/metrics; `scorer` is a
    causal language model: a local folder or a hub id, which reads in `scorer_precision` (as runtime.precision);
    `min_time` is the smallest time of a denoiser's likelihood.

    `likelihood_on` names other texts, of each of which `num_likelihood_sequences` are judged (null: all).
    `downstream_tasks` are tasks of lm-eval, or of the definitions in the folder `downstream_include_path`, which may
    name Python functions beside them and templates: lm-eval runs these, so take only a folder whose code you would run;
    `downstream_limit` is in documents (null: all), `num_downstream_draws` are a denoiser's draws of a log-likelihood.
    `num_bootstrap_resamples` are behind each confidence interval; a sample that shares more than `longest_copy_tokens`
    tokens in a row with the training text counts as copied.
    """

    metrics: Annotated[tuple[str, ...], Field(strict=False), AfterValidator(each_once)]
    scorer: Annotated[str, Field(min_length=1)]
    scorer_revision: str | None
    scorer_precision: Literal["auto", "fp32", "bf16"]
    batch_size: PositiveInt
    num_valid_sequences: PositiveInt
    num_nelbo_draws: PositiveInt
    min_time: Probability
    mauve_scaling_factor: PositiveFloat
    mauve_num_buckets: PositiveInt | Literal["auto"]
    mauve_num_seeds: Annotated[int, Field(gt=0, le=1000)]
    num_bootstrap_resamples: NonNegativeInt
    longest_copy_tokens: NonNegativeInt
    num_cloze_passages: PositiveInt | None
    num_cloze_maskings: PositiveInt
    likelihood_on: Annotated[tuple[TextSourceSettings, ...], Field(strict=False)]
    num_likelihood_sequences: PositiveInt | None
    downstream_tasks: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False), AfterValidator(each_once)
    ]
    downstream_include_path: str | None
    downstream_limit: PositiveInt | None
    num_downstream_draws: PositiveInt

    @field_validator("metrics")
    @classmethod
    def _each_is_a_file(cls, metrics: tuple[str, ...]) -> tuple[str, ...]:
        known = plugin_names("halfstep.evaluation.metrics")
        if unknown := [name for name in metrics if name not in known]:
            raise ValueError(f"{unknown[0]!r} is not a metric; there are {', '.join(known)}")
        return metrics

    @field_validator("likelihood_on")
    @classmethod
    def _each_name_once(cls, texts: tuple[TextSourceSettings, ...]) -> tuple[TextSourceSettings, ...]:
        each_once(tuple(text.name for text in texts))
        return texts


class FrontierSettings(Settings):
    """How the samples are drawn by which models and samplers are compared at equal entropy: in every way of `samplers`
    by the first teacher, of `student_samplers` by the others, and by the autoregressive models, at `temperatures`, of
    which 0 is the likeliest token, and the positions by the whole distribution.

    `num_givens`: what is drawn are puzzles of the corpus that give so many tokens, and what counts is how many are
    solved; empty: what is drawn are texts."""

    num_givens: Annotated[tuple[NonNegativeInt, ...], Field(strict=False), AfterValidator(each_once)]
    samplers: Samplers
    student_samplers: Samplers
    temperatures: Several[NonNegativeFloat]
    num_samples: Annotated[int, Field(ge=2, le=MAX_INT)]
    batch_size: PositiveInt


class LatencySettings(Settings):
    """What the latency comparison times; `length` null is the context length."""

    num_steps: PositiveInts
    samplers: Samplers
    batch_size: PositiveInt
    length: Annotated[int, Field(ge=2, le=MAX_INT)] | None
    num_warmups: NonNegativeInt
    num_repeats: PositiveInt
