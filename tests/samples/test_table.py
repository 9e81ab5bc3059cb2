from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from halfstep.run.errors import UserError
from halfstep.samplers.base import Samples
from halfstep.samples.table import Batch, SampleSet, pair_sample_sets, read_sample_sets, write_samples


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "samples.parquet"
    with pytest.raises(UserError, match="cannot be read"):
        read_sample_sets(path)
    path.write_bytes(b"not parquet")
    with pytest.raises(UserError, match="cannot be read") as error:
        read_sample_sets(path)
    assert "\n" not in str(error.value)
    ones = torch.ones(1, 2, dtype=torch.int64)
    batch = Batch("ancestral", "num_steps=4", 4, [0], [-1], Samples(ones, ones[:, 0], ones, ones[:, 0]))
    for metadata, batches, message in (({}, [batch], "prefix_length"), ({"prefix_length": 0}, [], "holds no samples")):
        write_samples(path, batches, decode=str, metadata=metadata)
        with pytest.raises(UserError, match=message):
            read_sample_sets(path)
    pq.write_table(pa.table({"num_steps": [4]}), path)
    with pytest.raises(UserError, match="cannot be read"):
        read_sample_sets(path)


def test_sets_of_both_kinds_are_paired_where_they_were_drawn_in_the_same_way():
    four = SampleSet("ancestral", "num_steps=4", 1.0, 4, [], [], [], [], 0, [])
    others = [
        replace(four, setting="num_steps=16"), replace(four, sampler="confidence"), replace(four, temperature=0.9),
    ]  # fmt: skip
    assert pair_sample_sets([four, *others], [four, *others]) == [(one, one) for one in (four, *others)]
    # An autoregressive model writes another number of tokens in continuations.
    of_ar = (
        replace(four, sampler="autoregressive", setting="", num_steps=63),
        replace(four, sampler="autoregressive", setting=""),
    )
    assert pair_sample_sets([of_ar[0]], [of_ar[1]]) == [of_ar]
    for continuations in ([four], *([four, other, other] for other in others)):
        with pytest.raises(UserError, match="different runs"):
            pair_sample_sets([four, others[0]], continuations)
