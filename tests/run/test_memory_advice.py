"""The advice is valid: every override in it composes into parameters that load, and needs less memory."""

import re
from pathlib import Path

import pytest
import yaml

from halfstep.run.memory_advice import FURTHER, divisors, finer_accumulation, memory_advice
from halfstep.settings import Params

ROOT = Path(__file__).parents[2]
VALUES = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


def _with(values: dict, *overrides: tuple[str, int]) -> dict:
    changed = yaml.safe_load(yaml.safe_dump(values))
    for key, value in overrides:
        *sections, last = key.split(".")
        place = changed
        for section in sections:
            place = place[section]
        assert last in place
        place[last] = value
    return changed


@pytest.mark.parametrize(
    ("batch_size", "steps"), [(64, 1), (64, 64), (64, 16), (12, 4), (7, 1), (9, 3), (1, 1), (30, 5)]
)
@pytest.mark.parametrize("stage", list(FURTHER))
def test_each_override_gives_parameters_that_load(stage: str, batch_size: int, steps: int) -> None:
    start = [(f"{stage}.batch_size", batch_size)] if "batch_size" in VALUES.get(stage, {}) else []
    if stage in ("pretrain", "baseline", "distill"):
        start.append((f"{stage}.num_accumulation_steps", steps))
    values = _with(VALUES, *start, ("data.num_workers", 4))
    advice = memory_advice(Params.model_validate(values), stage)
    for part in advice.split("; "):
        overrides = [(key, int(value)) for key, value in re.findall(r"-S ([\w.]+)=(\d+)", part)]
        Params.model_validate(_with(values, *overrides))
    for key in re.findall(r"\b(?:data|model|sample|evaluate|latency)\.\w+", advice):
        section, _, name = key.partition(".")
        assert name in VALUES[section]
    if start and batch_size > 1:
        assert f"{stage}.batch_size={batch_size // 2}" in advice
    assert ("same batch" in advice) == (len(start) == 2 and steps < batch_size)


def test_accumulation_is_made_finer_by_half_or_more_and_divides_the_batch() -> None:
    for batch_size in range(1, 65):
        for steps in divisors(batch_size):
            finer = finer_accumulation(batch_size, steps)
            if steps == batch_size:
                assert finer is None
            else:
                assert finer is not None
                assert batch_size % finer == 0
                assert finer >= 2 * steps
                assert not [n for n in divisors(batch_size) if 2 * steps <= n < finer]


@pytest.mark.parametrize(("num_workers", "advice"), [(None, "=1 (now all cores)"), (4, "=2 (now 4)"), (1, None)])
def test_fewer_processes_tokenize(num_workers: int | None, advice: str | None) -> None:
    told = memory_advice(Params.model_validate(_with(VALUES, ("data.num_workers", num_workers))), "prepare")
    assert ("-S data.num_workers" in told) == (advice is not None)
    assert advice is None or f"-S data.num_workers{advice}" in told
