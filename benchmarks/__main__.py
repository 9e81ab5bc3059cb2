"""Speed and memory: the published computation beside ours, in one process, in turn, with random weights.

python -m benchmarks distill --size S1 --json FILE   (also: train, sample, choose, latency, memory; --help has options)
"""

import argparse
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.latency import time_sizes
from benchmarks.measure import compare, environment, matmul_flops_per_second
from benchmarks.peak import peak_memory
from benchmarks.sizes import Size, choose_size
from benchmarks.work import build
from halfstep.run.device import autocast, select_device, select_precision, set_num_threads
from halfstep.run.errors import UserError
from halfstep.run.files import write_json

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def parser() -> argparse.ArgumentParser:
    """The command line: one subcommand for each kind of work, all with the same options."""
    shared = argparse.ArgumentParser(add_help=False)
    option = shared.add_argument
    option("--size", help="S1, S2, or a model group such as small (S1; latency: small)")
    for field in fields(Size):
        option(f"--{field.name.replace('_', '-')}", type=positive, help="in place of the size's own")
    option("--num-steps", type=positives, help="denoising steps, such as 16,64 (sample 16,64,128; latency 16 to 256)")
    option("--teacher-num-steps", type=positive, default=16, help="of distill: the student takes half (16)")
    option("--batch-sizes", type=positives, default=[1], help="of latency: texts at once, such as 1,8,64 (1)")
    option("--head-layers", type=positive, help="of latency: draw each step's tokens by a joint head of so many layers")
    option("--num-repeats", type=positive, help="rounds that count; a round does each side once (5; sample 1)")
    option("--num-warmups", type=int, default=1, help="rounds before those (1)")
    option("--device", choices=("auto", "cpu", "cuda"), default="auto")
    option("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    option("--num-threads", type=positive, help="CPU threads (all cores)")
    option("--clock", choices=CLOCKS, default="wall", help="cpu: processor seconds, on a machine with other work to do")
    option("--compile", action="store_true", help="torch.compile our networks' blocks")
    option("--json", type=Path, help="write the results there, too")
    main = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    commands = main.add_subparsers(dest="work", required=True)
    commands.add_parser("train", parents=[shared], help="MDLM's loss with its gradients")
    commands.add_parser("distill", parents=[shared], help="SDTT's loss (two teacher steps, reverse KL), its gradients")
    commands.add_parser("sample", parents=[shared], help="a batch of samples in some numbers of denoising steps")
    commands.add_parser("choose", parents=[shared], help="the surest first, against the network alone, 16 steps")
    commands.add_parser("latency", parents=[shared], help="the denoiser against GPT-2 of the same size with a KV cache")
    commands.add_parser("memory", parents=[shared], help="peak memory of all three, each in a process of its own")
    return main


def positive(text: str) -> int:
    """A whole number above zero."""
    if (value := int(text)) < 1:
        raise ValueError
    return value


def positives(text: str) -> list[int]:
    """Whole numbers above zero, between commas."""
    return [positive(part) for part in text.split(",")]


def main() -> None:
    """Run one benchmark, print its table, and write it if asked."""
    command = parser()
    options = command.parse_args()
    try:
        results = measure(options)
    except UserError as error:
        command.error(str(error))
    Console().print(table(results))
    if options.json is not None:
        write_json(options.json, results)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All cases of one kind of work, and what their numbers depend on.

    Raises:
        UserError: there is no such size or device, or processor seconds are asked of an accelerator.
    """
    set_num_threads(options.num_threads)
    device = select_device(options.device)
    if options.clock == "cpu" and device.type != "cpu":
        raise UserError("--clock is 'cpu', which does not measure an accelerator's time: leave it out")
    precision = select_precision(options.precision, device)
    changes = {field.name: getattr(options, field.name) for field in fields(Size)}
    name = options.size or ("small" if options.work == "latency" else "S1")
    if options.work == "latency":
        changes["length"] = changes["length"] or 1024
    size = choose_size(name, changes)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    ceiling = matmul_flops_per_second(device, dtype, CLOCKS[options.clock])
    dt = 1 / options.teacher_num_steps

    def compared(work: str, num_steps: int = 1) -> dict[str, Any]:
        built = build(work, size, num_steps=num_steps, dt=dt, device=device, is_compiled=options.compile)
        times = compare(
            built.plain,
            built.ours,
            num_warmups=options.num_warmups,
            num_repeats=options.num_repeats or (1 if work == "sample" else 5),
            device=device,
            clock=CLOCKS[options.clock],
        )
        mfu = built.flops / times["ours"]["seconds"]["median"] / ceiling
        return {**named(work, num_steps), **times, "flops": built.flops, "mfu": mfu}

    def peaks(work: str, num_steps: int = 1) -> dict[str, Any]:
        asked = {"num_steps": num_steps, "dt": dt, "device": device, "precision": precision}
        sides = {
            side: peak_memory(work, side, size, num_threads=options.num_threads, **asked) for side in ("plain", "ours")
        }
        ratio = sides["plain"]["peak_bytes"] / sides["ours"]["peak_bytes"]
        return {**named(work, num_steps), **sides, "ratio": {"median": ratio}}

    def named(work: str, num_steps: int) -> dict[str, Any]:
        about = {"distill": {"teacher_dt": dt}, "train": {}}.get(work, {"num_steps": num_steps})
        return {"work": work, **about}

    with autocast(device, precision):
        if options.work == "latency":
            cases = [
                case
                for batch_size in options.batch_sizes
                for case in time_sizes(
                    size,
                    options.num_steps or [16, 32, 64, 128, 256],
                    batch_size,
                    num_warmups=options.num_warmups,
                    num_repeats=options.num_repeats or 3,
                    device=device,
                    head_layers=options.head_layers,
                )
            ]
        elif options.work == "memory":
            works = ("train", "distill", "sample")
            cases = [peaks(work, n) for work in works for n in (options.num_steps or [4] if work == "sample" else [1])]
        else:
            counts = options.num_steps or {"sample": [16, 64, 128], "choose": [16]}.get(options.work, [1])
            cases = [compared(options.work, n) for n in counts]
    return {
        **environment(device, precision),
        "clock": options.clock,
        "compiled": options.compile,
        "size": {"name": name, **asdict(size)},
        "matmul_flops_per_second": ceiling,
        "cases": cases,
    }


def table(results: dict[str, Any]) -> Table:
    """The cases, a line each."""
    caption = (
        f"{results['clock']} clock, {results['device']}, {results['num_threads']} threads, {results['precision']},"
        f" torch {results['torch']}; {results['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s in a matrix product;"
        " random weights"
    )
    shown = Table("work", "plain (latency: autoregressive)", "ours", "ratio", "MFU", caption=caption)
    for case in results["cases"]:
        about = [f"{key} {case[key]:g}" for key in ("num_steps", "teacher_dt", "batch_size") if key in case]
        mfu = f"{100 * case['mfu']:.0f} %" if "mfu" in case else ""
        ratio = f"{case['ratio']['median']:.2f}"
        shown.add_row(", ".join([case["work"], *about]), amount(case["plain"]), amount(case["ours"]), ratio, mfu)
    return shown


def amount(side: dict[str, Any]) -> str:
    """The median with its quartiles, or the peak."""
    if "peak_bytes" in side:
        return f"{side['peak_bytes'] / 2**30:.2f} GiB"
    low, high = side["seconds"]["quartiles"]
    return f"{side['seconds']['median']:.3g} s ({low:.3g} to {high:.3g})"


if __name__ == "__main__":
    main()
