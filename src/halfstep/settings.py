"""What `params.yaml` holds: one frozen model per stage, no defaults, unknown keys refused.

`params.yaml` is composed from `pipeline/conf` by Hydra and never edited, so every value is stated there and
nowhere else. `load_params` reads and checks all of it; a stage unpacks its own section into plain values.
"""

import difflib
import json
import math
import os
import posixpath
import re
import shlex
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from halfstep.run.errors import UserError, one_line, shown

BASELINE = "ar"
"""Name of the autoregressive model among the models of a pipeline run."""


MAX_INT = 2**31 - 1
"""Largest number of anything, and largest seed: what the libraries that count in 32 bits take."""
MAX_SEED = 2_000_000_000
"""Seeds are counted on from this one, and none may exceed `MAX_INT`."""
MAX_ROUNDS = 30
"""Each round needs twice the denoising steps of the one before it, and 2^31 is more than `MAX_INT`."""
MAX_CONTEXT_LENGTH = 2**20
MAX_BLOCKS = 10_000
"""More than any model has; what states more is broken."""
MAX_WORKERS = 1024
"""More processes or threads than this are a slip of the hand, and would bring a machine down."""
MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 4000
"""No file system holds a longer name, and no system call takes a longer path."""
MAX_PARAMS_BYTES = 2**20
"""A file larger than this is not one of parameters."""

UNSET = "???"
"""What stands in `pipeline/conf` where only the user can say the value."""

PositiveInt = Annotated[int, Field(gt=0, le=MAX_INT)]
NonNegativeInt = Annotated[int, Field(ge=0, le=MAX_INT)]


