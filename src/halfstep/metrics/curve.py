"""A training curve, as the report and MLflow read it."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from halfstep.run.errors import UserError

Curve = Mapping[str, Sequence[tuple[int, float]]]
"""Per column, (step, value) where it was measured."""


def read_curve(path: Path) -> Curve:
    """Read a training curve.

    Raises:
        UserError: it is missing or holds something that is no number.
    """
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        columns = [name for name in (rows[0] if rows else {}) if name != "step"]
        return {name: [(int(row["step"]), float(row[name])) for row in rows if row[name]] for name in columns}
    except FileNotFoundError:
        raise UserError(f"{path} is not there: make it with dvc repro") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a training curve ({error!r}): make it again with dvc repro") from None
