"""Stage `report`: figures, one page and the summary, from what the other stages wrote."""

from pathlib import Path
from typing import Annotated

import typer

from halfstep.run import console


def main(
    folder: Annotated[Path, typer.Option(help="Laid out as the project, read.")] = Path("."),
    reports_path: Annotated[Path, typer.Option("--reports", help="Written.")] = Path("reports"),
) -> None:
    """Write the report of a pipeline run: index.html, figures/, plots/, steps.csv and summary.json."""
    from halfstep.report.experiment import WORKSPACE, load_experiment
    from halfstep.report.page import write_report
    from halfstep.settings import load_params

    load_params(folder / "params.yaml")  # it refuses what a page would not miss
    write_report(reports_path, load_experiment(WORKSPACE, folder))
    console.console.print(f"report: {reports_path / 'index.html'}")


if __name__ == "__main__":
    console.run(main)
