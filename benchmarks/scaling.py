"""How ours grows with denoising steps, vocabulary, length and batch."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import peak_memory, spread
from benchmarks.sizes import Size
from benchmarks.work import build
from halfstep.evaluation.latency import synchronizer, time_calls
from halfstep.run.device import autocast

AXES = {
    "num_steps": (8, 16, 32, 64, 128, 256, 512, 1024),
    "vocab_size": (1000, 4000, 16_000, 32_000, 64_000, 128_000),
    "length": (128, 256, 512, 1024, 2048),
    "batch_size": (1, 2, 4, 8, 16, 32),
}


def curves(
    size: Size,
    axes: Iterable[str],
    *,
    num_warmups: int,
    num_repeats: int,
    device: torch.device,
    precision: str,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[dict[str, Any]]:
    """Seconds of one kind of work along each axis, and for the axes of a tensor's shape also its peak memory.

    Denoising steps are measured on sampling, the other axes on a distillation step with teacher steps of 1/16.

    Args:
        size: where the axes cross.
        axes: which of `AXES`.
        num_warmups, num_repeats: calls before those that count, and those.
        device, precision: where and how to compute.
        clock: seconds since some moment.
    Yields:
        cases: work, axis, value, and ours with seconds and peak bytes.
    """
    for axis in axes:
        for value in AXES[axis]:
            is_sampling = axis == "num_steps"
            name = "sample" if is_sampling else "distill"
            here = size if is_sampling else replace(size, **{axis: value})
            options: dict[str, Any] = {"num_steps": value if is_sampling else 1, "dt": 1 / 16}
            work = build(name, here, **options, device=device)
            with autocast(device, precision):
                seconds = time_calls(
                    {"ours": work.ours},
                    num_warmups=num_warmups,
                    num_repeats=num_repeats,
                    synchronize=synchronizer(device),
                    clock=clock,
                )["ours"]
            ours: dict[str, Any] = {"seconds": spread(seconds)}
            if not is_sampling:
                threads = torch.get_num_threads()
                where = {"device": device.type, "precision": precision, "num_threads": threads}
                ours |= peak_memory(name, "ours", here.as_dict(), **options, **where)
            yield {"work": name, "axis": axis, axis: value, "ours": ours}


def draw(cases: Sequence[dict[str, Any]], size: Size, path: Path) -> None:
    """Draw the curves, one panel per axis, seconds above and memory below, into a PNG.

    Beside the memory stands that of a single [batch, length, vocab] tensor in float32, of which the published
    computation holds several.

    Args:
        cases: of `curves`.
        size: where the axes cross.
        path: the file.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

    axes = list(dict.fromkeys(case["axis"] for case in cases))
    figure, panels = pyplot.subplots(2, len(axes), figsize=(3.2 * len(axes), 5.2), layout="constrained", squeeze=False)
    for (upper, lower), axis in zip(panels.T, axes, strict=True):
        points = [case for case in cases if case["axis"] == axis]
        x = [case[axis] for case in points]
        upper.plot(x, [case["ours"]["seconds"]["median"] for case in points], "o-")
        upper.set(xscale="log", yscale="log", title=f"{points[0]['work']}: {axis}")
        upper.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        upper.yaxis.set_major_formatter("{x:g}")
        upper.yaxis.set_minor_locator(NullLocator())
        measured = [case for case in points if "peak_bytes" in case["ours"]]
        if measured:
            # Beyond the networks, which grow with the vocabulary whatever is done with them.
            extra = [(case["ours"]["peak_bytes"] - case["ours"]["before_bytes"]) / 2**30 for case in measured]
            lower.plot(x, [case["ours"]["peak_bytes"] / 2**30 for case in measured], "o-", label="in all")
            lower.plot(x, extra, "s--", label="beyond the networks")
            one = [4 * math.prod(_shape(replace(size, **{axis: value}))) / 2**30 for value in x]
            lower.plot(x, one, ":", color="grey", label="one [batch, length, vocab]")
            lower.set(xscale="log", ylim=(0, None))
        else:
            lower.set_axis_off()
        for panel in (upper, lower):
            panel.xaxis.set_major_locator(FixedLocator(x))
            panel.xaxis.set_minor_locator(NullLocator())
            panel.set_xticks(x, [f"{value // 1000}k" if value >= 4000 else f"{value}" for value in x], fontsize="small")
    panels[0, 0].set_ylabel("seconds")
    handles, labels = panels[1, -1].get_legend_handles_labels()
    if handles:
        panels[1, -1].set_ylabel("GiB")
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _shape(size: Size) -> tuple[int, int, int]:
    return size.batch_size, size.length, size.vocab_size
