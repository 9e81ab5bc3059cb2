"""Stage `evaluate@m`: what one model is worth."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halfstep import console

if TYPE_CHECKING:
    from halfstep.settings import Params

STEPS_COLUMNS = ("generative_perplexity", "entropy", "mauve")


def main(
    model_name: Annotated[str, typer.Argument(metavar="MODEL", help="ar, 0, 1, ...")],
    model_path: Annotated[Path | None, typer.Option("--model", help="Model, read [models/MODEL].")] = None,
    samples_path: Annotated[Path | None, typer.Option("--samples", help="Samples, read [samples/MODEL].")] = None,
    params_path: Annotated[Path, typer.Option("--params", help="Composed parameters, read.")] = Path("params.yaml"),
    tokens_path: Annotated[Path, typer.Option("--tokens", help="Packed tokens, read.")] = Path("data/tokens"),
    cloze_path: Annotated[Path, typer.Option("--cloze", help="Cloze passages, read.")] = Path("data/cloze.jsonl"),
    metrics_path: Annotated[
        Path | None, typer.Option("--metrics", help="Metrics, written [metrics/MODEL.json].")
    ] = None,
    csv_path: Annotated[Path | None, typer.Option("--csv-folder", help="Tables, written [metrics/MODEL].")] = None,
) -> None:
    """Measure a model: likelihood of held-out text, cloze accuracy, quality and diversity of its samples.

    Reads the parameters, the model, its samples, the validation tokens, the cloze passages and the scorer
    (evaluate.scorer); writes the metrics, each with its count and standard error, and steps.csv, one row per
    number of denoising steps.
    """
    from halfstep.data.tokenizer import load_tokenizer
    from halfstep.data.tokens import load_tokens
    from halfstep.device import autocast, select_device, select_precision, set_num_threads
    from halfstep.evaluation.estimates import mean_estimate
    from halfstep.evaluation.generative_perplexity import sample_quality
    from halfstep.evaluation.mauve import mauve_score
    from halfstep.evaluation.sample_table import pair_sample_sets, read_sample_sets
    from halfstep.evaluation.scorer import features, load_scorer, to_scorer_ids
    from halfstep.files import write_json
    from halfstep.model import Denoiser
    from halfstep.model.autoregressive import load_autoregressive
    from halfstep.settings import BASELINE, load_params
    from halfstep.stage_times import record_stage

    params = load_params(params_path)
    settings = params.evaluate
    model_path = model_path or Path("models") / model_name
    samples_path = samples_path or Path("samples") / model_name
    metrics_path = metrics_path or Path(f"metrics/{model_name}.json")
    csv_path = csv_path or Path("metrics") / model_name
    is_baseline = model_name == BASELINE
    set_num_threads(params.runtime.num_threads)
    device = select_device(params.runtime.device)
    tokenizer = load_tokenizer(model_path)
    valid_tokens = load_tokens(tokens_path / "valid.npy")
    held_out = valid_tokens[: settings.num_valid_sequences]
    sample_sets = pair_sample_sets(
        read_sample_sets(samples_path / "unconditional.parquet"),
        read_sample_sets(samples_path / "continuations.parquet"),
        by_num_steps=not is_baseline,
    )
    model = load_autoregressive(model_path) if is_baseline else Denoiser.from_pretrained(model_path)
    model.to(device)
    scorer = load_scorer(_scorer_source(settings.scorer), settings.scorer_revision, device)

    def features_of(sequences: list[list[int]]) -> Any:
        ids, _ = to_scorer_ids(sequences, tokenizer, scorer)
        return features(scorer.model, ids, batch_size=settings.batch_size, max_length=scorer.max_length).numpy()

    with autocast(device, select_precision(params.runtime.precision, device)):
        likelihood = _likelihood(model, held_out, is_baseline, params, device)
        cloze = _cloze(model, tokenizer, cloze_path, is_baseline, params, device)
        data = sample_quality(held_out.tolist(), tokenizer, scorer, batch_size=settings.batch_size)

        _, first = sample_sets[0]
        prefix_rows = sorted(set(first.prefix_rows))
        references = features_of(valid_tokens[prefix_rows, : len(first.token_ids[0])].tolist())
        mauve_seeds = range(params.seed, params.seed + settings.mauve_num_seeds)
        entries = []
        for unconditional, continuations in sample_sets:
            quality = sample_quality(unconditional.token_ids, tokenizer, scorer, batch_size=settings.batch_size)
            mauve = mauve_score(
                references,
                features_of(continuations.token_ids),
                scaling_factor=settings.mauve_scaling_factor,
                num_buckets=settings.mauve_num_buckets,
                seeds=mauve_seeds,
            )
            entry = {
                "num_steps": unconditional.num_steps,
                "nfe": mean_estimate(unconditional.nfe, "1", name="nfe").as_dict(),
                "generative_perplexity": quality.generative_perplexity.as_dict(),
                "entropy": quality.entropy.as_dict(),
                "mauve": mauve and mauve.as_dict(),
                "num_truncated": quality.num_truncated,
            }
            entries.append(entry)
            console.console.print(_line(model_name, entry), markup=False, soft_wrap=True)

    write_json(
        metrics_path,
        {
            "model": model_name,
            "kind": "autoregressive" if is_baseline else "denoiser",
            "round_index": None if is_baseline else int(model_name),
            "seed": params.seed,
            "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
            "validation": {
                "nll_per_token": likelihood.nll_per_token.as_dict(),
                "perplexity": likelihood.perplexity.as_dict(),
                "is_bound": likelihood.is_bound,
            },
            "loss_by_time": likelihood.by_time and [bucket.as_dict() for bucket in likelihood.by_time],
            "cloze": cloze,
            "samples": entries,
            "scorer": {
                "name": settings.scorer,
                "revision": settings.scorer_revision,
                "retokenized": data.is_retokenized,
            },
            "mauve_settings": {
                "features": "the scorer's last hidden state at the last token of prefix and continuation",
                "scaling_factor": settings.mauve_scaling_factor,
                "num_buckets": settings.mauve_num_buckets,
                "seeds": list(mauve_seeds),
                "num_references": len(prefix_rows),
                "num_continuations": len(first.token_ids),
            },
            "data": {
                "generative_perplexity": data.generative_perplexity.as_dict(),
                "entropy": data.entropy.as_dict(),
            },
        },
    )
    _write_steps(csv_path / "steps.csv", entries)
    record_stage(f"evaluate@{model_name}", metrics_path, device)


def _scorer_source(scorer: str) -> str:
    """The scorer's folder, or its name where there is none.

    DVC's queue runs in a copy of the workspace, in which models/ar is built: a folder here comes before one
    of the same name in the project.
    """
    from halfstep.files import local_or_hub

    return scorer if Path(scorer).is_dir() else local_or_hub(scorer)


def _likelihood(model: Any, held_out: Any, is_baseline: bool, params: "Params", device: Any) -> Any:
    from halfstep.diffusion.schedule import LogLinearSchedule
    from halfstep.evaluation.likelihood import validation_nelbo, validation_nll

    settings = params.evaluate
    if is_baseline:
        return validation_nll(model, held_out, batch_size=settings.batch_size)
    return validation_nelbo(
        model.logits_at,
        held_out,
        schedule=LogLinearSchedule(params.noise.epsilon),
        min_time=params.pretrain.min_time,
        mask_token_id=model.config.mask_token_id,
        num_draws=settings.num_nelbo_draws,
        batch_size=settings.batch_size,
        seed=params.seed,
        device=device,
    )


def _cloze(
    model: Any, tokenizer: Any, cloze_path: Path, is_baseline: bool, params: "Params", device: Any
) -> dict[str, Any] | None:
    from halfstep.evaluation.cloze import load_passages, run_cloze

    settings = params.evaluate
    passages = load_passages(cloze_path, settings.num_cloze_passages)
    if not passages:
        return None
    if is_baseline:
        from halfstep.evaluation.cloze_autoregressive import AutoregressiveLM

        lm = AutoregressiveLM(model, tokenizer, batch_size=settings.batch_size)
    else:
        from halfstep.evaluation.cloze_denoiser import DenoiserLM

        lm = DenoiserLM(
            model.logits_at,
            tokenizer,
            max_length=model.config.length,
            mask_token_id=model.config.mask_token_id,
            num_maskings=settings.num_cloze_maskings,
            batch_size=settings.batch_size,
            seed=params.seed,
            device=device,
        )
    result = run_cloze(lm, passages)
    assert result is not None
    return {
        "accuracy": result.accuracy.as_dict(),
        "perplexity": result.perplexity.as_dict(),
        "num_truncated": lm.num_truncated,
    }


def _line(model_name: str, entry: dict[str, Any]) -> str:
    def show(key: str) -> str:
        if entry[key] is None:
            return f"{key} -"
        error = entry[key]["standard_error"]
        return f"{key} {entry[key]['value']:.4g}" + (f" ± {error:.2g}" if error is not None else "")

    return f"model {model_name}, {entry['num_steps']} steps: " + ", ".join(map(show, ("nfe", *STEPS_COLUMNS)))


def _write_steps(path: Path, entries: list[dict[str, Any]]) -> None:
    import csv

    from halfstep.files import atomic_path

    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        errors = [[name, f"{name}_standard_error"] for name in STEPS_COLUMNS]
        writer.writerow(["num_steps", "nfe", *(column for pair in errors for column in pair)])
        for entry in entries:
            row = [entry["num_steps"], entry["nfe"]["value"]]
            for name in STEPS_COLUMNS:
                estimate = entry[name] or {}
                row += [estimate.get("value"), estimate.get("standard_error")]
            writer.writerow(row)


if __name__ == "__main__":
    console.run(main)
