"""One model measured: by every metric that `evaluate.metrics` names, into a record and two tables."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from halfstep.data.tokenizer import check_vocabulary, load_tokenizer
from halfstep.data.tokens.manifest import MANIFEST_FILE
from halfstep.data.tokens.packed import load_tokens
from halfstep.evaluation.evaluated import Evaluated
from halfstep.evaluation.metrics import METRICS
from halfstep.evaluation.metrics.cloze import load_passages
from halfstep.evaluation.metrics.generative_perplexity import unigram_entropy
from halfstep.evaluation.scorer import load_scorer, scorer_of, shares_vocabulary
from halfstep.metrics.frontier import SAMPLE_COLUMNS
from halfstep.metrics.record import AUTOREGRESSIVE, Record, Row, write_record, write_rows
from halfstep.model.gpt2 import load_autoregressive
from halfstep.model.opening import open_denoiser
from halfstep.run import ranks
from halfstep.run.console import console
from halfstep.run.device import autocast, select_device, select_precision
from halfstep.run.files import write_csv
from halfstep.run.inputs import inputs_of
from halfstep.run.stage_times import record_stage
from halfstep.run.work import open_work
from halfstep.samples.table import pair_sample_sets, read_sample_sets
from halfstep.settings import Params
from halfstep.settings.graph import BASELINE
from halfstep.settings.plugins import plugin_module

Metric = Callable[[Evaluated], Iterable[Row]]


def metric(name: str) -> Metric:
    """`measure` of the file halfstep/evaluation/metrics/NAME.py."""
    return plugin_module(METRICS, name).measure


def measure_model(
    model_name: str,
    params: Params,
    *,
    model_path: Path,
    samples_path: Path,
    tokens_path: Path,
    cloze_path: Path,
    metrics_path: Path,
    tables_path: Path,
) -> None:
    """Measure one model and write its record, and into `tables_path` rows.csv and samples.csv.

    Cut off, it goes on after the last batch. Where several processes share the work, the main one writes.
    """
    settings = params.evaluate
    device = select_device(params.runtime.device)
    is_baseline = model_name == BASELINE
    scorer_source, scorer_files = scorer_of(settings)
    files = [model_path, samples_path, tokens_path / MANIFEST_FILE, cloze_path, *scorer_files]
    values = params.deciding("seed", "runtime", "evaluate")
    tokenizer = load_tokenizer(model_path)
    valid_tokens = load_tokens(tokens_path, "valid")
    passages = load_passages(cloze_path, settings.num_cloze_passages)
    sample_sets = pair_sample_sets(
        read_sample_sets(samples_path / "unconditional.parquet"),
        read_sample_sets(samples_path / "continuations.parquet"),
    )
    with open_work(f"evaluate-{model_name}", values, files, inputs_of(params, "evaluate")) as work:
        model = load_autoregressive(model_path) if is_baseline else open_denoiser(model_path)
        mask_token_id = None if is_baseline else model.config.mask_token_id
        check_vocabulary(tokenizer, model_path, vocab_size=model.config.vocab_size, mask_token_id=mask_token_id)
        with work.batches() as folder, autocast(device, select_precision(params.runtime.precision, device)):
            evaluated = Evaluated(
                opened=model.to(device),
                tokenizer=tokenizer,
                scorer=load_scorer(scorer_source, settings.scorer_revision, device, settings.scorer_precision),
                sample_sets=sample_sets,
                valid_tokens=valid_tokens,
                tokens_path=tokens_path,
                passages=passages,
                settings=settings,
                seed=params.seed,
                device=device,
                folder=folder,
            )
            rows = tuple(row for name in settings.metrics for row in metric(name)(evaluated))
            by_time = evaluated.held_out_likelihood.by_time if "likelihood" in settings.metrics else ()
            scored = list(_scored_samples(evaluated)) if "generative_perplexity" in settings.metrics else []
        if not ranks.is_main():
            return
        record = Record(
            model=model_name,
            kind=AUTOREGRESSIVE if is_baseline else "denoiser",
            round_index=None if is_baseline else int(model_name),
            num_parameters=sum(parameter.numel() for parameter in model.parameters()),
            scorer=settings.scorer,
            is_retokenized=not shares_vocabulary(tokenizer, evaluated.scorer.tokenizer),
            rows=rows,
            loss_by_time=by_time,
            conditions={"seed": params.seed, **settings.model_dump(mode="json")},
        )
        write_record(metrics_path, record)
        write_rows(tables_path / "rows.csv", rows)
        write_csv(tables_path / "samples.csv", SAMPLE_COLUMNS, scored)
        for sampler, setting in record.drawn():
            console.print(describe(record, sampler, setting), markup=False, soft_wrap=True)
        record_stage(f"evaluate@{model_name}", metrics_path, device)
        work.finish()


def describe(record: Record, sampler: str, setting: str) -> str:
    """One line on one set of samples."""

    def shown(metric: str) -> str:
        found = record.get(metric, sampler, setting)
        if found is None:
            return f"{metric} -"
        error = "" if found.standard_error is None else f" ± {found.standard_error:.2g}"
        return f"{metric} {found.value:.4g}{error}"

    values = ", ".join(map(shown, ("nfe", "generative_perplexity", "entropy", "mauve")))
    return f"model {record.model}, {setting or sampler}: {values}"


def _scored_samples(evaluated: Evaluated) -> Iterator[tuple[Any, ...]]:
    for (samples, _), scored in zip(evaluated.sample_sets, evaluated.scored_samples, strict=True):
        drawn = samples.sampler, samples.setting, samples.temperature
        columns = zip(samples.token_ids, scored.nlls, scored.num_tokens, strict=True)
        for index, (token_ids, nll, num_tokens) in enumerate(columns):
            yield *drawn, index, nll, num_tokens, unigram_entropy(token_ids)
