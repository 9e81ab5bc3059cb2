import csv
from pathlib import Path

import pytest

from halfstep.metrics.estimate import Estimate
from halfstep.metrics.record import Record, Row, num_steps_of, read_records, write_record, write_rows
from halfstep.run.errors import UserError

ROWS = (
    Row("entropy", Estimate(1 / 3, 1 / 7, 4, "nats", (0.25, 0.5)), "ancestral", "num_steps=4", 1.0),
    Row("entropy", Estimate(0.5, None, 4, "nats"), "autoregressive", "", 1.0),
    Row("validation_perplexity", Estimate(7.0, None, 16, "1")),
)
RECORD = Record("1", "denoiser", 1, 10, "models/ar", False, ROWS, ({"t_low": 0.0, "value": None},), {"seed": 0})


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_record(tmp_path / "1.json", RECORD)
    assert read_records(tmp_path, ["1"]) == {"1": RECORD}
    assert RECORD.drawn() == [("ancestral", "num_steps=4"), ("autoregressive", "")]
    assert RECORD.get("entropy", "autoregressive", "") == Estimate(0.5, None, 4, "nats")
    assert RECORD.get("validation_perplexity") == Estimate(7.0, None, 16, "1")
    assert RECORD.get("entropy") is None
    assert [num_steps_of(setting) for setting in ("num_steps=4", "threshold=0.9", "")] == [4, None, None]


def test_what_is_no_record_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1\.json is not there"):
        read_records(tmp_path, ["1"])
    for text in ("{}", "[]", "not JSON", '{"rows": [{}]}'):
        (tmp_path / "1.json").write_text(text)
        with pytest.raises(UserError, match="is not what evaluate writes"):
            read_records(tmp_path, ["1"])


def test_rows_are_a_table(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.csv", ROWS)
    first, *_, last = csv.DictReader((tmp_path / "rows.csv").open(newline=""))
    assert (first["sampler"], first["setting"], first["metric"]) == ("ancestral", "num_steps=4", "entropy")
    assert [float(first[name]) for name in ("value", "error", "low", "high", "count")] == [1 / 3, 1 / 7, 0.25, 0.5, 4]
    assert (last["sampler"], last["error"], last["metric"]) == ("", "", "validation_perplexity")