class Settings(BaseModel):
    """Base of all settings: frozen, strict about types, no unknown keys, finite numbers and plain text only."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _text_is_plain(cls, value: Any) -> Any:
        """Texts name files, models and columns: none has control characters, or a name that no file can have."""
        for text in value if isinstance(value, tuple | list) else (value,):
            if isinstance(text, str):
                if text == UNSET:
                    raise ValueError("only you know its value, so it has to be given")
                if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
                    raise ValueError("text holds a control character: take it out")
                names = [len(name.encode()) for name in text.split("/")]
                if max(names) > MAX_NAME_BYTES or sum(names) + len(names) > MAX_PATH_BYTES:
                    raise ValueError("text is longer than the name of a file can be")
        return value


def _each_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if repeated := [value for number, value in enumerate(values) if value in values[:number]]:
        raise ValueError(f"{shown(repeated[0])} is given twice; give each once")
    return values


PositiveInts = Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1), AfterValidator(_each_once)]
Probability = Annotated[float, Field(ge=0, lt=1)]


class RuntimeSettings(Settings):
    """Where a stage computes: device, thread count (null: all cores), precision of the networks, and whether
    `torch.compile` is to make their blocks faster in training, after a wait at the start."""

    device: Literal["auto", "cpu", "cuda"]
    num_threads: Annotated[int, Field(gt=0, le=MAX_WORKERS)] | None
    precision: Literal["auto", "fp32", "bf16"]
    compile: bool


class LaunchSettings(Settings):
    """How the work of a stage is laid out on devices and machines; it decides no result, so DVC does not watch it.

    One process computes on one device. `start_with` are the words before the command that start it once on every
    node, such as `[srun, --ntasks-per-node=1]`; without them each node is given the same command by hand. The nodes
    meet at `rendezvous` (`HOST:PORT` of the first one; null: `MASTER_ADDR:MASTER_PORT`, or this machine).
    `max_restarts` is how often all processes start again, from the last checkpoint, after one was lost.
    `timeout_seconds` is how long a process waits for the others. `strategy` is `ddp` (every device has the whole
    model) or `fsdp` (weights, gradients, optimizer and average are spread over the devices), which holds for a
    round's teacher only with `shard_teacher`. `gradient_checkpointing` computes the blocks' activations twice, and
    does not keep them.
    """

    num_nodes: Annotated[int, Field(gt=0, le=MAX_WORKERS)]
    processes_per_node: Annotated[int, Field(gt=0, le=MAX_WORKERS)]
    start_with: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)]
    rendezvous: Annotated[str, Field(pattern=r"^[\w.:\[\]-]+:\d{1,5}$")] | None
    max_restarts: Annotated[int, Field(ge=0, le=MAX_WORKERS)]
    timeout_seconds: PositiveFloat
    strategy: Literal["ddp", "fsdp"]
    shard_teacher: bool
    gradient_checkpointing: bool

    @property
    def num_processes(self) -> int:
        """Of all nodes, one for each device."""
        return self.num_nodes * self.processes_per_node

    @model_validator(mode="after")
    def _nodes_can_meet(self) -> "LaunchSettings":
        if self.start_with and self.num_nodes == 1:
            raise ValueError("start_with starts the command on other nodes, but num_nodes is 1")
        return self


class TokenizerSettings(Settings):
    """Where the tokenizer comes from.

    `train-words` and `train-bpe` train one on the corpus with `vocab_size` entries at most; any other source is
    a local folder or a hub id, which brings its own size.
    """

    source: Annotated[str, Field(min_length=1)]
    vocab_size: PositiveInt | None
    revision: str | None

    @model_validator(mode="after")
    def _vocab_size_belongs_to_training(self) -> "TokenizerSettings":
        if self.source.startswith("train-"):
            if self.source not in ("train-words", "train-bpe"):
                raise ValueError(f"source is {self.source!r}: train-words and train-bpe can be trained")
            if self.vocab_size is None:
                raise ValueError(f"source is {self.source!r}, which needs a vocab_size")
        return self


class CorpusSettings(Settings):
    """What every corpus has in common.

    `cloze` is null, a local JSONL file (one `{"text": ...}` a line, the target its last word) or a hub data set
    id; null uses the passages that the corpus brings, if it brings any. `tokens_per_shard` is the size of a file of
    tokens, within which the order of training is drawn. `num_workers` processes tokenize, or fewer where there is
    little text (null: as many as there are cores).
    """

    context_length: Annotated[int, Field(ge=8, le=MAX_CONTEXT_LENGTH)]
    tokens_per_shard: PositiveInt
    valid_fraction: Annotated[float, Field(gt=0, lt=1)]
    max_documents: PositiveInt | None
    num_workers: Annotated[int, Field(gt=0, le=MAX_WORKERS)] | None
    cloze: str | None
    tokenizer: TokenizerSettings

    @model_validator(mode="after")
    def _a_shard_holds_a_sequence(self) -> "CorpusSettings":
        if self.tokens_per_shard < self.context_length:
            raise ValueError(
                f"tokens_per_shard {self.tokens_per_shard} is less than a context of {self.context_length}"
            )
        return self


class StoriesSettings(CorpusSettings):
    """Short stories from our own grammar."""

    source: Literal["stories"]
    num_documents: PositiveInt
    num_cloze: PositiveInt


class PydocsSettings(CorpusSettings):
    """The help topics and docstrings of the running Python."""

    source: Literal["pydocs"]


class TextSettings(CorpusSettings):
    """The user's own `.txt`, `.jsonl` or `.parquet` files: a file, a folder, or a glob, or a list of these."""

    source: Literal["text"]
    path: Annotated[str, Field(min_length=1)] | Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    text_column: Annotated[str, Field(min_length=1)]
    split_on_blank_lines: NonNegativeInt
    """A `.txt` file is one document if 0, else documents end at this many blank lines in a row."""


class HubSettings(CorpusSettings):
    """A data set of the Hugging Face hub."""

    source: Literal["hub"]
    hub_id: Annotated[str, Field(min_length=1)]
    hub_config: str | None
    revision: str | None
    split: Annotated[str, Field(min_length=1)]
    text_column: Annotated[str, Field(min_length=1)]
    streaming: bool


DataSettings = Annotated[StoriesSettings | PydocsSettings | TextSettings | HubSettings, Field(discriminator="source")]


class ModelSettings(Settings):
    """Sizes of the denoiser; the autoregressive baseline takes the same width, depth and heads."""

    hidden_size: PositiveInt
    num_blocks: Annotated[int, Field(gt=0, le=MAX_BLOCKS)]
    num_heads: PositiveInt
    cond_dim: PositiveInt
    dropout: Probability

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
    """The first teacher: from scratch, or from `init_from` (a local folder or a hub id)."""

    min_time: Annotated[float, Field(ge=0, lt=1)]
    init_from: str | None
    init_revision: str | None


