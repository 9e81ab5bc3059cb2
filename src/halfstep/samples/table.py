"""The table of samples: what the sample stage writes, and how it is read."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfstep.run.errors import UserError, one_line
from halfstep.run.files import atomic_path

if TYPE_CHECKING:
    from halfstep.samplers.base import Samples

METADATA_KEY = b"halfstep"
TEMPERATURE = 1.0
"""Of all samples: what is drawn is the model's distribution."""


@dataclass(frozen=True)
class Batch:
    """Samples drawn together, on the CPU.

    Attributes:
        sampler, setting: name of the sampler, and its setting as text; see `Sampler`.
        num_steps: denoising steps asked for, tokens to write for an autoregressive model, or None.
        indices: which samples.
        prefix_rows: row of the validation tokens that each continues; -1 for none.
        samples: what was drawn.
    """

    sampler: str
    setting: str
    num_steps: int | None
    indices: Sequence[int]
    prefix_rows: Sequence[int]
    samples: "Samples"


def write_samples(
    path: Path, batches: Iterable[Batch], *, decode: Callable[[list[int]], str], metadata: Mapping[str, Any]
) -> None:
    """Write samples to parquet, batch by batch, whole or not at all.

    A row is a sample: sampler, setting, temperature, num_steps, sample_index, prefix_row, nfe, token_ids, unmask_step
    (the step in which each token was last written, 0 where it was given), text.

    Args:
        path: the file.
        batches: of `draw_batches`.
        decode: token ids to text.
        metadata: what all have in common, prefix_length among it; JSON in the file's schema.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = pa.list_(pa.int32())
    schema = pa.schema(
        {
            "sampler": pa.string(), "setting": pa.string(), "temperature": pa.float64(), "num_steps": pa.int64(),
            "sample_index": pa.int64(), "prefix_row": pa.int64(), "nfe": pa.int64(), "token_ids": numbers,
            "unmask_step": numbers, "text": pa.string(),
        },
        metadata={METADATA_KEY: json.dumps(metadata, sort_keys=True).encode()},
    )  # fmt: skip
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for batch in batches:
            token_ids = batch.samples.tokens.tolist()
            same = {name: getattr(batch, name) for name in ("sampler", "setting", "num_steps")}
            columns = {
                **{name: [value] * len(token_ids) for name, value in {**same, "temperature": TEMPERATURE}.items()},
                "sample_index": list(batch.indices),
                "prefix_row": list(batch.prefix_rows),
                "nfe": batch.samples.nfe.tolist(),
                "token_ids": token_ids,
                "unmask_step": batch.samples.unmask_step.tolist(),
                "text": [decode(ids) for ids in token_ids],
            }
            writer.write_table(pa.table(columns, schema=schema))


@dataclass(frozen=True)
class SampleSet:
    """All samples drawn in one way, in the order of their indices.

    Attributes:
        sampler, setting, temperature: how.
        num_steps: see `Batch`.
        nfe: network evaluations of each sample.
        token_ids: of each sample.
        unmask_step: the step in which each token was last written, 0 where it was given.
        prefix_rows: validation row each continues, -1 for none.
        prefix_length: tokens given to each.
        texts: of each sample.
    """

    sampler: str
    setting: str
    temperature: float
    num_steps: int | None
    nfe: list[int]
    token_ids: list[list[int]]
    unmask_step: list[list[int]]
    prefix_rows: list[int]
    prefix_length: int
    texts: list[str]

    @property
    def drawn(self) -> tuple[str, str, float]:
        """What distinguishes it from the other sets of its file."""
        return self.sampler, self.setting, self.temperature


def read_sample_sets(path: Path, num_samples: int | None = None) -> list[SampleSet]:
    """Read a table of samples.

    Args:
        path: parquet file of the sample stage.
        num_samples: of each set, the first; None is all.
    Returns:
        the sets in the order in which they were drawn.
    Raises:
        UserError: the file is missing, broken or empty.
    """
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    same = ("sampler", "setting", "temperature", "num_steps")
    # column: attribute
    each = {
        "nfe": "nfe", "token_ids": "token_ids", "unmask_step": "unmask_step", "prefix_row": "prefix_rows",
        "text": "texts",
    }  # fmt: skip
    filters = None if num_samples is None else [("sample_index", "<", num_samples)]
    try:
        table = pq.read_table(path, columns=[*same, *each], filters=filters)
        prefix_length = int(json.loads(table.schema.metadata[METADATA_KEY])["prefix_length"])
    except (OSError, ArrowException, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}): the stage sample writes it, dvc repro") from None
    rows: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for row in zip(*(table[name].to_pylist() for name in (*same, *each)), strict=True):
        rows.setdefault(row[: len(same)], []).append(row[len(same) :])
    if not rows:
        raise UserError(f"{path} holds no samples: raise sample.num_samples and sample.num_prefixes, then dvc repro")
    sets = []
    for way, of_way in rows.items():
        columns: dict[str, Any] = dict(zip(each.values(), map(list, zip(*of_way, strict=True)), strict=True))
        sets.append(SampleSet(**dict(zip(same, way, strict=True)), **columns, prefix_length=prefix_length))
    return sets


def pair_sample_sets(
    unconditional: Sequence[SampleSet], continuations: Sequence[SampleSet]
) -> list[tuple[SampleSet, SampleSet]]:
    """Put together the sets of both kinds that were drawn in the same way.

    Raises:
        UserError: they do not belong together.
    """
    ways = [sample_set.drawn for sample_set in unconditional], [sample_set.drawn for sample_set in continuations]
    if ways[0] != ways[1]:
        raise UserError(
            f"unconditional samples were drawn by {one_line(ways[0])}, continuations by {one_line(ways[1])}: they come"
            " from different runs of the stage sample, dvc repro"
        )
    return list(zip(unconditional, continuations, strict=True))
