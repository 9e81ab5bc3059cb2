"""A plan as tables on a terminal of 80 columns."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from halfstep.planning.devices import GPUS
from halfstep.planning.memory import chosen_parts
from halfstep.planning.networks import Parameters
from halfstep.planning.plan import USABLE_SHARE, Plan

GIB = 2**30
HOUR = 3600.0


def tables(plan: Plan, mfu: float) -> Iterator[RenderableType]:
    """What to print, in order.

    Args:
        plan: what was planned.
        mfu: share of a GPU's peak that the arithmetic is taken to reach.
    """
    yield Text("\n".join(_facts(plan)))
    yield _parameters(plan)
    yield _compute(plan)
    yield _memory(plan)
    yield _fits(plan)
    yield _time(plan, mfu)
    yield _disk(plan)
    yield Text("Not in it: " + "; ".join(plan.left_out) + ".")


def _facts(plan: Plan) -> Iterator[str]:
    yield f"preset {plan.preset}; {plan.precision}; devices: {plan.num_devices}" + (
        f", {plan.strategy}" if plan.num_devices > 1 else ""
    )
    yield f"vocabulary {plan.vocab_size.value} ({plan.vocab_size.source})"
    if plan.num_tokens is None:
        yield "tokens of the corpus: not known before it is prepared; give --num-tokens"
    else:
        yield f"tokens of the corpus: {_count(plan.num_tokens.value)} ({plan.num_tokens.source})"


def _table(title: str, *columns: str, caption: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left", padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    return table


def _parameters(plan: Plan) -> Table:
    table = _table("Parameters", "", "embedding", "blocks", "projection", "others", "total")
    for name, parameters in (("denoiser", plan.denoiser), ("autoregressive", plan.baseline)):
        table.add_row(name, *map(_count, _numbers(parameters)))
    return table


def _numbers(parameters: Parameters) -> list[int]:
    return [parameters.embedding, parameters.blocks, parameters.projection, parameters.outer, parameters.total]


def _compute(plan: Plan) -> Table:
    table = _table(
        "Compute: FLOPs of matrix products, 2 a multiply-add",
        "stage", "models", "steps", "tokens", "FLOPs per step", "FLOPs",
        caption="Tokens that pass through a stage, and FLOPs, are of one model.",
    )  # fmt: skip
    for work in plan.works:
        per_step = "" if work.flops_per_step is None else f"{work.flops_per_step:.3g}"
        steps = "" if work.num_steps is None else str(work.num_steps)
        table.add_row(work.stage, str(work.num_models), steps, _count(work.num_tokens), per_step, f"{work.flops:.3g}")
    total = sum(work.flops * work.num_models for work in plan.works)
    table.add_section()
    table.add_row("all", "", "", "", "", f"{total:.3g}")
    return table


def _memory(plan: Plan) -> Table:
    parts = chosen_parts([load.peak for load in plan.loads])
    table = _table(
        "Memory of a device at the fullest moment, GiB",
        "stage", "at once", *parts, "total", "moment",
        caption="At once: sequences. Gradients are those that are there at that moment. Teacher: of a round; the scorer in"
        " an evaluation.",
    )  # fmt: skip
    for load in plan.loads:
        amounts = [getattr(load.peak.parts, part) for part in parts]
        cells = ["" if not amount else _gib(amount) for amount in amounts]
        table.add_row(load.stage, str(load.num_sequences), *cells, _gib(load.peak.total), load.peak.moment)
    return table


def _fits(plan: Plan) -> Table:
    table = _table(
        f"Does it fit into {100 * USABLE_SHARE:.0f} % of the memory? If not, what does",
        "stage", *(gpu.name for gpu in GPUS),
    )  # fmt: skip
    for load in plan.loads:
        cells = ["no" if answer is None else "yes" if not answer else _short(answer) for answer in load.fits.values()]
        table.add_row(load.stage, *cells)
    table.caption = "acc N: num_accumulation_steps=N of the stage; batch N: its batch_size=N."
    return table


def _short(override: str) -> str:
    key, _, value = override.partition("=")
    return f"{'acc' if key.endswith('num_accumulation_steps') else 'batch'} {value}"


def _time(plan: Plan, mfu: float) -> Table:
    devices = "" if plan.num_devices == 1 else f", {plan.num_devices} of them in training"
    table = _table(
        f"Time at {100 * mfu:.0f} % of the peak in bf16{devices}: hours, all models",
        "stage", *(gpu.name for gpu in GPUS),
        caption="Sampling from the autoregressive model waits for the memory: its weights and cache are read for every"
        " token.",
    )  # fmt: skip
    totals = [0.0] * len(GPUS)
    rounds = [0.0] * len(GPUS)
    rows = {}
    for work in plan.works:
        hours = [work.num_models * work.seconds(gpu, mfu) / HOUR for gpu in GPUS]
        totals = [total + amount for total, amount in zip(totals, hours, strict=True)]
        if work.stage.startswith("distill@"):
            rounds = [total + amount for total, amount in zip(rounds, hours, strict=True)]
            rows["distill, all rounds"] = rounds
        else:
            rows[work.stage] = hours
    for name, hours in rows.items():
        table.add_row(name, *map(_hours, hours))
    table.add_section()
    table.add_row("all", *map(_hours, totals))
    return table


def _disk(plan: Plan) -> Table:
    disk = plan.disk
    table = _table("Disk, GiB", "", "GiB", "what")
    rows = (
        (disk.tokens, "data/tokens", "packed tokens"),
        (disk.models, "models", "weights; of every student the state that the next round goes on from"),
        (disk.samples, "samples", "before compression"),
        (disk.checkpoints, "checkpoints", "of the stage under way, with the one being written"),
        (disk.cache, "DVC's cache", "a second copy of the above but checkpoints; none where DVC can link"),
        (disk.tracking, "MLflow", "models, with tracking.log_models"),
    )
    for amount, name, what in rows:
        table.add_row(name, "?" if amount is None else _gib(amount), Text(what))
    table.add_section()
    table.add_row("all", ("more than " if disk.tokens is None else "") + _gib(disk.total), "")
    return table


def _count(number: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return f"{number:.0f}"


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.3g}" if num_bytes < 1000 * GIB else f"{num_bytes / GIB:.0f}"


def _hours(hours: float) -> str:
    return f"{hours:.2g}" if hours < 10 else f"{hours:.0f}"
