"""Stage `report`: figures, one page and the summary, from what the other stages wrote."""

from pathlib import Path
from typing import Annotated

import typer

from halfstep.run import console

NUM_UNCONDITIONAL = 2
NUM_CONTINUATIONS = 2


def main(
    params_path: Annotated[Path, typer.Option("--params", help="Composed parameters, read.")] = Path("params.yaml"),
    metrics_path: Annotated[Path, typer.Option("--metrics", help="Metrics, read.")] = Path("metrics"),
    curves_path: Annotated[Path, typer.Option("--curves", help="Training curves, read.")] = Path("curves"),
    samples_path: Annotated[Path, typer.Option("--samples", help="Samples, read.")] = Path("samples"),
    tokens_path: Annotated[Path, typer.Option("--tokens", help="Packed tokens' manifest, read.")] = Path("data/tokens"),
    tokenizer_path: Annotated[Path, typer.Option("--tokenizer", help="Tokenizer, read.")] = Path("data/tokenizer"),
    reports_path: Annotated[Path, typer.Option("--reports", help="Written.")] = Path("reports"),
) -> None:
    """Write the report of a pipeline run: index.html, README.md, figures/, plots/, steps.csv and summary.json."""
    from halfstep.data.tokenizer import load_tokenizer
    from halfstep.evaluation.sample_metrics import paired_perplexity_ratio
    from halfstep.report.headline import compare
    from halfstep.report.page import write_report
    from halfstep.report.results import load_curves, load_latency, load_metrics, load_stage_times
    from halfstep.report.samples import load_samples, tokens_together
    from halfstep.settings import load_params
    from halfstep.settings.graph import BASELINE

    params = load_params(params_path)
    models = sorted(params.models, key=lambda model: model == BASELINE)
    metrics = load_metrics(metrics_path, params.models)
    comparison = compare(metrics)
    paired = None
    if comparison is not None:
        paired = paired_perplexity_ratio(
            metrics_path / str(comparison.round_index) / "samples.csv",
            metrics_path / "0" / "samples.csv",
            comparison.student.num_steps,
            num_resamples=params.evaluate.num_bootstrap_resamples,
            seed=params.seed,
        )
    write_report(
        reports_path,
        metrics=metrics,
        latencies=load_latency(metrics_path / "latency.json"),
        curves=load_curves(curves_path, params.models),
        samples=load_samples(
            samples_path,
            models,
            num_unconditional=NUM_UNCONDITIONAL,
            num_continuations=NUM_CONTINUATIONS,
            decode=load_tokenizer(tokenizer_path).decode,
        ),
        together=tokens_together(samples_path, models[0]),
        stages=load_stage_times(
            params.models,
            tokens_path=tokens_path,
            curves_path=curves_path,
            samples_path=samples_path,
            metrics_path=metrics_path,
        ),
        params_text=params_path.read_text(encoding="utf-8"),
        distance=params.distill.distance,
        preset=params.preset,
        paired_ratio=paired,
    )
    console.console.print(f"report: {reports_path / 'index.html'}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    console.run(main)
