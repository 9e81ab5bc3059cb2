"""The table of samples: what the sample stage writes, and how it is read."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfstep.run.errors import UserError
from halfstep.run.files import atomic_path
from halfstep.samples.draw import Batch

METADATA_KEY = b"halfstep"


def write_samples(
    path: Path, batches: Iterable[Batch], *, decode: Callable[[list[int]], str], metadata: dict[str, Any]
) -> None:
    """Write samples to parquet, batch by batch, whole or not at all.

    Columns: sample_index, prefix_row, num_steps, nfe, token_ids, unmask_step (0 where given), text.

    Args:
        path: the file.
        batches: of `draw_batches`.
        decode: token ids to text.
        metadata: settings that go into the file's schema as JSON.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        {
            "sample_index": pa.int64(),
            "prefix_row": pa.int64(),
            "num_steps": pa.int64(),
            "nfe": pa.int64(),
            "token_ids": pa.list_(pa.int32()),
            "unmask_step": pa.list_(pa.int32()),
            "text": pa.string(),
        },
        metadata={METADATA_KEY: json.dumps(metadata, sort_keys=True).encode()},
    )
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for batch in batches:
            token_ids = batch.samples.tokens.tolist()
            columns = {
                "sample_index": list(batch.indices),
                "prefix_row": list(batch.prefix_rows),
                "num_steps": [batch.num_steps] * len(token_ids),
                "nfe": batch.samples.nfe.tolist(),
                "token_ids": token_ids,
                "unmask_step": batch.samples.unmask_step.tolist(),
                "text": [decode(ids) for ids in token_ids],
            }
            writer.write_table(pa.table(columns, schema=schema))


@dataclass(frozen=True)
class SampleSet:
    """All samples drawn in one number of steps, in the order of their indices.

    Attributes:
        num_steps: denoising steps asked for.
        nfe: network evaluations of each sample.
        token_ids: of each sample.
        prefix_rows: validation row each continues, -1 for none.
        prefix_length: tokens given to each.
    """

    num_steps: int
    nfe: list[int]
    token_ids: list[list[int]]
    prefix_rows: list[int]
    prefix_length: int


def read_sample_sets(path: Path) -> list[SampleSet]:
    """Read a table of samples.

    Args:
        path: parquet file of the sample stage.
    Returns:
        one set per number of steps, ascending.
    Raises:
        UserError: the file is missing, broken or empty.
    """
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    columns = ["num_steps", "sample_index", "nfe", "token_ids", "prefix_row", "unmask_step"]
    try:
        table = pq.read_table(path, columns=columns)
    except (OSError, ArrowException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read ({reason}): the stage sample writes it, dvc repro") from None
    rows = sorted(zip(*(table[name].to_pylist() for name in columns), strict=True), key=lambda row: row[:2])
    if not rows:
        raise UserError(f"{path} holds no samples: raise sample.num_samples and sample.num_prefixes, then dvc repro")
    sets = []
    for steps in sorted({row[0] for row in rows}):
        _, _, nfe, token_ids, prefix_rows, unmasked = zip(*(row for row in rows if row[0] == steps), strict=True)
        # What was given never unmasked: step 0.
        prefix_length = sum(step == 0 for step in unmasked[0])
        sets.append(SampleSet(steps, list(nfe), list(token_ids), list(prefix_rows), prefix_length))
    return sets


def pair_sample_sets(
    unconditional: Sequence[SampleSet], continuations: Sequence[SampleSet], *, by_num_steps: bool
) -> list[tuple[SampleSet, SampleSet]]:
    """Put together the sets of both kinds that were drawn in the same way.

    Args:
        unconditional, continuations: of `read_sample_sets`.
        by_num_steps: whether both must have the same numbers of steps; an autoregressive model makes as many
            steps as it generates tokens, so its one set of each kind differs in that number.
    Raises:
        UserError: they do not belong together.
    """
    steps = [s.num_steps for s in unconditional], [s.num_steps for s in continuations]
    if len(steps[0]) != len(steps[1]) or (by_num_steps and steps[0] != steps[1]):
        raise UserError(
            f"unconditional samples have numbers of steps {steps[0]}, continuations {steps[1]}: they come"
            " from different runs of the stage sample, dvc repro"
        )
    return list(zip(unconditional, continuations, strict=True))
