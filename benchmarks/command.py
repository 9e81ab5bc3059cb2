"""`halfstep bench`: what a person asks for, and the table they get."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.options import (
    BatchSize,
    Clock,
    Compile,
    Json,
    Machine,
    Repeats,
    Shape,
    SizeName,
    StepsList,
    TeacherSteps,
    fields_as_options,
)
from halfstep.run.console import console
from halfstep.run.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    help="Measure speed and memory, the published computation beside ours, in one process.",
)

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@app.command()
@fields_as_options
def train(
    size: SizeName = "S1",
    shape: Shape = Shape(),
    batch_size: BatchSize = None,
    repeats: Repeats = Repeats(num_repeats=5, num_warmups=1),
    machine: Machine = Machine(),
    clock: Clock = "wall",
    is_compiled: Compile = False,
    json_path: Json = None,
) -> None:
    """Time MDLM's loss with its gradients."""
    run = _Run(size, shape, machine, json_path, batch_size=batch_size, clock=clock, is_compiled=is_compiled)
    run.compare("train", repeats)
    run.finish()


@app.command()
@fields_as_options
def distill(
    size: SizeName = "S1",
    shape: Shape = Shape(),
    batch_size: BatchSize = None,
    teacher_num_steps: TeacherSteps = 16,
    repeats: Repeats = Repeats(num_repeats=5, num_warmups=1),
    machine: Machine = Machine(),
    clock: Clock = "wall",
    is_compiled: Compile = False,
    json_path: Json = None,
) -> None:
    """Time SDTT's loss (two teacher steps, reverse KL) with its gradients."""
    run = _Run(size, shape, machine, json_path, batch_size=batch_size, clock=clock, is_compiled=is_compiled)
    run.compare("distill", repeats, dt=1 / teacher_num_steps)
    run.finish()


@app.command()
@fields_as_options
def sample(
    size: SizeName = "S1",
    num_steps: StepsList = "16,64,128",
    shape: Shape = Shape(),
    batch_size: BatchSize = None,
    repeats: Repeats = Repeats(num_repeats=1, num_warmups=0),
    machine: Machine = Machine(),
    clock: Clock = "wall",
    is_compiled: Compile = False,
    json_path: Json = None,
) -> None:
    """Time a batch of samples in some numbers of denoising steps."""
    run = _Run(size, shape, machine, json_path, batch_size=batch_size, clock=clock, is_compiled=is_compiled)
    for steps in numbers("--num-steps", num_steps):
        run.compare("sample", repeats, num_steps=steps)
    run.finish()


@app.command()
@fields_as_options
def memory(
    size: SizeName = "S1",
    num_steps: StepsList = "4",
    shape: Shape = Shape(),
    batch_size: BatchSize = None,
    teacher_num_steps: TeacherSteps = 16,
    machine: Machine = Machine(),
    json_path: Json = None,
) -> None:
    """Measure the peak memory of every kind of work, each in a process of its own.

    On the CPU it is the most that the process ever had in RAM, everything included: torch itself, the networks.
    """
    run = _Run(size, shape, machine, json_path, batch_size=batch_size)
    run.peak("train")
    run.peak("distill", dt=1 / teacher_num_steps)
    for steps in numbers("--num-steps", num_steps):
        run.peak("sample", num_steps=steps)
    run.finish()


