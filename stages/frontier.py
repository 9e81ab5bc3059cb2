"""Stage `frontier@m`: what few evaluations buy, by every sampler and temperature."""

from pathlib import Path
from typing import Annotated

import typer

from halfstep.run import console


def main(
    model_name: Annotated[str, typer.Argument(metavar="MODEL", help="ar, ar-1, 0, 1, ...")],
    model_path: Annotated[Path | None, typer.Option("--model", help="Model, read (models/MODEL).")] = None,
    frontier_path: Annotated[Path | None, typer.Option("--frontier", help="Written (frontier/MODEL).")] = None,
    params_path: Annotated[Path, typer.Option("--params", help="Composed parameters, read.")] = Path("params.yaml"),
    tokens_path: Annotated[Path, typer.Option("--tokens", help="Packed tokens, read.")] = Path("data/tokens"),
    teacher_path: Annotated[
        Path, typer.Option("--teacher", help="First teacher, of which config.json is read.")
    ] = Path("models/0"),
) -> None:
    """Draw samples of a model in every way that `frontier` names, and measure what each costs and is worth.

    Reads the parameters, the model, the first teacher's depth, the validation tokens and the scorer; writes rows.csv, a
    row for each way to draw and temperature, and samples.csv, what every sample scored. Killed, it goes on after the
    last batch.
    """
    from halfstep.evaluation.frontier import measure_model
    from halfstep.run.device import set_num_threads
    from halfstep.run.launch import enter
    from halfstep.settings import load_params
    from halfstep.settings.graph import check_model_name

    params = load_params(params_path)
    check_model_name(model_name)
    enter(params.launch, params.runtime)
    set_num_threads(params.runtime.num_threads)
    measure_model(
        model_name,
        params,
        model_path=model_path or Path("models") / model_name,
        teacher_path=teacher_path,
        frontier_path=frontier_path or Path("frontier") / model_name,
        tokens_path=tokens_path,
    )


if __name__ == "__main__":
    console.run(main)
