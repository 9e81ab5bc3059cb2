"""Stage `track`: everything that the pipeline made, shown in MLflow."""

from pathlib import Path
from typing import Annotated

import typer

from halfstep.run import console


def main(
    root: Annotated[Path, typer.Option(help="Folder of the pipeline's files; mlflow.json is written.")] = Path(),
) -> None:
    """Make MLflow complete: every run, curve, metric and file, whether its stage ran or DVC restored it."""
    from dataclasses import asdict

    from halfstep.run.files import write_json
    from halfstep.settings import load_params
    from halfstep.tracking.complete import RUNS_FILE, complete

    runs = complete(load_params(root / "params.yaml").model_dump(mode="json"), root)
    write_json(root / RUNS_FILE, asdict(runs))
    if runs.missing:
        console.console.print(runs.missing, style="yellow")
    else:
        console.console.print("MLflow is complete; look at it with: make ui")


if __name__ == "__main__":
    console.run(main)