@app.command()
@fields_as_options
def latency(
    size: SizeName = "small",
    num_steps: StepsList = "16,32,64,128,256",
    batch_sizes: Annotated[str, typer.Option(help="Texts at once, such as 1,8,64.")] = "1",
    shape: Shape = Shape(length=1024),
    repeats: Repeats = Repeats(num_repeats=3, num_warmups=1),
    machine: Machine = Machine(),
    json_path: Json = None,
) -> None:
    """Time the denoiser against GPT-2 of the same width and depth with a KV cache; random weights.

    The paper's largest model, 1.3 billion parameters, is --hidden-size 2048 --num-blocks 24 --num-heads 32.
    """
    from benchmarks.latency import time_sizes

    run = _Run(size, shape, machine, json_path)
    for count in numbers("--batch-sizes", batch_sizes):
        with run.autocast():
            run.add(
                time_sizes(
                    run.size,
                    numbers("--num-steps", num_steps),
                    count,
                    num_warmups=repeats.num_warmups,
                    num_repeats=repeats.num_repeats,
                    device=run.device,
                )
            )
    run.finish(title="Time per batch of texts, random weights")


@app.command()
@fields_as_options
def profile(
    work: Annotated[str, typer.Argument(help="train, distill or sample.")],
    size: SizeName = "S1",
    num_steps: Annotated[int, typer.Option(min=1, help="Denoising steps of sample.")] = 64,
    shape: Shape = Shape(),
    batch_size: BatchSize = None,
    teacher_num_steps: TeacherSteps = 16,
    machine: Machine = Machine(),
    json_path: Json = None,
) -> None:
    """Show which of torch's operators the time of ours goes to."""
    from benchmarks.measure import operator_shares
    from benchmarks.work import WORKS, build

    if work not in WORKS:
        raise UserError(f"work is {work!r}: {', '.join(WORKS)} are known")
    run = _Run(size, shape, machine, json_path, batch_size=batch_size)
    dt = 1 / teacher_num_steps
    built = build(work, run.size, num_steps=num_steps, dt=dt, device=run.device)
    with run.autocast():
        operators = operator_shares(built.ours, run.device)
    for operator in operators:
        run.add({**_describe(work, num_steps, dt), **operator})
    run.finish(title=f"Time of {work} by operator, one call")


@app.command()
@fields_as_options
def scaling(
    size: SizeName = "S1",
    shape: Shape = Shape(),
    batch_size: BatchSize = None,
    axes: Annotated[str, typer.Option(help="Which of them.")] = "num_steps,vocab_size,length,batch_size",
    plot_path: Annotated[Path | None, typer.Option("--plot", help="Draw the curves there (PNG).")] = None,
    repeats: Repeats = Repeats(num_repeats=3, num_warmups=1),
    machine: Machine = Machine(),
    clock: Clock = "wall",
    json_path: Json = None,
) -> None:
    """Measure ours over denoising steps, vocabulary, length and batch, one at a time: seconds and peak memory."""
    from benchmarks.scaling import AXES, curves, draw

    chosen = axes.split(",")
    if not set(chosen) <= set(AXES):
        raise UserError(f"--axes is {axes!r}: {', '.join(AXES)} are known")
    run = _Run(size, shape, machine, json_path, batch_size=batch_size, clock=clock)
    for point in curves(
        run.size,
        chosen,
        num_warmups=repeats.num_warmups,
        num_repeats=repeats.num_repeats,
        device=run.device,
        precision=run.precision,
        clock=run.clock,
    ):
        run.add(point)
    run.finish(title="Scaling of ours")
    if plot_path is not None:
        draw(run.results["cases"], run.size, plot_path)


