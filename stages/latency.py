"""Stage `latency`: how fast both kinds of models write."""

from pathlib import Path
from typing import Annotated

import typer

from halfstep.run import console


def main(
    params_path: Annotated[Path, typer.Option("--params", help="Composed parameters, read.")] = Path("params.yaml"),
    teacher_path: Annotated[
        Path, typer.Option("--teacher", help="First teacher, of which config.json is read.")
    ] = Path("models/0"),
    metrics_path: Annotated[Path, typer.Option("--metrics", help="Written.")] = Path("metrics/latency.json"),
) -> None:
    """Time a denoiser with several samplers against GPT-2 of the baseline's size with a KV cache.

    Reads the parameters and the first teacher's sizes; writes seconds, spread and tokens per second. The weights are
    random: an evaluation takes the same time, but a sampler that goes by what is predicted takes the most steps.
    """
    import torch

    from halfstep.evaluation.latency import time_generation
    from halfstep.model.gpt2 import new_gpt2
    from halfstep.model.opening import new_as
    from halfstep.run.device import autocast, select_device, select_precision, set_num_threads
    from halfstep.run.files import write_json
    from halfstep.run.stage_times import record_stage
    from halfstep.samplers.sampler import samplers_of
    from halfstep.settings import load_params

    params = load_params(params_path)
    settings = params.latency
    samplers = samplers_of(settings.samplers)
    set_num_threads(params.runtime.num_threads)
    device = select_device(params.runtime.device)
    precision = select_precision(params.runtime.precision, device)
    length = settings.length or params.data.context_length
    torch.manual_seed(params.seed)
    denoiser = new_as(teacher_path)
    autoregressive = new_gpt2(vocab_size=denoiser.config.num_tokens, length=length, **params.model.of_baseline)
    with autocast(device, precision):
        times = time_generation(
            denoiser.to(device),
            autoregressive.eval().to(device),
            samplers=samplers,
            batch_size=settings.batch_size,
            length=length,
            mask_token_id=denoiser.config.mask_token_id,
            num_warmups=settings.num_warmups,
            num_repeats=settings.num_repeats,
            device=device,
        )
    write_json(
        metrics_path,
        {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "num_threads": torch.get_num_threads(),
            "dtype": precision,
            "torch": torch.__version__,
            "weights": "random",
            "batch_size": settings.batch_size,
            "length": length,
            "num_parameters": {
                "denoiser": sum(parameter.numel() for parameter in denoiser.parameters()),
                "autoregressive": autoregressive.num_parameters(),
            },
            **times,
        },
    )
    _print(times)
    record_stage("latency", metrics_path, device)


def _print(times: dict) -> None:
    from rich.table import Table

    table = Table("", "setting", "evaluations", "seconds", "tokens/s", title="Time per batch, random weights")
    rows = [(f"denoiser, {entry['sampler']}", entry["setting"], entry) for entry in times["denoiser"]]
    for name, setting, entry in [*rows, ("autoregressive, KV cache", "", times["autoregressive"])]:
        seconds = f"{entry['seconds']['value']:.4g} ({entry['seconds_min']:.4g} to {entry['seconds_max']:.4g})"
        table.add_row(name, setting, f"{entry['nfe']:.1f}", seconds, f"{entry['tokens_per_second']:.0f}")
    console.console.print(table)


if __name__ == "__main__":
    console.run(main)
