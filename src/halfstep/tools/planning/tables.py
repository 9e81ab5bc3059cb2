"""A plan as tables on a terminal of 80 columns."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from halfstep.tools.planning.gpus import GPUS
from halfstep.tools.planning.plan import USABLE_SHARE, Plan

BYTES = {"GiB": 2.0**30, "MiB": 2.0**20}
SECONDS = {"hours": 3600.0, "minutes": 60.0, "seconds": 1.0}
SHORT = {"average": "EMA", "gradients": "grads", "optimizer": "AdamW", "activations": "activ."}
"""Headings of the memory's parts where their names are too long for 80 columns."""


def tables(plan: Plan, mfu: float) -> Iterator[RenderableType]:
    """What to print, in order.

    Args:
        plan: what was planned.
        mfu: share of a GPU's peak that the arithmetic is taken to reach.
    """
    devices = f"devices: {plan.num_devices}" + (f", {plan.strategy}" if plan.num_devices > 1 else "")
    yield Text(f"preset {plan.preset}; {plan.precision}; {devices}")
    yield Text(f"vocabulary {plan.vocab_size.value} ({plan.vocab_size.source})")
    if plan.num_tokens is None:
        yield Text("tokens of the corpus: not known before it is prepared; give --num-tokens")
    else:
        yield Text(f"tokens of the corpus: {_count(plan.num_tokens.value)} ({plan.num_tokens.source})")
    for table in (_parameters(plan), _compute(plan), _memory(plan), _fits(plan), _time(plan, mfu), _disk(plan)):
        yield Text()
        yield table
    yield Text("\nNot in it: " + "; ".join(plan.left_out) + ".")


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=0)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    return table


def _titled(title: str, table: Table, note: str = "") -> Group:
    return Group(Text(title, style="bold"), table, *([Text(note)] if note else []))


def _parameters(plan: Plan) -> Group:
    table = _table("", *asdict(plan.denoiser))
    for name, counted in (("denoiser", plan.denoiser), ("autoregressive", plan.autoregressive)):
        table.add_row(name, *map(_count, asdict(counted).values()))
    return _titled("Parameters", table)


def _compute(plan: Plan) -> Group:
    table = _table("stage", "models", "steps", "tokens", "FLOPs per step", "FLOPs")
    for work in plan.works:
        per_step = "" if work.flops_per_step is None else f"{work.flops_per_step:.2e}"
        steps = "" if work.num_steps is None else str(work.num_steps)
        table.add_row(work.stage, str(work.num_models), steps, _count(work.num_tokens), per_step, f"{work.flops:.2e}")
    table.add_section()
    table.add_row("all", "", "", "", "", f"{sum(work.flops * work.num_models for work in plan.works):.2e}")
    return _titled(
        "Compute: FLOPs of matrix products, two for a multiply-add",
        table,
        "Tokens and FLOPs are of one model of the stage; those of all count every model.",
    )


def _memory(plan: Plan) -> Group:
    rows = [{**asdict(load.memory), "all": load.memory.total} for load in plan.loads]
    parts = [part for part in (*asdict(plan.loads[0].memory), "all") if any(row[part] for row in rows)] if rows else []
    unit, size = _unit(BYTES, max((row["all"] for row in rows), default=0))
    table = _table("stage", "n", *(SHORT.get(part, part) for part in parts))
    for load, row in zip(plan.loads, rows, strict=True):
        cells = [_amount(row[part] / size) if row[part] else "" for part in parts]
        table.add_row(load.stage, str(load.num_sequences), *cells)
    title = f"Memory in training, {unit}, to about a quarter: halfstep fit-batch measures it"
    return _titled(title, table, "n: sequences at once.")


def _fits(plan: Plan) -> Group:
    table = _table("stage", *(gpu.name for gpu in GPUS))
    for load in plan.loads:
        cells = {None: "no", load.num_accumulation_steps: "yes"}
        table.add_row(load.stage, *(cells.get(number, f"acc {number}") for number in load.fits.values()))
    return _titled(
        f"Does it fit {100 * USABLE_SHARE:.0f} % of the memory? If not, what does",
        table,
        "acc N: the same batch with num_accumulation_steps=N.",
    )


def _time(plan: Plan, mfu: float) -> Group:
    rows: dict[str, list[float]] = {}
    for work in plan.works:
        name = "distill, all" if work.stage.startswith("distill@") else work.stage
        seconds = [work.seconds(gpu, mfu, plan.num_devices) for gpu in GPUS]
        seconds += [] if plan.here is None else [plan.here.seconds(work)]
        before = rows.get(name, [0.0] * len(seconds))
        rows[name] = [total + work.num_models * each for total, each in zip(before, seconds, strict=True)]
    totals = [sum(column) for column in zip(*rows.values(), strict=True)]
    unit, size = _unit(SECONDS, max(totals[: len(GPUS)]))
    table = _table("stage", *(gpu.name for gpu in GPUS), *([] if plan.here is None else ["here"]))

    def cells(seconds: list[float]) -> list[str]:
        return [_amount(each / size) for each in seconds[: len(GPUS)]] + list(map(_duration, seconds[len(GPUS) :]))

    for name, seconds in rows.items():
        table.add_row(name, *cells(seconds))
    table.add_section()
    table.add_row("all", *cells(totals))
    devices = "one of them" if plan.num_devices == 1 else f"{plan.num_devices} of them"
    note = "sample@ar: every token takes reading all weights and the cache from memory."
    if plan.here is not None:
        note += "\nhere: as fast as this machine was in a few steps or batches of each kind of work."
    return _titled(
        f"Time at {100 * mfu:g} % of the peak in bf16, on {devices}: {unit}, all models",
        table,
        note,
    )


def _disk(plan: Plan) -> Group:
    total = sum(amount or 0 for amount in plan.disk.values())
    unit, size = _unit(BYTES, total)
    table = _table("", unit)
    for name, amount in plan.disk.items():
        table.add_row(name, "?" if amount is None else _amount(amount / size))
    table.add_section()
    table.add_row("all but the tokens" if plan.num_tokens is None else "all", _amount(total / size))
    return _titled(
        "Disk",
        table,
        "states: of each student; checkpoints: of one stage, gone when it ends; DVC's\n"
        "cache: the first four once more, nothing where DVC can link.",
    )


def _unit(units: Mapping[str, float], most: float) -> tuple[str, float]:
    """The largest unit, with its size, of which there is one at least; else the smallest."""
    return next(((name, size) for name, size in units.items() if most >= size), list(units.items())[-1])


def _duration(seconds: float) -> str:
    """With its unit: this machine may be a thousand times slower than those beside it."""
    unit, size = _unit(SECONDS, seconds)
    return f"{_amount(seconds / size)} {unit[0]}"


def _count(number: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return f"{number:.0f}"


def _amount(number: float) -> str:
    """Three digits, and no more than two behind the point."""
    if number >= 9.995:
        return f"{number:.0f}" if number >= 99.95 else f"{number:.1f}"
    return f"{number:.2f}" if number >= 0.005 or number == 0 else "<0.01"
