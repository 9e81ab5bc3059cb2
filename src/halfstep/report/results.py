"""The results a report is made of, read from the files that the stages wrote."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfstep.errors import UserError
from halfstep.files import read_json

AUTOREGRESSIVE = "autoregressive"


@dataclass(frozen=True)
class Estimate:
    """A measured value.

    Attributes:
        value: the value, in `unit`.
        standard_error: of the value; None where it is no mean or has one sample only.
        count: samples behind it.
        unit: `nats`, `tokens`, `1`, ...
    """

    value: float
    standard_error: float | None
    count: int
    unit: str


@dataclass(frozen=True)
class SampleMetrics:
    """What the samples of one model at one number of denoising steps measure.

    Attributes:
        num_steps: denoising steps asked for; of an autoregressive model, the tokens it generated.
        nfe: network evaluations per sample.
        generative_perplexity: of the samples under the scorer.
        entropy: of the tokens within a sample.
        mauve: similarity to the validation text, in [0, 1]; None if not measured.
    """

    num_steps: int
    nfe: Estimate
    generative_perplexity: Estimate
    entropy: Estimate
    mauve: Estimate | None


@dataclass(frozen=True)
class ModelMetrics:
    """All that was measured of one model: the contents of `metrics/MODEL.json`.

    Attributes:
        model: its name: `ar`, `0`, `1`, ...
        kind: `denoiser` or `autoregressive`.
        round_index: round it is the student of, 0 for the first teacher; None if it is autoregressive.
        num_parameters: of its network.
        validation_perplexity: on held-out text.
        validation_is_bound: whether that is an upper bound of the perplexity, as it is for denoisers.
        cloze_accuracy: of the last word of passages, in [0, 1]; None without passages.
        cloze_perplexity: of that word; None without passages.
        samples: by ascending number of denoising steps, at least one.
        scorer: name of the model that judged the samples.
        is_retokenized: whether the scorer has another tokenizer, so that samples went through text.
        data_perplexity: generative perplexity of the validation text itself.
        data_entropy: entropy of the validation text itself.
    """

    model: str
    kind: str
    round_index: int | None
    num_parameters: int
    validation_perplexity: Estimate
    validation_is_bound: bool
    cloze_accuracy: Estimate | None
    cloze_perplexity: Estimate | None
    samples: tuple[SampleMetrics, ...]
    scorer: str
    is_retokenized: bool
    data_perplexity: Estimate
    data_entropy: Estimate

    def at(self, num_steps: int) -> SampleMetrics | None:
        """The samples drawn with this number of denoising steps; None if there are none."""
        return next((sampled for sampled in self.samples if sampled.num_steps == num_steps), None)


Metrics = Mapping[str, ModelMetrics]
"""Metrics of every model, by name, in the order of `params.models`."""


@dataclass(frozen=True)
class Latency:
    """Wall-clock time of one sample, drawn in a batch.

    Attributes:
        num_steps: denoising steps; None for the autoregressive model.
        nfe: network evaluations.
        seconds: median over repeats, per sample.
        seconds_min: fastest repeat, per sample.
        seconds_max: slowest repeat, per sample.
        tokens_per_second: of the whole batch.
    """

    num_steps: int | None
    nfe: float
    seconds: float
    seconds_min: float
    seconds_max: float
    tokens_per_second: float


@dataclass(frozen=True)
class Latencies:
    """The latency comparison: the contents of `metrics/latency.json`.

    Attributes:
        conditions: what was timed on what, in words.
        denoiser: by ascending number of denoising steps.
        autoregressive: with its KV cache.
    """

    conditions: str
    denoiser: tuple[Latency, ...]
    autoregressive: Latency


Curve = Mapping[str, Sequence[tuple[int, float]]]
"""A training curve: per column, (step, value) where it was measured."""


@dataclass(frozen=True)
class SampleText:
    """One sample as it is shown.

    Attributes:
        model: which drew it.
        num_steps: denoising steps; of the autoregressive model, the tokens it generated.
        prefix: the part of the text that was given; empty if nothing was.
        text: the rest.
    """

    model: str
    num_steps: int
    prefix: str
    text: str


@dataclass(frozen=True)
class SampleGroup:
    """The same sample, by index and number of denoising steps, from every model.

    Attributes:
        kind: `unconditional` or `continuations`.
        sample_index: which.
        samples: one per model that has it.
    """

    kind: str
    sample_index: int
    samples: tuple[SampleText, ...]


def load_metrics(folder: Path, models: Sequence[str]) -> dict[str, ModelMetrics]:
    """Read the metrics of every model.

    Args:
        folder: holds `MODEL.json` for every model.
        models: names, in the order wanted.
    Returns:
        metrics by model.
    Raises:
        UserError: a file is missing or is not what `evaluate` writes.
    """
    return {model: _read(folder / f"{model}.json", _model_metrics) for model in models}


def load_latency(path: Path) -> Latencies:
    """Read the latency comparison.

    Raises:
        UserError: the file is missing or is not what `latency` writes.
    """
    return _read(path, _latencies)


def load_curves(folder: Path, models: Sequence[str]) -> dict[str, Curve]:
    """Read the training curve of every model; a model that was not trained has one without points.

    Args:
        folder: holds `MODEL.csv` for every model.
        models: names, in the order wanted.
    Raises:
        UserError: a file is missing or holds something that is no number.
    """
    curves: dict[str, Curve] = {}
    for model in models:
        path = folder / f"{model}.csv"
        try:
            with path.open(newline="", encoding="utf-8") as stream:
                rows = list(csv.DictReader(stream))
            columns = [name for name in (rows[0] if rows else {}) if name != "step"]
            curves[model] = {
                name: [(int(row["step"]), float(row[name])) for row in rows if row[name]] for name in columns
            }
        except FileNotFoundError:
            raise UserError(f"{path} is not there: make it with dvc repro") from None
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not a training curve ({error!r}): make it again with dvc repro") from None
    return curves


def load_samples(
    folder: Path,
    models: Sequence[str],
    *,
    num_steps: int,
    num_unconditional: int,
    num_continuations: int,
    decode: Callable[[list[int]], str],
) -> list[SampleGroup]:
    """Read the first samples of every model, the same ones from each.

    Args:
        folder: holds `MODEL/unconditional.parquet` and `MODEL/continuations.parquet` for every model.
        models: names, in the order wanted.
        num_steps: denoising steps of the samples wanted; a model without such samples, as the autoregressive
            one, shows those of its fewest steps.
        num_unconditional: how many unconditional samples of each model.
        num_continuations: how many continuations of each model.
        decode: token ids to text, as the samples were decoded; finds where the given prefix ends in the text.
    Returns:
        groups, unconditional ones first, ordered by sample index.
    Raises:
        UserError: a file is missing.
    """
    groups = []
    for kind, count in (("unconditional", num_unconditional), ("continuations", num_continuations)):
        by_index: dict[int, list[SampleText]] = {index: [] for index in range(count)}
        for model in models:
            path = folder / model / f"{kind}.parquet"
            for index, sample in _first_samples(path, model, count, num_steps, decode).items():
                by_index[index].append(sample)
        groups += [SampleGroup(kind, index, tuple(samples)) for index, samples in by_index.items() if samples]
    return groups


def _first_samples(
    path: Path, model: str, count: int, num_steps: int, decode: Callable[[list[int]], str]
) -> dict[int, SampleText]:
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(
            path,
            columns=["sample_index", "num_steps", "token_ids", "text"],
            filters=[("sample_index", "<", count)],
        )
    except FileNotFoundError:
        raise UserError(f"{path} is not there: make it with dvc repro") from None
    prefix_length = json.loads(table.schema.metadata[b"halfstep"])["prefix_length"]
    rows = table.to_pylist()
    available = sorted({row["num_steps"] for row in rows})
    shown_steps = num_steps if num_steps in available else next(iter(available), None)
    samples = {}
    for row in rows:
        if row["num_steps"] == shown_steps:
            given = decode(row["token_ids"][:prefix_length]) if prefix_length else ""
            end = _common_length(row["text"], given)
            samples[row["sample_index"]] = SampleText(model, shown_steps, row["text"][:end], row["text"][end:])
    return samples


def _common_length(text: str, given: str) -> int:
    """Length of the start that both share.

    The end of a prefix may decode otherwise when nothing follows it, in the middle of a character for one:
    only what both agree on is surely the prefix.
    """
    differing = (i for i, (left, right) in enumerate(zip(text, given, strict=False)) if left != right)
    return next(differing, min(len(text), len(given)))


def _read(path: Path, parse: Callable[[Any], Any]) -> Any:
    try:
        return parse(read_json(path))
    except FileNotFoundError:
        raise UserError(f"{path} is not there: make it with dvc repro") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} does not hold what its stage writes ({error!r}): make it again with dvc repro"
        ) from None


def _model_metrics(values: Mapping[str, Any]) -> ModelMetrics:
    cloze = values["cloze"]
    samples = tuple(
        SampleMetrics(
            num_steps=entry["num_steps"],
            nfe=Estimate(**entry["nfe"]),
            generative_perplexity=Estimate(**entry["generative_perplexity"]),
            entropy=Estimate(**entry["entropy"]),
            mauve=Estimate(**entry["mauve"]) if entry["mauve"] else None,
        )
        for entry in values["samples"]
    )
    if not samples:
        raise ValueError("no samples")
    return ModelMetrics(
        model=values["model"],
        kind=values["kind"],
        round_index=values["round_index"],
        num_parameters=values["num_parameters"],
        validation_perplexity=Estimate(**values["validation"]["perplexity"]),
        validation_is_bound=values["validation"]["is_bound"],
        cloze_accuracy=Estimate(**cloze["accuracy"]) if cloze else None,
        cloze_perplexity=Estimate(**cloze["perplexity"]) if cloze else None,
        samples=tuple(sorted(samples, key=lambda sampled: sampled.num_steps)),
        scorer=values["scorer"]["name"],
        is_retokenized=values["scorer"]["retokenized"],
        data_perplexity=Estimate(**values["data"]["generative_perplexity"]),
        data_entropy=Estimate(**values["data"]["entropy"]),
    )


def _latencies(values: Mapping[str, Any]) -> Latencies:
    batch_size = values["batch_size"]

    def latency(entry: Mapping[str, Any]) -> Latency:
        nfe = entry["nfe"]
        return Latency(
            num_steps=entry.get("num_steps"),
            nfe=float(nfe["value"] if isinstance(nfe, Mapping) else nfe),
            # A repeat draws a whole batch.
            seconds=entry["seconds"]["value"] / batch_size,
            seconds_min=entry["seconds_min"] / batch_size,
            seconds_max=entry["seconds_max"] / batch_size,
            tokens_per_second=entry["tokens_per_second"],
        )

    num_parameters = values["num_parameters"]
    threads = f", {values['num_threads']} threads" if values["device"] == "cpu" else ""
    conditions = (
        f"{values['device']}{threads}, {values['dtype']}, torch {values['torch']}; batches of {batch_size}"
        f" samples of {values['length']} tokens, the time divided by the batch;"
        f" {num_parameters['denoiser']:,} parameters in the denoiser, {num_parameters['autoregressive']:,}"
        " in the autoregressive model"
    )
    return Latencies(
        conditions=conditions,
        denoiser=tuple(
            sorted((latency(entry) for entry in values["denoiser"]), key=lambda entry: entry.num_steps or 0)
        ),
        autoregressive=latency(values["autoregressive"]),
    )
