"""Stage `evaluate@m`: what one model is worth."""

from pathlib import Path
from typing import Annotated

import typer

from halfstep.run import console


def main(
    model_name: Annotated[str, typer.Argument(metavar="MODEL", help="ar, 0, 1, ...")],
    model_path: Annotated[Path | None, typer.Option("--model", help="Model, read (models/MODEL).")] = None,
    samples_path: Annotated[Path | None, typer.Option("--samples", help="Samples, read (samples/MODEL).")] = None,
    params_path: Annotated[Path, typer.Option("--params", help="Composed parameters, read.")] = Path("params.yaml"),
    tokens_path: Annotated[Path, typer.Option("--tokens", help="Packed tokens, read.")] = Path("data/tokens"),
    cloze_path: Annotated[Path, typer.Option("--cloze", help="Cloze passages, read.")] = Path("data/cloze.jsonl"),
    metrics_path: Annotated[
        Path | None, typer.Option("--metrics", help="Metrics, written (metrics/MODEL.json).")
    ] = None,
    csv_path: Annotated[Path | None, typer.Option("--csv-folder", help="Tables, written (metrics/MODEL).")] = None,
) -> None:
    """Measure a model: likelihood of held-out text, cloze accuracy, quality and diversity of its samples.

    Reads the parameters, the model, its samples, the validation tokens, the cloze passages, the scorer
    (evaluate.scorer), and what evaluate.likelihood_on and evaluate.downstream_tasks name; writes what the metrics in
    evaluate.metrics measure, each value with its count and standard error, the same as rows.csv, and samples.csv, one
    row per unconditional sample. Killed, it goes on after the last batch.
    """
    from halfstep.evaluation.measure import measure_model
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
        samples_path=samples_path or Path("samples") / model_name,
        tokens_path=tokens_path,
        cloze_path=cloze_path,
        metrics_path=metrics_path or Path(f"metrics/{model_name}.json"),
        tables_path=csv_path or Path("metrics") / model_name,
    )


if __name__ == "__main__":
    console.run(main)
