"""Stage `track`: everything that the pipeline made, shown in MLflow."""

from pathlib import Path
from typing import Annotated

import typer

from halfstep.run import console


def main(
    params_path: Annotated[Path, typer.Option("--params", help="Composed parameters, read.")] = Path("params.yaml"),
    metrics_path: Annotated[Path, typer.Option("--metrics", help="Metrics, read.")] = Path("metrics"),
    curves_path: Annotated[Path, typer.Option("--curves", help="Training curves, read.")] = Path("curves"),
    samples_path: Annotated[Path, typer.Option("--samples", help="Samples, read.")] = Path("samples"),
    models_path: Annotated[Path, typer.Option("--models", help="Models, read.")] = Path("models"),
    reports_path: Annotated[Path, typer.Option("--reports", help="Report, read.")] = Path("reports"),
    runs_path: Annotated[Path, typer.Option("--runs", help="Where the runs are, written.")] = Path("mlflow.json"),
) -> None:
    """Make MLflow complete: every run, curve, metric and file, whether its stage ran or DVC restored it."""
    from dataclasses import asdict

    from halfstep.run.files import write_json
    from halfstep.settings import load_params
    from halfstep.tracking import complete

    params = load_params(params_path)
    runs = complete(
        params.model_dump(mode="json"),
        metrics_path=metrics_path,
        curves_path=curves_path,
        samples_path=samples_path,
        models_path=models_path,
        reports_path=reports_path,
        params_path=params_path,
    )
    write_json(runs_path, asdict(runs))
    if runs.missing:
        console.console.print(runs.missing, style="yellow", markup=False, soft_wrap=True)
    else:
        console.console.print("MLflow is complete; look at it with: make ui", markup=False)


if __name__ == "__main__":
    console.run(main)