@app.command()
def data(
    paths: Annotated[list[str], typer.Argument(help=".txt, .jsonl or .parquet files, folders or globs.")],
    tokenizer: Annotated[str, typer.Option(help="A folder or a hub id.")] = "gpt2",
    split_on_blank_lines: Annotated[int, typer.Option(min=0, help="Of .txt files; 0: a file is one document.")] = 1,
    num_workers: Annotated[int | None, typer.Option(min=1, help="Processes (all cores).")] = None,
    context_length: Annotated[int, typer.Option(min=3)] = 1024,
    num_repeats: Annotated[int, typer.Option(min=1)] = 2,
    json_path: Json = None,
) -> None:
    """Time tokenizing text: `datasets.map` beside `prepare`."""
    import json
    import subprocess
    import sys

    from rich.console import Console
    from rich.table import Table

    from halfstep.data.packing import num_cores
    from halfstep.run.files import write_json

    num_processes = num_workers or num_cores()
    request = {
        "paths": paths,
        "tokenizer_source": tokenizer,
        "split_on_blank_lines": split_on_blank_lines,
        "num_workers": num_processes,
        "context_length": context_length,
        "num_repeats": num_repeats,
    }
    command = [sys.executable, "-m", "benchmarks.data", json.dumps(request)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise typer.Exit(done.returncode)
    results = json.loads(done.stdout.splitlines()[-1])
    megabytes = results["num_bytes"] / 1e6
    title = f"{megabytes:.0f} MB of text, {num_processes} processes, the cheaper of {num_repeats} rounds each"
    table = Table("", "seconds", "tokens/s", "processor seconds", "tokens/s a core", "peak memory", title=title)
    for side in results["sides"]:
        table.add_row(
            side["name"],
            f"{side['seconds']:.1f}",
            f"{side['num_tokens'] / side['seconds']:,.0f}",
            f"{side['processor_seconds']:.1f}",
            f"{side['num_tokens'] / side['processor_seconds']:,.0f}",
            f"{side['peak_bytes'] / 2**20:,.0f} MiB",
        )
    Console().print(table)
    if json_path is not None:
        write_json(json_path, results)


def numbers(option: str, text: str) -> list[int]:
    """Whole numbers above zero, between commas."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) < 1:
        raise UserError(f"{option} is {text!r}: give whole numbers above zero, such as 16,64")
    return values


class _Run:
    """One call of the command: where it computes, and what it has found so far."""

    def __init__(
        self,
        size_name: str,
        shape: Shape,
        machine: Machine,
        json_path: Path | None,
        *,
        batch_size: int | None = None,
        clock: str = "wall",
        is_compiled: bool = False,
    ) -> None:
        import torch

        from benchmarks.measure import environment, matmul_flops_per_second
        from benchmarks.sizes import choose_size
        from halfstep.run.device import select_device, select_precision, set_num_threads

        set_num_threads(machine.num_threads)
        self.device = select_device(machine.device)
        self.precision = select_precision(machine.precision, self.device)
        self.size = choose_size(size_name, {**asdict(shape), "batch_size": batch_size})
        self.json_path = json_path
        if clock not in CLOCKS or (clock == "cpu" and self.device.type != "cpu"):
            raise UserError(f"--clock is {clock!r}: wall, or on the CPU cpu")
        self.clock = CLOCKS[clock]
        self.is_compiled = is_compiled
        self.dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        self.ceiling = matmul_flops_per_second(self.device, self.dtype, self.clock)
        self.results: dict[str, Any] = {
            **environment(self.device, self.precision),
            "weights": "random",
            "clock": clock,
            "compiled": is_compiled,
            "size": {"name": size_name, **self.size.as_dict()},
            "cases": [],
        }

    def autocast(self) -> Any:
        """The precision asked for."""
        from halfstep.run.device import autocast

        return autocast(self.device, self.precision)

    def add(self, case: dict[str, Any]) -> None:
        """Keep a result, and say that it is there."""
        self.results["cases"].append(case)
        for name, rival, ours, ratio, _ in _rows(case):
            beside = f"{rival} against " if rival else ""
            console.print(f"{name}: {beside}{ours}{', ratio ' + ratio if ratio else ''}", soft_wrap=True)

    def compare(self, work: str, repeats: Repeats, *, num_steps: int = 1, dt: float = 1 / 16) -> None:
        """Time one kind of work on both sides."""
        from benchmarks.measure import compare
        from benchmarks.work import build

        built = build(work, self.size, num_steps=num_steps, dt=dt, device=self.device, is_compiled=self.is_compiled)
        with self.autocast():
            times = compare(
                built.plain,
                built.ours,
                num_warmups=repeats.num_warmups,
                num_repeats=repeats.num_repeats,
                device=self.device,
                clock=self.clock,
            )
        self.add({**_describe(work, num_steps, dt), **times, "flops": built.flops})

    def peak(self, work: str, *, num_steps: int = 1, dt: float = 1 / 16) -> None:
        """Measure one kind of work's peak memory on both sides."""
        import torch

        from benchmarks.measure import peak_memory

        case = _describe(work, num_steps, dt)
        for which in ("plain", "ours"):
            case[which] = peak_memory(
                work,
                which,
                self.size.as_dict(),
                num_steps=num_steps,
                dt=dt,
                device=self.device.type,
                precision=self.precision,
                num_threads=torch.get_num_threads(),
            )
        self.add({**case, "ratio": {"median": case["plain"]["peak_bytes"] / case["ours"]["peak_bytes"]}})

    def finish(self, title: str = "The published computation beside ours") -> None:
        """Print the table, write the file."""
        from rich.console import Console

        from benchmarks.measure import matmul_flops_per_second
        from halfstep.run.files import write_json

        # Other work on the machine may have held back the first product more than the cases.
        ceiling = max(self.ceiling, matmul_flops_per_second(self.device, self.dtype, self.clock))
        self.results["matmul_flops_per_second"] = ceiling
        for case in self.results["cases"]:
            if "flops" in case:
                case["mfu"] = case["flops"] / case["ours"]["seconds"]["median"] / ceiling
        Console().print(_table(self.results, title))
        if self.json_path is not None:
            write_json(self.json_path, self.results)


def _describe(work: str, num_steps: int, dt: float) -> dict[str, Any]:
    detail: dict[str, dict[str, Any]] = {"sample": {"num_steps": num_steps}, "distill": {"teacher_dt": dt}}
    return {"work": work, **detail.get(work, {})}


def _rows(case: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """(work, rival, ours, ratio, MFU) as a table has them; latency has a row per number of steps."""
    if case["work"] == "latency":
        name, rival = f"latency, batch {case['batch_size']}", _amount(case["autoregressive"])
        rows = [(f"{name}, {e['num_steps']} steps", rival, _amount(e), f"{e['ratio']:.2f}") for e in case["denoiser"]]
        return [(*row, "") for row in rows]
    if "operator" in case:
        return [(case["operator"], "", f"{100 * case['share']:.1f} %", "", "")]
    shown = ("num_steps", "teacher_dt", "vocab_size", "length", "batch_size")
    name = ", ".join([case["work"], *(f"{key} {case[key]:g}" for key in shown if key in case)])
    rival = _amount(case["plain"]) if "plain" in case else ""
    ratio = f"{case['ratio']['median']:.2f}" if "ratio" in case else ""
    return [(name, rival, _amount(case["ours"]), ratio, f"{100 * case['mfu']:.0f} %" if "mfu" in case else "")]


def _amount(side: dict[str, Any]) -> str:
    amounts = []
    if "seconds" in side:
        low, high = side["seconds"]["quartiles"]
        amounts.append(f"{side['seconds']['median']:.3g} s ({low:.3g} to {high:.3g})")
    if "peak_bytes" in side:
        amounts.append(f"{side['peak_bytes'] / 2**30:.2f} GiB")
    return ", ".join(amounts)


def _table(results: dict[str, Any], title: str) -> Any:
    from rich.table import Table

    where = (
        f"{results['clock']} clock, {results['device']}, {results['num_threads']} threads, {results['precision']},"
        f" torch {results['torch']}; {results['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s in a matrix product;"
        " random weights"
    )
    rival = "autoregressive" if any("autoregressive" in case for case in results["cases"]) else "plain"
    table = Table("work", rival, "ours", "ratio", "MFU", title=title, caption=where)
    for case in results["cases"]:
        for row in _rows(case):
            table.add_row(*row)
    return table