class BaselineSettings(TrainingSettings):
    """The autoregressive model: from scratch, or from `init_from` (a local folder or a hub id)."""

    init_from: str | None
    init_revision: str | None


class DistillSettings(TrainingSettings):
    """One round of Self-Distillation Through Time; every round has the same settings."""

    min_time: Annotated[float, Field(ge=0, lt=1)]
    base_num_steps: PositiveInt
    num_teacher_steps: Annotated[int, Field(ge=2, le=MAX_INT)]
    distance: Literal["kl_student_teacher", "kl_teacher_student", "mse", "log_l1", "total_variation"]
    next_teacher: Literal["student", "ema"]
    reset_optimizer: bool
    reset_ema: bool


class SampleSettings(Settings):
    """Which samples are drawn from every model; lengths are in tokens and include the prefix."""

    num_steps: PositiveInts
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
    """How models are judged. `scorer` is a causal language model: a local folder or a hub id.

    `likelihood_on` names other texts, of each of which `num_likelihood_sequences` are judged (null: all).
    `downstream_tasks` are tasks of lm-eval, or of the definitions in the folder `downstream_include_path`, which may
    name Python functions beside them and templates: lm-eval runs these, so take only a folder whose code you would run;
    `downstream_limit` is in documents (null: all), `num_downstream_draws` are a denoiser's draws of a log-likelihood.
    `num_bootstrap_resamples` are behind each confidence interval; a sample that shares more than `longest_copy_tokens`
    tokens in a row with the training text counts as copied.
    """

    scorer: Annotated[str, Field(min_length=1)]
    scorer_revision: str | None
    batch_size: PositiveInt
    num_valid_sequences: PositiveInt
    num_nelbo_draws: PositiveInt
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
        tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False), AfterValidator(_each_once)
    ]
    downstream_include_path: str | None
    downstream_limit: PositiveInt | None
    num_downstream_draws: PositiveInt

    @field_validator("likelihood_on")
    @classmethod
    def _each_name_once(cls, texts: tuple[TextSourceSettings, ...]) -> tuple[TextSourceSettings, ...]:
        _each_once(tuple(text.name for text in texts))
        return texts


class LatencySettings(Settings):
    """What the latency comparison times; `length` null is the context length."""

    num_steps: PositiveInts
    batch_size: PositiveInt
    length: Annotated[int, Field(ge=2, le=MAX_INT)] | None
    num_warmups: NonNegativeInt
    num_repeats: PositiveInt


class TrackingSettings(Settings):
    """What MLflow gets. The server is `MLFLOW_TRACKING_URI`, or SQLite in the project."""

    # MLflow takes 500 characters, and a number is added to the name of an experiment that was deleted.
    experiment: Annotated[str, Field(min_length=1, max_length=490)]
    log_models: bool

    @field_validator("experiment")
    @classmethod
    def _experiment_is_ours(cls, value: str) -> str:
        if value.strip() != value:
            raise ValueError("has spaces around it")
        # MLflow made it, to keep files in whatever folder it was started in: under DVC's queue, a temporary one.
        if value == "Default":
            raise ValueError("is MLflow's own experiment; choose another name")
        return value


class RoundSettings(Settings):
    """One entry of the schedule: the model that teaches this round."""

    teacher: str


def schedule_of(rounds: int) -> dict[str, RoundSettings]:
    """The rounds as stages: round k, from 1, has model k-1 as its teacher."""
    return {str(k): RoundSettings(teacher=str(k - 1)) for k in range(1, rounds + 1)}


def models_of(rounds: int) -> list[str]:
    """Every model of a pipeline run: the baseline, the first teacher 0, and the student of each round."""
    return [BASELINE, *(str(k) for k in range(rounds + 1))]


class InputFiles(Settings):
    """For each stage that may read files which parameters name: where it is noted what they hold, or that none are."""

    prepare: str
    pretrain: str
    baseline: str
    evaluate: str


class InputSettings(Settings):
    """The stages that do read such files, and the notes on which all four depend."""

    stages: list[str]
    files: InputFiles


