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
    (evaluate.scorer), and what evaluate.likelihood_on and evaluate.downstream_tasks name; writes the metrics, each
    with its count and standard error, steps.csv, one row per number of denoising steps, and samples.csv, one row per
    unconditional sample. Killed, it goes on after the last batch.
    """
    from halfstep.data.inputs import find_input
    from halfstep.data.manifest import MANIFEST_FILE
    from halfstep.data.texts import pack_all
    from halfstep.data.tokenizer import check_vocabulary, load_tokenizer
    from halfstep.data.tokens import load_tokens, token_pieces
    from halfstep.diffusion.schedule import LogLinearSchedule
    from halfstep.evaluation.diversity import copied_share
    from halfstep.evaluation.likelihood import decoded_bytes
    from halfstep.evaluation.lm_eval.cloze import load_passages, run_cloze
    from halfstep.evaluation.lm_eval.downstream import run_downstream
    from halfstep.evaluation.sample_metrics import SampleJudge, write_samples_table
    from halfstep.evaluation.scorer import load_scorer, text_features
    from halfstep.evaluation.steps_table import describe_entry, write_steps
    from halfstep.evaluation.subject import AutoregressiveSubject, DenoiserSubject, Subject
    from halfstep.metrics.estimate import FEWEST_MAUVE_TEXTS
    from halfstep.model.denoiser import Denoiser
    from halfstep.model.gpt2 import load_autoregressive
    from halfstep.run import ranks
    from halfstep.run.device import autocast, select_device, select_precision, set_num_threads
    from halfstep.run.files import local_or_hub, resolve_user_path, write_json
    from halfstep.run.inputs import inputs_of
    from halfstep.run.launch import enter
    from halfstep.run.stage_times import record_stage
    from halfstep.run.work import open_work
    from halfstep.samples.table import pair_sample_sets, read_sample_sets
    from halfstep.settings import load_params
    from halfstep.settings.graph import BASELINE, check_model_name, scores_by_baseline

    params = load_params(params_path)
    settings = params.evaluate
    check_model_name(model_name)
    enter(params.launch, params.runtime)
    model_path = model_path or Path("models") / model_name
    samples_path = samples_path or Path("samples") / model_name
    metrics_path = metrics_path or Path(f"metrics/{model_name}.json")
    csv_path = csv_path or Path("metrics") / model_name
    is_baseline = model_name == BASELINE
    set_num_threads(params.runtime.num_threads)
    device = select_device(params.runtime.device)
    tokenizer = load_tokenizer(model_path)
    valid_tokens = load_tokens(tokens_path, "valid")
    held_out = valid_tokens[: settings.num_valid_sequences]
    other_texts = pack_all(
        settings.likelihood_on,
        tokenizer,
        context_length=valid_tokens.shape[1],
        num_sequences=settings.num_likelihood_sequences,
    )
    sample_sets = pair_sample_sets(
        read_sample_sets(samples_path / "unconditional.parquet"),
        read_sample_sets(samples_path / "continuations.parquet"),
        by_num_steps=not is_baseline,
    )
    passages = load_passages(cloze_path, settings.num_cloze_passages)
    # DVC's queue runs in a copy of the workspace, in which models/ar is built; all else is taken from the project.
    scorer_source = settings.scorer if scores_by_baseline(settings.scorer) else local_or_hub(settings.scorer)
    files = [model_path, samples_path, tokens_path / MANIFEST_FILE, cloze_path]
    # Where it is missing, loading says so.
    files += [Path(scorer_source)] if scores_by_baseline(settings.scorer) and Path(scorer_source).is_dir() else []
    values = params.deciding("seed", "runtime", "noise", "evaluate") | {"min_time": params.pretrain.min_time}
    inputs = inputs_of(params, "evaluate", find_input)
    with open_work(f"evaluate-{model_name}", values, files, inputs) as work, work.journal() as journal:
        subject: Subject
        if is_baseline:
            model = load_autoregressive(model_path).to(device)
            subject = AutoregressiveSubject(model, tokenizer, settings.batch_size, journal.memory_of("model"))
        else:
            model = Denoiser.from_pretrained(model_path).to(device)
            subject = DenoiserSubject(
                model,
                tokenizer,
                schedule=LogLinearSchedule(params.noise.epsilon),
                min_time=params.pretrain.min_time,
                num_nelbo_draws=settings.num_nelbo_draws,
                batch_size=settings.batch_size,
                seed=params.seed,
                device=device,
                remember=journal.memory_of("model"),
            )
        check_vocabulary(
            tokenizer,
            model_path,
            vocab_size=model.config.vocab_size,
            mask_token_id=None if is_baseline else model.config.mask_token_id,
        )
        scorer = load_scorer(scorer_source, settings.scorer_revision, device, journal.memory_of("scorer"))

        copied = copied_share(
            [unconditional.token_ids for unconditional, _ in sample_sets],
            token_pieces(load_tokens(tokens_path, "train")),
            settings.longest_copy_tokens,
        )
        _, first = sample_sets[0]
        prefix_rows = sorted(set(first.prefix_rows))
        mauve_seeds = range(params.seed, params.seed + settings.mauve_num_seeds)

        with autocast(device, select_precision(params.runtime.precision, device)):
            likelihood = subject.likelihood(held_out)
            cloze = run_cloze(subject.lm(settings.num_cloze_maskings), passages)
            likelihood_on = {}
            for name, tokens in other_texts.items():
                likelihood_on[name] = subject.likelihood(tokens).as_dict(decoded_bytes(tokenizer, tokens))
            task_folder = settings.downstream_include_path
            downstream = run_downstream(
                subject.lm(settings.num_downstream_draws),
                settings.downstream_tasks,
                include_path=resolve_user_path(task_folder) if task_folder else None,
                limit=settings.downstream_limit,
            )
            judge = SampleJudge(
                tokenizer,
                scorer,
                references=text_features(
                    valid_tokens[prefix_rows][:, : len(first.token_ids[0])].tolist(),
                    tokenizer,
                    scorer,
                    batch_size=settings.batch_size,
                ),
                batch_size=settings.batch_size,
                num_resamples=settings.num_bootstrap_resamples,
                seed=params.seed,
                mauve_scaling_factor=settings.mauve_scaling_factor,
                mauve_num_buckets=settings.mauve_num_buckets,
                mauve_seeds=mauve_seeds,
            )
            data = judge.quality(held_out.tolist())
            measured = []
            for (unconditional, continuations), share in zip(sample_sets, copied, strict=True):
                measured.append(judge.measure(unconditional, continuations, share))
                console.console.print(describe_entry(model_name, measured[-1].as_dict()), markup=False, soft_wrap=True)
        if measured[0].mauve is not None and measured[0].mauve.has_few_texts:
            console.console.print(
                f"model {model_name}: MAUVE of {measured[0].mauve.estimate.count} texts, fewer than"
                f" {FEWEST_MAUVE_TEXTS}, says little by itself: raise sample.num_prefixes",
                markup=False,
                soft_wrap=True,
            )
        if not ranks.is_main():
            return
        entries = [metrics.as_dict() for metrics in measured]
        write_json(
            metrics_path,
            {
                "model": model_name,
                "kind": "autoregressive" if is_baseline else "denoiser",
                "round_index": None if is_baseline else int(model_name),
                "seed": params.seed,
                "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
                "validation": likelihood.as_dict(decoded_bytes(tokenizer, held_out)),
                "loss_by_time": likelihood.by_time and [bucket.as_dict() for bucket in likelihood.by_time],
                "likelihood_on": likelihood_on,
                "cloze": cloze and cloze.as_dict(),
                "downstream": {name: result.as_dict() for name, result in downstream.items()},
                "samples": entries,
                "longest_copy_tokens": settings.longest_copy_tokens,
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
                    "fewest_texts": FEWEST_MAUVE_TEXTS,
                    "num_references": len(prefix_rows),
                    "num_continuations": len(first.token_ids),
                },
                "data": {
                    "generative_perplexity": data.generative_perplexity.as_dict(),
                    "entropy": data.entropy.as_dict(),
                },
            },
        )
        write_steps(csv_path / "steps.csv", entries)
        write_samples_table(csv_path / "samples.csv", measured)
        record_stage(f"evaluate@{model_name}", metrics_path, device)
        work.finish()


if __name__ == "__main__":
    console.run(main)
