"""The one schema of measured values: rows, in one JSON file for each model, that every table, chart and run reads."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from halfstep.metrics.estimate import Estimate
from halfstep.run.errors import UserError
from halfstep.run.files import read_json, write_csv, write_json

AUTOREGRESSIVE = "autoregressive"
COLUMNS = ("sampler", "setting", "temperature", "metric", "value", "error", "low", "high", "count", "unit")


@dataclass(frozen=True)
class Row:
    """One measured value.

    Attributes:
        metric: its name, such as `generative_perplexity`, `likelihood_on.NAME.perplexity`, `downstream.TASK.METRIC`.
        estimate: the value.
        sampler: which drew the samples that it measures; None where none are measured.
        setting: of that sampler, such as `num_steps=8`; empty where it has none.
        temperature: at which the samples were drawn.
    """

    metric: str
    estimate: Estimate
    sampler: str | None = None
    setting: str | None = None
    temperature: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """One flat row, as files and tables have it."""
        low, high = self.estimate.interval or (None, None)
        return {
            "sampler": self.sampler,
            "setting": self.setting,
            "temperature": self.temperature,
            "metric": self.metric,
            "value": self.estimate.value,
            "error": self.estimate.standard_error,
            "low": low,
            "high": high,
            "count": self.estimate.count,
            "unit": self.estimate.unit,
        }


def row_from(values: Mapping[str, Any]) -> Row:
    """A row from its flat form.

    Raises:
        KeyError, TypeError, ValueError: it is not one.
    """
    interval = None if values["low"] is None else (float(values["low"]), float(values["high"]))
    estimate = Estimate(float(values["value"]), values["error"], values["count"], values["unit"], interval)
    return Row(values["metric"], estimate, values["sampler"], values["setting"], values["temperature"])


@dataclass(frozen=True)
class Record:
    """All that was measured of one model: `metrics/MODEL.json`.

    Attributes:
        model: its name: `ar`, `0`, `1`, ...
        kind: `denoiser` or `autoregressive`.
        round_index: round it is the student of, 0 for the first teacher; None if it is autoregressive.
        num_parameters: of its network.
        scorer: name of the model that judged the samples.
        is_retokenized: whether the scorer has another tokenizer, so that samples went through text.
        rows: what was measured; what could not be measured is not there.
        loss_by_time: of a denoiser, {"t_low", "t_high", "value", "error", "count"} by ascending time; a value is None
            where no time was drawn.
        conditions: settings under which it was measured, for people.
    """

    model: str
    kind: str
    round_index: int | None
    num_parameters: int
    scorer: str
    is_retokenized: bool
    rows: tuple[Row, ...]
    loss_by_time: tuple[Mapping[str, Any], ...]
    conditions: Mapping[str, Any]

    def get(self, metric: str, sampler: str | None = None, setting: str | None = None) -> Estimate | None:
        """A value; None where it was not measured."""
        key = metric, sampler, setting
        return next((row.estimate for row in self.rows if (row.metric, row.sampler, row.setting) == key), None)

    def drawn(self) -> list[tuple[str, str]]:
        """(sampler, setting) of every set of samples, in the order in which they were measured."""
        return list(dict.fromkeys((row.sampler, row.setting or "") for row in self.rows if row.sampler is not None))


def write_record(path: Path, record: Record) -> None:
    """Write a record, whole or not at all."""
    write_json(path, {**asdict(replace(record, rows=())), "rows": [row.as_dict() for row in record.rows]})


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows to CSV, one a line."""
    write_csv(path, COLUMNS, ([*row.as_dict().values()] for row in rows))


def read_record(path: Path) -> Record:
    """Read what `write_record` wrote.

    Raises:
        UserError: the file is missing or is not a record.
    """
    try:
        values = read_json(path)
        lists = {"rows": tuple(map(row_from, values["rows"])), "loss_by_time": tuple(values["loss_by_time"])}
        return Record(**{**values, **lists})
    except FileNotFoundError:
        raise UserError(f"{path} is not there: make it with dvc repro") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not what evaluate writes ({error!r}): make it again with dvc repro") from None


def read_records(folder: Path, models: Sequence[str]) -> dict[str, Record]:
    """`MODEL.json` of some models, by name, in their order.

    Raises:
        UserError: see `read_record`.
    """
    return {model: read_record(folder / f"{model}.json") for model in models}


def num_steps_of(setting: str) -> int | None:
    """The number of denoising steps of a setting that says nothing else; None of others."""
    found = re.fullmatch(r"num_steps=(\d+)", setting)
    return int(found[1]) if found else None