class Params(Settings):
    """All of `params.yaml`."""

    preset: str
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)]
    rounds: Annotated[int, Field(ge=0, le=MAX_ROUNDS)]
    schedule: dict[str, RoundSettings]
    models: list[str]
    inputs: InputSettings
    runtime: RuntimeSettings
    launch: LaunchSettings
    data: DataSettings
    model: ModelSettings
    noise: NoiseSettings
    pretrain: PretrainSettings
    baseline: BaselineSettings
    distill: DistillSettings
    sample: SampleSettings
    evaluate: EvaluateSettings
    latency: LatencySettings
    tracking: TrackingSettings

    def deciding(self, *sections: str) -> dict[str, Any]:
        """Some sections as plain values, without those that change no step."""
        without = {name: WITHOUT_INFLUENCE for name in sections if isinstance(getattr(self, name), TrainingSettings)}
        without["data"] = {"num_workers"}
        return self.model_dump(mode="json", include=set(sections), exclude=without)


def named_inputs(params: Params) -> dict[str, dict[str, str | tuple[str, ...]]]:
    """For each stage that may read files which no other stage wrote: the parameters that name them, with their values.

    A value may be a hub id as well: only its reader can tell. The corpus `pydocs` is the running Python's own files.
    """
    data, evaluate = params.data, params.evaluate
    named: dict[str, dict[str, Any]] = {
        "prepare": {
            "data.source": "pydocs" if isinstance(data, PydocsSettings) else None,
            "data.path": data.path if isinstance(data, TextSettings) else None,
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


def scores_by_baseline(scorer: str) -> bool:
    """Whether a scorer is the pipeline's own autoregressive model, rather than files of the user."""
    return posixpath.normpath(scorer) == f"models/{BASELINE}"


def check_model_name(name: str) -> str:
    """The name of a model as a person gives it to a stage: it becomes part of the paths that are read and written.

    Raises:
        UserError: it is neither `ar` nor a number.
    """
    if not re.fullmatch(rf"{BASELINE}|0|[1-9][0-9]{{0,3}}", name):
        raise UserError(f"model {shown(name)} is not known: give {BASELINE}, 0, 1, ...; folders are given by --model")
    return name


def load_params(path: Path) -> Params:
    """Read and check the composed parameters.

    Raises:
        UserError: the file is missing, is not YAML, has an unknown key or a value that does not fit, or
            contradicts itself (the schedule is not what `rounds` gives, a length exceeds the context).
    """
    values = _read_yaml(path)
    try:
        params = Params.model_validate(values)
    except ValidationError as error:
        raise UserError(_describe(error, path)) from None
    _check_schedule(params, path)
    _check_inputs(params, path)
    _check_lengths(params, path)
    _check_steps(params, path)
    _check_batches(params, path)
    _check_buckets(params, path)
    return params


class _Loader(yaml.SafeLoader):
    """Plain YAML: no key twice, and no aliases, by which a short file can stand for a value of any size."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(None, None, f"alias *{event.anchor} is not known here", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    problem = f"{shown(key.value)} stands there twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep=deep)


def _construct_integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    """An integer of any notation; one of thousands of digits nobody could even show."""
    value = loader.construct_yaml_int(node)
    if abs(value) >= 2**64:
        raise yaml.constructor.ConstructorError(None, None, f"{shown(node.value)} is too large", node.start_mark)
    return value


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_integer)


def _read_yaml(path: Path) -> Any:
    way_out = "it is composed from pipeline/conf: dvc exp run"
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a file; {way_out}")
        if (size := path.stat().st_size) > MAX_PARAMS_BYTES:
            raise UserError(f"{path} has {size} bytes, too many for parameters; {way_out}")
        # `_Loader` is a SafeLoader, which bandit does not see.
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # nosec B506
    except FileNotFoundError:
        raise UserError(f"{path} is not there; run in the project's root, or compose it: dvc exp run") from None
    except RecursionError:
        raise UserError(f"{path} cannot be read: it is nested too deeply; {way_out}") from None
    # What is no YAML, and what YAML's own types refuse: a number of 5000 digits, the 13th month, an unknown bool.
    except (OSError, yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}; {way_out}") from None


WANTED = {
    "tuple_type": "a list", "too_short": "a list with something in it", "int_type": "a whole number",
    "int_from_float": "a whole number", "float_type": "a number", "finite_number": "a finite number",
    "bool_type": "true or false", "string_type": "text", "string_too_short": "text", "model_type": "a group of keys",
    "model_attributes_type": "a group of keys", "dict_type": "a group of keys", "list_type": "a list",
    "string_pattern_mismatch": "{form}", "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more", "less_than": "less than {lt}", "less_than_equal": "{le} or less",
    "literal_error": "{expected}",
}  # fmt: skip
"""What a value should be, by pydantic's name for what is wrong with it."""
FORMS = {"rendezvous": "HOST:PORT", "name": "letters, digits, '.', '_' and '-', a letter or digit first"}
GROUPS = ("model_type", "model_attributes_type", "dict_type")


def _describe(error: ValidationError, path: Path) -> str:
    """The first thing wrong, in one line; and how many more there are."""
    first, *others = error.errors(include_url=False)
    kind, value, location = first["type"], first["input"], list(first["loc"])
    # pydantic also names the kind of corpus, and the alternative of a union.
    unsaid = ("stories", "pydocs", "text", "hub")
    parts = [p for p in location[:-1] if isinstance(p, int) or (p.isidentifier() and p not in unsaid)]
    if location and (kind == "extra_forbidden" or str(location[-1]).isidentifier() or isinstance(location[-1], int)):
        parts.append(location[-1])
    key = one_line(".".join(map(str, parts)), 80)
    # Hydra sets a list whole.
    settable = one_line(".".join(map(str, takewhile(lambda part: not isinstance(part, int), parts))), 80)
    example = "VALUE" if settable == key and kind not in ("tuple_type", "too_short") else "[VALUE]"
    group = ""
    if kind == "extra_forbidden":
        problem, nearest = f"unknown parameter {key} (value {shown(value)})", nearest_key(key)
        if nearest:
            problem, settable, example = f"{problem}, is {nearest} meant?", nearest, _as_override(value)
    elif kind == "missing":
        problem = f"parameter {key} is missing"
    elif kind == "union_tag_invalid":
        key, settable = f"{key}.source", key
        found, wanted = value["source"], first["ctx"]["expected_tags"]
        problem = f"{key} is {shown(found)}: it should be one of {one_line(wanted)}"
        example = _nearest(str(found), re.findall("'(.*?)'", wanted)) or example
    elif kind in WANTED:
        limits = {
            name: f"{limit:.10g}" for name, limit in first.get("ctx", {}).items() if isinstance(limit, int | float)
        }
        form = FORMS.get(str(parts[-1]) if parts else "", "")
        wanted = WANTED[kind].format(**{**first.get("ctx", {}), **limits, "form": form})
        for other in others:
            if (other["type"], other["loc"][:-1]) == ("literal_error", first["loc"][:-1]):
                wanted += f" or {other['ctx']['expected']}"
        problem = f"{key or 'the file'} is {shown(value)}: it should be {one_line(wanted)}"
        if settable == key:
            example = _mended(kind, value, wanted) or example
            settable += ".KEY" if kind in GROUPS and key else ""
        if kind == "float_type" and example != "VALUE":
            problem += f", which YAML reads only in the form {example}"
    else:
        if value == UNSET and location[0] == "data":
            group = f"-S data={location[1]} "
        message = one_line(first["msg"].removeprefix("Value error, "))
        problem = f"{key or 'the file'}{'' if isinstance(value, dict) else f' is {shown(value)}'}: {message}"
    more = f" (and {len(others)} more)" if others else ""
    override = shlex.quote(one_line(f"{settable or 'KEY'}={example}"))
    return f"{path}: {problem}{more}; the file is composed from pipeline/conf: dvc exp run {group}-S {override}"


def _mended(kind: str, value: Any, wanted: str) -> str | None:
    """What a value of the wrong kind may have been meant to be, as Hydra takes it; None where nobody can tell."""
    if kind == "tuple_type" and isinstance(value, str | int | float) and not isinstance(value, bool):
        return f"[{value}]"
    if kind == "literal_error":
        return _nearest(str(value), re.findall("'(.*?)'", wanted))
    if kind == "bool_type":
        return "true" if str(value).lower() in ("1", "1.0", "yes", "on", "true", "y") else "false"
    if kind == "string_type" and isinstance(value, int | float):
        return f'"{_as_override(value)}"'
    if isinstance(value, str | float) and kind in ("int_type", "int_from_float", "float_type"):
        try:
            number = float(value)
        except ValueError:
            return None
        if math.isfinite(number) and (kind == "float_type" or number.is_integer()):
            text = str(number if kind == "float_type" else int(number))
            return text if "e" not in text or "." in text else text.replace("e", ".0e")
    return None


def _as_override(value: Any) -> str:
    """A value as Hydra takes it; that of a kind which nobody would write there is left to the user."""
    if isinstance(value, list) and all(isinstance(entry, str | int | float) for entry in value):
        return f"[{','.join(map(_as_override, value))}]"
    if isinstance(value, str):
        return value
    return json.dumps(value) if value is None or isinstance(value, int | float) else "VALUE"


def _nearest(name: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def nearest_key(key: str) -> str | None:
    """The parameter that was likely meant by one that is not known; None where none is like it."""
    return _nearest(key, _keys(Params))


def _keys(annotation: Any, prefix: str = "") -> Iterator[str]:
    """The dotted names of all parameters of a model, or of the models in a union."""
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        for part in get_args(annotation) if get_origin(annotation) not in (tuple, dict) else ():
            yield from _keys(part, prefix)
        return
    for name, field in annotation.model_fields.items():
        inner = list(_keys(field.annotation, f"{prefix}{name}."))
        yield from inner or [f"{prefix}{name}"]


def _check_schedule(params: Params, path: Path) -> None:
    if params.schedule != schedule_of(params.rounds) or params.models != models_of(params.rounds):
        raise UserError(
            f"{path} contradicts itself: rounds is {params.rounds}, but schedule holds rounds"
            f" {shown(list(params.schedule))} and models {shown(params.models)}; the file is composed, not edited:"
            f" dvc exp run -S rounds={params.rounds}"
        )


def _check_inputs(params: Params, path: Path) -> None:
    stages = [stage for stage, named in named_inputs(params).items() if named]
    # By hand a stage needs nobody who watches its inputs.
    if "DVC_STAGE" in os.environ and params.inputs.stages != stages:
        raise UserError(
            f"{path} contradicts itself: files are read by the stages {shown(stages)}, but inputs.stages is"
            f" {shown(params.inputs.stages)}; the file is composed, not edited: dvc exp run -S KEY=VALUE"
        )


def _check_lengths(params: Params, path: Path) -> None:
    context = params.data.context_length
    lengths = {
        "sample.continuation_length": params.sample.continuation_length,
        "latency.length": params.latency.length or context,
    }
    for key, length in lengths.items():
        if length > context:
            raise UserError(
                f"{path}: {key} is {length}, more than data.context_length {context};"
                f" give fewer: dvc exp run -S {key}={context}"
            )


def _check_steps(params: Params, path: Path) -> None:
    fewest = params.distill.num_teacher_steps**params.rounds
    if params.rounds and params.distill.base_num_steps < fewest:
        raise UserError(
            f"{path}: distill.base_num_steps is {params.distill.base_num_steps}, but rounds {params.rounds} with"
            f" {params.distill.num_teacher_steps} teacher steps each need {fewest} or more:"
            f" dvc exp run -S distill.base_num_steps={fewest}"
        )


def _check_batches(params: Params, path: Path) -> None:
    for section in ("pretrain", "baseline", *(["distill"] if params.rounds else [])):
        try:
            num_parts_of(getattr(params, section), section, params.launch.num_processes)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def _check_buckets(params: Params, path: Path) -> None:
    num_texts = params.sample.num_prefixes * (1 + params.sample.continuations_per_prefix)
    buckets = params.evaluate.mauve_num_buckets
    if buckets != "auto" and buckets > num_texts:
        raise UserError(
            f"{path}: evaluate.mauve_num_buckets is {buckets}, more than the {num_texts} texts to sort into them,"
            " sample.num_prefixes and their continuations: dvc exp run -S evaluate.mauve_num_buckets=auto"
        )
