"""The results a report is made of, read from the files that the stages wrote."""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halfstep.metrics.estimate import Estimate
from halfstep.run.errors import UserError
from halfstep.run.files import read_json
from halfstep.run.stage_times import StageTime, find_stage_time

AUTOREGRESSIVE = "autoregressive"


@dataclass(frozen=True)
class SampleMetrics:
    """What the samples of one model at one number of denoising steps measure.

    Attributes:
        num_steps: denoising steps asked for; of an autoregressive model, the tokens it generated.
        nfe: network evaluations per sample.
        generative_perplexity: of the samples under the scorer.
        entropy: of the tokens within a sample.
        mauve: similarity to the validation text, in [0, 1]; None if not measured.
        extras: by title, those of `EXTRA_METRICS` that were measured.
    Any of them is None where it was not measured.
    """

    num_steps: int
    nfe: Estimate | None
    generative_perplexity: Estimate | None
    entropy: Estimate | None
    mauve: Estimate | None
    extras: Mapping[str, Estimate] = field(default_factory=dict, hash=False)


EXTRA_METRICS = {"self_bleu": "self-BLEU", "copied": "copied"}
"""Further keys of a metrics file's samples that are shown, and their titles; other keys are passed over."""


SHOWN_NGRAM_SIZE = "2"


@dataclass(frozen=True)
class TimeLoss:
    """The loss of a denoiser at the diffusion times of one bucket.

    Attributes:
        t_low, t_high: the bucket.
        nats_per_token: the bound's integrand there; None where no time was drawn.
    """

    t_low: float
    t_high: float
    nats_per_token: Estimate | None


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
        loss_by_time: by ascending time; empty if not measured.
        samples: by ascending number of denoising steps; empty if none were drawn.
        scorer: name of the model that judged the samples.
        is_retokenized: whether the scorer has another tokenizer, so that samples went through text.
        data_perplexity: generative perplexity of the validation text itself.
        data_entropy: entropy of the validation text itself.
        further: by title, what else was measured: likelihood of other texts, downstream tasks.
    """

    model: str
    kind: str
    round_index: int | None
    num_parameters: int
    validation_perplexity: Estimate | None
    validation_is_bound: bool
    loss_by_time: tuple[TimeLoss, ...]
    cloze_accuracy: Estimate | None
    cloze_perplexity: Estimate | None
    samples: tuple[SampleMetrics, ...]
    scorer: str
    is_retokenized: bool
    data_perplexity: Estimate | None
    data_entropy: Estimate | None
    further: Mapping[str, Estimate] = field(default_factory=dict, hash=False)

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


def load_stage_times(
    models: Sequence[str], *, tokens_path: Path, curves_path: Path, samples_path: Path, metrics_path: Path
) -> dict[str, StageTime | None]:
    """How long each stage took that made these files; None where nothing is known.

    Args:
        models: names of all models of the run.
        tokens_path, curves_path, samples_path, metrics_path: what the stages wrote.
    """
    trained = {"ar": "baseline", "0": "pretrain"}
    outputs = {"prepare": tokens_path / "manifest.json"}
    outputs |= {trained.get(model, f"distill@{model}"): curves_path / f"{model}.csv" for model in models}
    outputs |= {f"sample@{model}": samples_path / model / "unconditional.parquet" for model in models}
    outputs |= {f"evaluate@{model}": metrics_path / f"{model}.json" for model in models}
    outputs["latency"] = metrics_path / "latency.json"
    return {stage: find_stage_time(stage, output) for stage, output in outputs.items()}


def _read(path: Path, parse: Callable[[Any], Any]) -> Any:
    try:
        return parse(read_json(path))
    except FileNotFoundError:
        raise UserError(f"{path} is not there: make it with dvc repro") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} does not hold what its stage writes ({error!r}): make it again with dvc repro"
        ) from None


def _estimate(values: Mapping[str, Any] | None) -> Estimate | None:
    """An estimate as its stage wrote it; None where it or its value is null."""
    if values is None or values["value"] is None:
        return None
    interval = values.get("interval")
    numbers = (values["value"], values["standard_error"], *(interval or ()))
    if not all(number is None or math.isfinite(number) for number in numbers):
        raise ValueError(f"not finite: {numbers}")
    return Estimate(
        value=float(values["value"]),
        standard_error=values["standard_error"],
        count=values["count"],
        unit=values["unit"],
        interval=None if interval is None else (float(interval[0]), float(interval[1])),
    )


def _extras(entry: Mapping[str, Any]) -> dict[str, Estimate]:
    found = {title: _estimate(entry.get(key)) for key, title in EXTRA_METRICS.items()}
    # A share of a whole set of samples: it is counted, not estimated. The other sizes stay in the metrics file.
    share = (entry.get("distinct_ngrams") or {}).get(SHOWN_NGRAM_SIZE)
    found[f"distinct {SHOWN_NGRAM_SIZE}-grams"] = share and _estimate(
        {"value": share, "standard_error": None, "count": 0, "unit": "1"}
    )
    return {title: estimate for title, estimate in found.items() if estimate is not None}


def _further(values: Mapping[str, Any]) -> dict[str, Estimate]:
    texts = {"validation text": values["validation"], **(values.get("likelihood_on") or {})}
    found = {f"{name}: bits per byte": text.get("bits_per_byte") for name, text in texts.items()}
    for name, text in (values.get("likelihood_on") or {}).items():
        found[f"{name}: perplexity{' (bound)' if text['is_bound'] else ''}"] = text["perplexity"]
    for task, result in (values.get("downstream") or {}).items():
        found |= {f"{task}: {metric}": estimate for metric, estimate in result["metrics"].items()}
    return {title: estimate for title, value in found.items() if (estimate := _estimate(value)) is not None}


def _model_metrics(values: Mapping[str, Any]) -> ModelMetrics:
    cloze = values["cloze"] or {}
    samples = tuple(
        SampleMetrics(
            num_steps=entry["num_steps"],
            **{name: _estimate(entry[name]) for name in ("nfe", "generative_perplexity", "entropy", "mauve")},
            extras=_extras(entry),
        )
        for entry in values["samples"] or ()
    )
    data = values["data"] or {}
    return ModelMetrics(
        model=values["model"],
        kind=values["kind"],
        round_index=values["round_index"],
        num_parameters=values["num_parameters"],
        validation_perplexity=_estimate(values["validation"]["perplexity"]),
        validation_is_bound=values["validation"]["is_bound"],
        loss_by_time=tuple(
            TimeLoss(bucket["t_low"], bucket["t_high"], _estimate(bucket["nats_per_token"]))
            for bucket in values.get("loss_by_time") or ()
        ),
        cloze_accuracy=_estimate(cloze.get("accuracy")),
        cloze_perplexity=_estimate(cloze.get("perplexity")),
        samples=tuple(sorted(samples, key=lambda sampled: sampled.num_steps)),
        scorer=values["scorer"]["name"],
        is_retokenized=values["scorer"]["retokenized"],
        data_perplexity=_estimate(data.get("generative_perplexity")),
        data_entropy=_estimate(data.get("entropy")),
        further=_further(values),
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
