"""`halfstep plan --check`: what a plan says beside what is measured, at sizes that differ by much.

Memory is what torch's allocator hands out, tensor by tensor, the operators' own workspaces included, as torch's
profiler records it: not the memory of the process, which also has libraries, code, and what an allocator keeps.
FLOPs are those of the matrix products that run, counted by torch's own counter as they are called.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.sizes import SIZES, Size
from halfstep.run.console import progress
from halfstep.run.files import write_json
from halfstep.settings import Params
from halfstep.tools.planning.compose import composed_params
from halfstep.tools.planning.memory import Peak
from halfstep.tools.planning.plan import networks, training_flops, training_load
from halfstep.tools.trial import train_two_steps
from halfstep.training.state import TrainState

Result = TypeVar("Result")

STAGES = ("pretrain", "distill", "baseline")

CHECKED = {
    "S1, V 4096, batch 32": Size(4096, 256, 4, 4, 128, 128, 32),
    "S2, batch 4": replace(SIZES["S2"], batch_size=4),
}
"""Activations make up most of the first, weights most of the second, which has forty times its parameters."""


@dataclass(frozen=True)
class Checked:
    """One stage at one size: bytes and floating-point operations of a step, planned and measured.

    Attributes:
        size, stage, num_parts: which; the parts are those of a batch.
        planned: the peak, by part.
        held: measured bytes of the parts that are tensors of their own, at the end of a step.
        peak_bytes: measured.
        flops, counted_flops: of a step, planned and measured; None where they were not.
    """

    size: str
    stage: str
    num_parts: int
    planned: Peak
    held: dict[str, int]
    peak_bytes: int
    flops: float
    counted_flops: int | None

    @property
    def memory_ratio(self) -> float:
        """Planned over measured."""
        return self.planned.total / self.peak_bytes

    @property
    def flops_ratio(self) -> float | None:
        """Planned over measured."""
        return None if self.counted_flops is None else self.flops / self.counted_flops


def check_plan(root: Path, json_path: Path | None) -> None:
    """Measure every training stage at two sizes, in one part and in two, and print it beside the plan."""
    cases = [(name, stage, parts) for name in CHECKED for stage in STAGES for parts in (1, 2)]
    checked = []
    with progress("plan --check", len(cases), unit="measurement") as show:
        for name, stage, parts in cases:
            # The number of parts changes no arithmetic.
            checked.append(check_stage(root, name, CHECKED[name], stage, parts, counts_flops=parts == 1))
            show(len(checked), stage)
    shown = Console(highlight=False)
    for table in _tables(checked):
        shown.print(table)
    if json_path is not None:
        values = [asdict(one) | {"planned_bytes": one.planned.total} for one in checked]
        write_json(json_path, {"torch": torch.__version__, "checked": values})


def check_stage(root: Path, name: str, size: Size, stage: str, parts: int, *, counts_flops: bool = True) -> Checked:
    """Plan and measure one training stage on the CPU, in float32.

    Args:
        root: the project, whose parameters are composed.
        name: of the size.
        size: of network and batch.
        stage: pretrain, distill or baseline.
        parts: equal parts of a batch, computed one after the other.
        counts_flops: count them, too, in a run of its own.
    """
    params = _params(root, size, stage, parts)
    network = networks(params, size.vocab_size)[stage == "baseline"]
    options: dict[str, Any] = {"batch_size": size.batch_size, "num_accumulation_steps": parts, "masks_most": False}
    state, peak_bytes = _measured_peak(params, stage, size.vocab_size, options)
    counted = _counted_flops(params, stage, size.vocab_size, options) if counts_flops else None
    return Checked(
        size=name,
        stage=stage,
        num_parts=parts,
        planned=training_load(params, network, stage),
        held=_held(state),
        peak_bytes=peak_bytes,
        flops=training_flops(params, network, stage),
        counted_flops=counted,
    )


def _params(root: Path, size: Size, stage: str, parts: int) -> Params:
    values = {
        "preset": "smoke",
        "runtime.device": "cpu",
        "runtime.precision": "fp32",
        "data.context_length": size.length,
        "sample.prefix_length": 1,
        "sample.continuation_length": 2,
        "model.hidden_size": size.hidden_size,
        "model.num_blocks": size.num_blocks,
        "model.num_heads": size.num_heads,
        "model.cond_dim": size.cond_dim,
        f"{stage}.batch_size": size.batch_size,
        f"{stage}.num_accumulation_steps": parts,
        # As many as a step computes at once, so that it is the step that is measured.
        f"{stage}.num_valid_sequences": size.batch_size,
    }
    return composed_params([f"{key}={value}" for key, value in values.items()], root)


def _measured_peak(params: Params, stage: str, vocab_size: int, options: dict[str, Any]) -> tuple[TrainState, int]:
    """The state after two steps and a validation, and the most bytes of tensors from the second step on."""
    made: list[int] = []

    def run() -> TrainState:
        return train_two_steps(
            params, stage, vocab_size, **options, on_step=lambda step, loss: made.append(time.time_ns())
        )

    state, held = allocations(run)
    return state, max(num_bytes for moment, num_bytes in held if moment >= made[0])


def allocations(call: Callable[[], Result]) -> tuple[Result, list[tuple[int, int]]]:
    """What a call returns, and how many bytes torch had handed out since it began, on the CPU.

    Returns:
        (the call's result, [(nanoseconds of the wall clock, bytes in all)] after each piece was taken or given back).
    """
    # Not `torch.profiler`, whose start imports a compiler.
    with torch.autograd.profiler.profile(profile_memory=True) as profiler:
        result = call()
    assert profiler.kineto_results is not None, "the profiler has ended"
    events = (event for event in profiler.kineto_results.events() if event.name() == "[memory]")
    pieces = sorted((event.start_ns(), event.nbytes()) for event in events)
    return result, list(
        zip((moment for moment, _ in pieces), accumulate(num_bytes for _, num_bytes in pieces), strict=True)
    )


def _counted_flops(params: Params, stage: str, vocab_size: int, options: dict[str, Any]) -> int:
    """FLOPs of the second step."""
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _flops_of_added_product})
    made: list[int] = []
    # The CPU's own kernel of attention is not known to the counter; as plain products it is.
    with sdpa_kernel(SDPBackend.MATH), counter:
        train_two_steps(
            params,
            stage,
            vocab_size,
            **options,
            on_step=lambda step, loss: made.append(counter.get_total_flops()),
        )
    return made[1] - made[0]


def _flops_of_added_product(total: Sequence[int], a: Sequence[int], b: Sequence[int], **options: Any) -> int:
    """Of a sum in place with a product of matrices of some shapes, which the counter knows with a new sum only."""
    return 2 * a[0] * a[1] * b[1]


def _held(state: TrainState) -> dict[str, int]:
    """Bytes of the tensors that stay from step to step."""
    moments = [state.optimizer.state[p][key] for p in state.model.parameters() for key in ("exp_avg", "exp_avg_sq")]
    return {
        "weights": sum(p.nbytes for p in state.model.parameters()),
        "average": sum(average.nbytes for average in state.ema.average.values()),
        "optimizer": sum(moment.nbytes for moment in moments),
    }


def _tables(checked: Sequence[Checked]) -> Iterator[Table]:
    memory = _table("Memory at the fullest moment, MiB")
    flops = _table("FLOPs of a step")
    for one in checked:
        named = (one.size, one.stage, str(one.num_parts))
        amounts = (f"{amount / 2**20:.1f}" for amount in (one.planned.total, one.peak_bytes))
        memory.add_row(*named, *amounts, f"{one.memory_ratio:.3f}")
        if one.flops_ratio is not None:
            flops.add_row(*named, f"{one.flops:.4g}", f"{one.counted_flops:.4g}", f"{one.flops_ratio:.3f}")
    yield memory
    yield flops


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in ("size", "stage", "parts", "planned", "measured", "ratio"):
        table.add_column(column, justify="right" if column in ("planned", "measured", "ratio") else "left")
    return table
