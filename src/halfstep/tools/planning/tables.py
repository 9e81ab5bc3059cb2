"""A plan as tables on a terminal of 80 columns."""

from collections.abc import Iterator
from dataclasses import fields

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from halfstep.tools.planning.devices import GPUS
from halfstep.tools.planning.memory import Memory
from halfstep.tools.planning.plan import USABLE_SHARE, Plan

BYTES = {"GiB": 2**30, "MiB": 2**20}
SECONDS = {"hours": 3600.0, "minutes": 60.0, "seconds": 1.0}
SHORT = {
    "average": "EMA",
    "gradients": "grads",
    "optimizer": "AdamW",
    "activations": "activ.",
}
"""Headings of the memory's parts where their names are too long for 80 columns."""


def tables(plan: Plan, mfu: float) -> Iterator[RenderableType]:
    """What to print, in order.

    Args:
        plan: what was planned.
        mfu: share of a GPU's peak that the arithmetic is taken to reach.
    """
    yield Text("\n".join(_facts(plan)))
    for table in (_parameters(plan), _compute(plan), _memory(plan), _fits(plan), _time(plan, mfu), _disk(plan)):
        yield Text()
        yield table
    yield Text("\nNot in it: " + "; ".join(plan.left_out) + ".")


def _facts(plan: Plan) -> Iterator[str]:
    yield f"preset {plan.preset}; {plan.precision}; devices: {plan.num_devices}" + (
        f", {plan.strategy}" if plan.num_devices > 1 else ""
    )
    yield f"vocabulary {plan.vocab_size.value} ({plan.vocab_size.source})"
    if plan.num_tokens is None:
        yield "tokens of the corpus: not known before it is prepared; give --num-tokens"
    else:
        yield f"tokens of the corpus: {_count(plan.num_tokens.value)} ({plan.num_tokens.source})"


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=0)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    return table


def _titled(title: str, table: Table, note: str = "") -> Group:
    return Group(Text(title, style="bold"), table, *([Text(note)] if note else []))


def _parameters(plan: Plan) -> Group:
    table = _table("", "embedding", "blocks", "projection", "others", "total")
    for name, of in (("denoiser", plan.denoiser), ("autoregressive", plan.baseline)):
        table.add_row(name, *map(_count, (of.embedding, of.blocks, of.projection, of.outer, of.total)))
    return _titled("Parameters", table)


def _compute(plan: Plan) -> Group:
    table = _table("stage", "models", "steps", "tokens", "FLOPs per step", "FLOPs")
    for work in plan.works:
        per_step = "" if work.flops_per_step is None else f"{work.flops_per_step:.2e}"
        steps = "" if work.num_steps is None else str(work.num_steps)
        table.add_row(work.stage, str(work.num_models), steps, _count(work.num_tokens), per_step, f"{work.flops:.2e}")
    total = sum(work.flops * work.num_models for work in plan.works)
    table.add_section()
    table.add_row("all", "", "", "", "", f"{total:.2e}")
    return _titled(
        "Compute: FLOPs of matrix products, two for a multiply-add",
        table,
        "Tokens and FLOPs are of one model of the stage; those of all count every model.",
    )


def _memory(plan: Plan) -> Group:
    memories = [load.memory for load in plan.loads]
    parts = [field.name for field in fields(Memory) if any(getattr(memory, field.name) for memory in memories)]
    unit = _unit(BYTES, max(memory.total for memory in memories))
    table = _table("stage", "n", *(SHORT.get(part, part) for part in parts), "all")
    for load in plan.loads:
        amounts = [*(getattr(load.memory, part) for part in parts), load.memory.total]
        cells = [_amount(amount / BYTES[unit]) if amount else "" for amount in amounts]
        table.add_row(load.stage, str(load.num_sequences), *cells)
    return _titled(
        f"Memory of a device, {unit}, to about a quarter: halfstep fit-batch measures it",
        table,
        "n: sequences at once; teacher: of a round, or an evaluation's scorer.",
    )


def _fits(plan: Plan) -> Group:
    table = _table("stage", *(gpu.name for gpu in GPUS))
    for load in plan.loads:
        cells = ["no" if answer is None else "yes" if not answer else _short(answer) for answer in load.fits.values()]
        table.add_row(load.stage, *cells)
    return _titled(
        f"Does it fit {100 * USABLE_SHARE:.0f} % of the memory? If not, what does",
        table,
        "acc N: the same batch with num_accumulation_steps=N; batch N: batch_size=N.",
    )


def _short(override: str) -> str:
    key, _, value = override.partition("=")
    return f"{'acc' if key.endswith('num_accumulation_steps') else 'batch'} {value}"


def _time(plan: Plan, mfu: float) -> Group:
    rows: dict[str, list[float]] = {}
    for work in plan.works:
        name = "distill, all" if work.stage.startswith("distill@") else work.stage
        seconds = [work.num_models * work.seconds(gpu, mfu) for gpu in GPUS]
        rows[name] = [a + b for a, b in zip(rows.get(name, [0.0] * len(GPUS)), seconds, strict=True)]
    totals = [sum(column) for column in zip(*rows.values(), strict=True)]
    unit = _unit(SECONDS, max(totals))
    devices = "one of them" if plan.num_devices == 1 else f"{plan.num_devices} of them"
    table = _table("stage", *(gpu.name for gpu in GPUS))
    for name, seconds in rows.items():
        table.add_row(name, *(_amount(amount / SECONDS[unit]) for amount in seconds))
    table.add_section()
    table.add_row("all", *(_amount(amount / SECONDS[unit]) for amount in totals))
    return _titled(
        f"Time at {100 * mfu:g} % of the peak in bf16, on {devices}: {unit}, all models",
        table,
        "sample@ar: every token takes reading all weights and the cache from memory."
        + (
            "\nOf sample and evaluate devices take whole batches in turn; the busiest counts."
            if plan.num_devices > 1
            else ""
        ),
    )


def _disk(plan: Plan) -> Group:
    disk = plan.disk
    unit = _unit(BYTES, disk.total)
    table = _table("", unit, "")
    table.columns[2].justify = "left"
    rows = (
        (disk.tokens, "data/tokens", "packed tokens"),
        (disk.models, "models", "weights"),
        (disk.states, "states", "of each student, from which the next round goes on"),
        (disk.samples, "samples", "before compression"),
        (disk.checkpoints, "checkpoints", "of the stage under way, and the one being written"),
        (disk.cache, "DVC's cache", "the first four once more; nothing where DVC can link"),
        (disk.tracking, "MLflow", "models, with tracking.log_models"),
    )
    for amount, name, what in rows:
        table.add_row(name, "?" if amount is None else _amount(amount / BYTES[unit]), " " + what)
    table.add_section()
    table.add_row("all", _amount(disk.total / BYTES[unit]), " and the tokens" if disk.tokens is None else "")
    return _titled("Disk", table)


def _unit(units: dict[str, float] | dict[str, int], most: float) -> str:
    """The largest unit of which there is one at least; else the smallest."""
    return next((name for name, size in units.items() if most >= size), list(units)[-1])


def _count(number: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return f"{number:.0f}"


def _amount(number: float) -> str:
    """Three digits, and no more than two behind the point."""
    if number >= 99.95:
        return f"{number:.0f}"
    if number >= 9.995:
        return f"{number:.1f}"
    return f"{number:.2f}" if number >= 0.005 or number == 0 else "<0.01"
