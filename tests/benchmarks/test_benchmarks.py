"""Sizes, spreads, the pairing of two sides, memory of a process of its own, and the command itself."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from benchmarks.__main__ import main, parser
from benchmarks.measure import compare, matmul_flops_per_second, spread
from benchmarks.peak import peak_memory
from benchmarks.sizes import SIZES, Size, choose_size
from benchmarks.work import build

from benchmarks import measure
from halfstep.run.errors import UserError

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
TINY = Size(vocab_size=11, hidden_size=8, num_heads=2, num_blocks=2, cond_dim=4, length=6, batch_size=3)
TINY_OPTIONS = [
    "--vocab-size=11", "--hidden-size=8", "--num-heads=2", "--num-blocks=1", "--length=6", "--batch-size=3",
]  # fmt: skip


@pytest.fixture
def small_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command multiplies matrices that a computer needs a second for; smaller ones tell as much here."""
    monkeypatch.setitem(measure.MATMUL_SIZE, "cpu", 256)


def test_median_and_quartiles() -> None:
    assert spread([4.0, 1.0, 2.0, 3.0, 5.0]) == {"median": 3.0, "quartiles": [2.0, 4.0], "count": 5}
    assert spread([2.0, 1.0]) == {"median": 1.5, "quartiles": [1.0, 2.0], "count": 2}


def test_the_ratio_is_plain_over_ours_of_the_same_round() -> None:
    """A machine that slows down by half in the second round leaves the ratio as it is."""
    now, round_number = [0.0], [0]

    def plain() -> None:
        round_number[0] += 1
        now[0] += 6.0 * round_number[0]

    def ours() -> None:
        now[0] += 2.0 * round_number[0]

    times = compare(plain, ours, num_warmups=0, num_repeats=2, device=CPU, clock=lambda: now[0])
    assert times["ratio"]["quartiles"] == [3.0, 3.0]
    assert times["plain"]["seconds"]["median"] == 9.0


def test_sizes_by_name_by_group_and_by_numbers(tmp_path: Path) -> None:
    assert choose_size("S2", {}, tmp_path) == SIZES["S2"]
    (tmp_path / "wide.yaml").write_text("hidden_size: 64\nnum_blocks: 3\nnum_heads: 4\ncond_dim: 8\ndropout: 0.1\n")
    size = choose_size("wide", {"length": 7, "vocab_size": None}, tmp_path)
    assert (size.hidden_size, size.num_blocks, size.length, size.vocab_size) == (64, 3, 7, 50258)
    with pytest.raises(UserError, match="--size is 'wider': S1, S2, wide are known"):
        choose_size("wider", {}, tmp_path)
    with pytest.raises(UserError, match="--hidden-size 9 cannot be shared by 4 heads"):
        choose_size("S1", {"hidden_size": 9}, tmp_path)


@pytest.mark.parametrize("name", ["train", "distill", "sample", "choose"])
def test_both_sides_of_every_work_run_and_the_flops_are_those_of_torch(name: str) -> None:
    """Torch counts the matrix products that ran; conditioning and modulation, one row each, are not in our count."""
    from torch.utils.flop_counter import FlopCounterMode

    work = build(name, TINY, num_steps=3, dt=1 / 4, device=CPU)
    work.plain()
    with FlopCounterMode(display=False) as counter:
        work.ours()
    counted = counter.get_total_flops()
    cond = 256 * TINY.cond_dim + TINY.cond_dim**2 + (6 * TINY.num_blocks + 2) * TINY.hidden_size * TINY.cond_dim
    num_networks = {"train": 3, "distill": 5, "sample": 3, "choose": 3}[name]
    assert work.flops <= counted * 1.2
    assert work.flops > 0.5 * (counted - num_networks * 2 * cond * 2)


@pytest.mark.system
def test_the_ceiling_is_positive_and_a_process_of_its_own_has_its_own_peak() -> None:
    assert matmul_flops_per_second(CPU, torch.float32, num_repeats=1) > 1e8
    options = {"num_steps": 2, "dt": 1 / 4, "device": CPU, "precision": "fp32", "num_threads": 1}
    # A larger parent must not show in the child's maximum.
    ballast = torch.ones(2**28)
    small = peak_memory("train", "ours", TINY, **options)
    assert len(ballast) == 2**28
    assert 2**24 < small["before_bytes"] <= small["peak_bytes"] < 2**30


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks", *arguments])
    main()


def test_the_command_prints_a_ratio_and_writes_it(
    small_product: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.json"
    run(monkeypatch, "distill", *TINY_OPTIONS, "--num-repeats", "2", "--json", str(file), "--device", "cpu")
    written = json.loads(file.read_text())
    (case,) = written["cases"]
    assert case["work"] == "distill"
    assert case["ratio"]["count"] == 2
    assert 0 < case["mfu"] < 1
    assert f"{case['ratio']['median']:.2f}" in capsys.readouterr().out
    assert written["torch"] == torch.__version__
    assert written["size"]["vocab_size"] == 11


def test_latency_has_a_case_for_each_number_of_steps(
    small_product: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "results.json"
    options = [*TINY_OPTIONS, "--size=S1", "--num-steps=1,2", "--batch-sizes=2", "--num-repeats=1", "--num-warmups=0"]
    run(monkeypatch, "latency", *options, "--json", str(file))
    cases = json.loads(file.read_text())["cases"]
    assert [(case["num_steps"], case["batch_size"]) for case in cases] == [(1, 2), (2, 2)]
    assert cases[0]["ratio"]["median"] > 0
    assert cases[0]["head_passes"] == 0
    run(monkeypatch, "latency", *options, "--head-layers=1", "--json", str(file))
    assert all(case["head_passes"] > 0 for case in json.loads(file.read_text())["cases"])


@pytest.mark.parametrize(
    "arguments", [["walk"], ["train", "--size", "S3"], ["sample", "--num-steps", "16,"], ["train", "--num-blocks", "0"]]
)
def test_what_it_does_not_know_is_refused(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *arguments)
    assert ended.value.code == 2
    assert arguments[-1] in capsys.readouterr().err


def test_what_is_measured_on_a_gpu_is_asked_for_as_the_command_knows_it() -> None:
    script = (ROOT / "scripts" / "gpu-acceptance").read_text(encoding="utf-8").replace("\\\n", " ")
    calls = re.findall(r"^bench \S+ \d+ (.+)$", script, re.MULTILINE)
    assert {parser().parse_args(shlex.split(call)).work for call in calls} == {"train", "distill", "memory", "latency"}
