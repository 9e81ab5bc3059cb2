import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from halfstep.run.errors import UserError
from halfstep.samples.table import SampleSet, pair_sample_sets, read_sample_sets

ROWS = [
    {"sample_index": 1, "prefix_row": 5, "num_steps": 16, "nfe": 7, "token_ids": [1, 2], "unmask_step": [0, 3]},
    {"sample_index": 0, "prefix_row": 4, "num_steps": 16, "nfe": 8, "token_ids": [3, 4], "unmask_step": [0, 1]},
    {"sample_index": 0, "prefix_row": 4, "num_steps": 4, "nfe": 4, "token_ids": [5, 6], "unmask_step": [2, 1]},
]


def test_sets_are_sorted_by_steps_and_index(tmp_path):
    path = tmp_path / "samples.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    assert read_sample_sets(path) == [
        SampleSet(4, [4], [[5, 6]], [4], 0),
        SampleSet(16, [8, 7], [[3, 4], [1, 2]], [4, 5], 1),
    ]


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "samples.parquet"
    with pytest.raises(UserError, match="cannot be read"):
        read_sample_sets(path)
    path.write_bytes(b"not parquet")
    with pytest.raises(UserError, match="cannot be read") as error:
        read_sample_sets(path)
    assert "\n" not in str(error.value)
    pq.write_table(pa.Table.from_pylist(ROWS).slice(0, 0), path)
    with pytest.raises(UserError, match="holds no samples"):
        read_sample_sets(path)


def test_sets_of_both_kinds_are_paired():
    four, sixteen = SampleSet(4, [], [], [], 0), SampleSet(16, [], [], [], 0)
    assert pair_sample_sets([four, sixteen], [four, sixteen], by_num_steps=True) == [
        (four, four),
        (sixteen, sixteen),
    ]
    assert pair_sample_sets([four], [sixteen], by_num_steps=False) == [(four, sixteen)]
    for by_num_steps in (True, False):
        with pytest.raises(UserError, match="different runs"):
            pair_sample_sets([four, sixteen], [four], by_num_steps=by_num_steps)
    with pytest.raises(UserError, match="different runs"):
        pair_sample_sets([four], [sixteen], by_num_steps=True)
