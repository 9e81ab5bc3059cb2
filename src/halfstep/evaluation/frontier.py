"""A model's rows of the frontier: every way to draw, at every temperature."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from halfstep.data.corpora import CORPORA
from halfstep.data.texts.puzzles import prompts_of
from halfstep.data.tokens.given import answers, without_filling, without_given
from halfstep.data.tokens.manifest import MANIFEST_FILE
from halfstep.data.tokens.packed import load_tokens
from halfstep.data.tokens.seeds import derive_seed
from halfstep.evaluation.metrics.distinct import distinct_ngrams
from halfstep.evaluation.metrics.generative_perplexity import quality, unigram_entropy
from halfstep.evaluation.metrics.mauve import mauve_score
from halfstep.evaluation.metrics.self_bleu import self_bleu
from halfstep.evaluation.scorer import Scorer, load_scorer, read_texts, scorer_of
from halfstep.metrics.frontier import ROWS_FILE, FrontierRow, write_frontier
from halfstep.model.base import MaskedModel
from halfstep.model.joint import JointModel
from halfstep.model.opening import config_of, open_with_tokenizer
from halfstep.run import console, ranks
from halfstep.run.device import autocast, select_device, select_precision
from halfstep.run.errors import nan_as_user_error
from halfstep.run.files import atomic_path
from halfstep.run.inputs import inputs_of
from halfstep.run.stage_times import record_stage
from halfstep.run.work import Arrays, batched, cached, open_work
from halfstep.samplers.adjust import at_temperature
from halfstep.samplers.base import Uniforms
from halfstep.samplers.sampler import Sampler, samplers_of
from halfstep.samples.draw import AUTOREGRESSIVE, Prompt, draw, from_prompts, to_be_written, with_start
from halfstep.settings import Params
from halfstep.settings.plugins import plugin_module

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SELF_BLEU_GROUP = 8
"""Samples that are compared with each other: the time grows with its square."""


def draw_way(
    model: "MaskedModel | PreTrainedModel",
    sampler: Sampler,
    temperature: float,
    x_init: Tensor,
    *,
    name: str,
    relative_depth: float,
    mask_token_id: int,
    seed: int,
    batch_size: int,
    device: torch.device,
    folder: Path,
) -> tuple[list[list[int]], dict[str, Any]]:
    """Draw samples in one way.

    Args:
        model: in evaluation mode, on `device`, whose name is `name`.
        sampler, temperature: the way.
        x_init: tokens given, and the mask token everywhere else, int64 [num_samples, length].
        relative_depth: the model's blocks over those of the first teacher, which all rounds share.
        mask_token_id: of x_init.
        seed: of the samples.
        batch_size: samples drawn together.
        folder: for the batches of a run that may be cut off, see `cached`.
    Returns:
        (token ids of each sample, what `FrontierRow` says of how they were drawn and what they cost).
    """
    options = {"mask_token_id": mask_token_id, **at_temperature(temperature)}

    def compute(indices: list[int]) -> Arrays:
        uniforms = Uniforms(seed, indices, x_init.shape[1])
        started = time.perf_counter()
        given = x_init[indices].to(device)
        drawn = draw(model, sampler, given, uniforms=uniforms, **options)
        tokens = drawn.tokens.cpu().numpy()
        seconds = time.perf_counter() - started
        passes = drawn.head_passes.cpu().numpy()
        return {"tokens": tokens, "nfe": drawn.nfe.cpu().numpy(), "passes": passes, "seconds": np.array(seconds)}

    kept = [arrays for _, arrays in cached(folder, batched(range(len(x_init)), batch_size), compute)]
    tokens = np.concatenate([arrays["tokens"] for arrays in kept]).tolist()
    evaluations, passes = (float(np.concatenate([arrays[key] for arrays in kept]).mean()) for key in ("nfe", "passes"))
    of_head = passes * model.relative_depth if isinstance(model, JointModel) else 0.0
    return tokens, {
        "model": name,
        "sampler": sampler.name,
        "setting": sampler.setting,
        "temperature": temperature,
        "evaluations": evaluations,
        "equivalent_evaluations": evaluations * relative_depth + of_head,
        "head_passes": passes,
        "seconds_per_sample": sum(float(arrays["seconds"]) for arrays in kept) / len(tokens),
        "num_samples": len(tokens),
    }


def measure_texts(
    tokens: Sequence[Sequence[int]],
    drawn: Mapping[str, Any],
    *,
    references: np.ndarray,
    tokenizer: "PreTrainedTokenizerBase",
    scorer: Scorer,
    params: Params,
    folder: Path | None = None,
) -> tuple[FrontierRow, list[Sequence[Any]]]:
    """Measure samples as texts.

    Args:
        tokens, drawn: see `draw_way`; tokens of a prompt as `halfstep.data.tokens.given` has them.
        references: features of held-out text, see `Reading`.
        tokenizer: of the samples.
        scorer: judges them.
        params: sections `data` and `evaluate`.
        folder: for what the scorer reads, see `cached`.
    Returns:
        (the row, and for each sample what `write_frontier` writes).
    """
    settings = params.evaluate
    scored = read_texts(tokens, tokenizer, scorer, batch_size=settings.batch_size, folder=folder)
    resampling = {"num_resamples": settings.num_bootstrap_resamples, "seed": params.seed}
    perplexity, entropy = quality(tokens, scored, **resampling)
    mauve = mauve_score(
        references,
        scored.features,
        scaling_factor=settings.mauve_scaling_factor,
        num_buckets=settings.mauve_num_buckets,
        seeds=[params.seed],
    )
    new = without_given(tokens)
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in new]
    alike = self_bleu(batched(texts, SELF_BLEU_GROUP))
    low, high = perplexity.interval or (None, None)
    row = FrontierRow(
        **drawn,
        perplexity=perplexity.value,
        perplexity_low=low,
        perplexity_high=high,
        entropy=entropy.value,
        mauve=None if mauve is None else mauve.value,
        distinct_2=distinct_ngrams(new, 2),
        self_bleu=None if alike is None else alike.value,
        **judged(params, new, tokenizer),  # type: ignore[arg-type]
    )
    way = row.sampler, row.setting, row.temperature
    columns = zip(scored.nlls, scored.num_tokens, map(unigram_entropy, tokens), strict=True)
    return row, [(*way, index, *numbers) for index, numbers in enumerate(columns)]


def judged(
    params: Params, samples: Sequence[Sequence[int]], tokenizer: "PreTrainedTokenizerBase"
) -> dict[str, float | None]:
    """What the corpus itself knows of samples, by column of `FrontierRow`: nothing if it has no function `judge`."""
    judge: Callable[[list[list[str]]], dict[str, float | None]] | None
    judge = getattr(plugin_module(CORPORA, params.data.source), "judge", None)
    return judge([documents_of(ids, tokenizer) for ids in samples]) if judge else {}


def documents_of(token_ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The documents of a packed row, which EOS ends: the first may lack its beginning, the last its end."""
    parts: list[list[int]] = [[]]
    for token_id in token_ids:
        if token_id == tokenizer.eos_token_id:
            parts.append([])
        else:
            parts[-1].append(token_id)
    return [tokenizer.decode(part, skip_special_tokens=True).strip() for part in parts]


@dataclass(frozen=True)
class Puzzles:
    """Puzzles of one kind, which give so many tokens each: as the corpus has them, and as sequences [n, length]."""

    givens: int
    prompts: Sequence[Prompt]
    x_init: Tensor


def puzzles_of(params: Params, tokenizer: "PreTrainedTokenizerBase") -> list[Puzzles]:
    """The puzzles that the parameters ask the corpus for, by kind.

    Raises:
        UserError: see `prompts_of`.
    """
    settings = params.frontier
    found = [(n, prompts_of(params.data, params.seed, settings.num_samples, n)) for n in settings.num_givens]
    return [Puzzles(n, prompts, from_prompts(prompts, tokenizer)) for n, prompts in found]


def share_solved(
    params: Params, puzzles: Puzzles, samples: Sequence[Sequence[int]], tokenizer: "PreTrainedTokenizerBase"
) -> float:
    """Share of samples that solve their puzzle."""
    is_solved: Callable[[str, Prompt], bool] = plugin_module(CORPORA, params.data.source).is_solved
    pairs = zip(samples, puzzles.prompts, strict=True)
    return sum(is_solved(documents_of(ids, tokenizer)[0], prompt) for ids, prompt in pairs) / len(samples)


def measure_model(
    model_name: str, params: Params, *, model_path: Path, teacher_path: Path, frontier_path: Path, tokens_path: Path
) -> None:
    """Measure a model in every way that the parameters name, and write its rows and samples to `frontier_path`.

    Evaluations of an autoregressive model are weighted by its blocks over those of the first teacher, of which
    config.json is read. Cut off, it goes on after the last batch. Where several processes share the work, the main one
    writes.
    """
    settings = params.frontier
    device = select_device(params.runtime.device)
    scorer_source, scorer_files = scorer_of(params.evaluate)
    files = [model_path, tokens_path / MANIFEST_FILE, *scorer_files]
    values = params.deciding("seed", "runtime", "evaluate", "frontier") | {"give_ends": params.sample.give_ends}
    drawn_by = params.frontiers.get(model_name, "frontier.student_samplers").removeprefix("frontier.")
    for other in {"samplers", "student_samplers"} - {drawn_by}:
        del values["frontier"][other]
    valid_tokens = load_tokens(tokens_path, "valid")
    with open_work(f"frontier-{model_name}", values, files, inputs_of(params, "evaluate")) as work:
        model, tokenizer = open_with_tokenizer(model_path)
        model.to(device)
        samplers, relative_depth = [AUTOREGRESSIVE], 1.0
        if isinstance(model, MaskedModel):
            samplers = samplers_of(getattr(settings, drawn_by))
        else:
            relative_depth = model.config.num_hidden_layers / config_of(teacher_path).num_blocks
        puzzles = puzzles_of(params, tokenizer)
        kinds: Sequence[Puzzles | None] = puzzles or [None]
        ways = [*product(samplers, settings.temperatures, kinds)]
        unconditional, _ = to_be_written(
            settings.num_samples,
            valid_tokens,
            params.data.context_length,
            tokenizer,
            give_ends=params.sample.give_ends,
        )
        unconditional = with_start(model, unconditional, tokenizer)
        is_given = (unconditional != tokenizer.mask_token_id).tolist()
        precision = select_precision(params.runtime.precision, device)
        rows, samples = [], []
        with (
            work.batches() as folder,
            autocast(device, precision),
            nan_as_user_error(model_path),
            console.progress(f"frontier {model_name}", len(ways), unit="way") as show,
        ):
            if not puzzles:
                scorer = load_scorer(
                    scorer_source, params.evaluate.scorer_revision, device, params.evaluate.scorer_precision
                )
                rows_of_text = valid_tokens.stored(slice(settings.num_samples)).tolist()
                held_out = without_filling(rows_of_text, tokenizer.eos_token_id)
                references = read_texts(
                    held_out, tokenizer, scorer, batch_size=params.evaluate.batch_size, folder=folder / "held_out"
                ).features
            for number, (sampler, temperature, kind) in enumerate(ways):
                tokens, drawn = draw_way(
                    model,
                    sampler,
                    temperature,
                    kind.x_init if kind else unconditional,
                    name=model_name,
                    relative_depth=relative_depth,
                    mask_token_id=tokenizer.mask_token_id,
                    seed=derive_seed(params.seed, "frontier"),
                    batch_size=settings.batch_size,
                    device=device,
                    folder=folder / f"{number:04}",
                )
                if kind:
                    solved = share_solved(params, kind, tokens, tokenizer)
                    rows.append(FrontierRow(**drawn, solved=solved, givens=kind.givens))
                else:
                    if valid_tokens.has_given:
                        tokens = answers(tokens, is_given, tokenizer.eos_token_id)
                    row, of_samples = measure_texts(
                        tokens,
                        drawn,
                        references=references,
                        tokenizer=tokenizer,
                        scorer=scorer,
                        params=params,
                        folder=folder / f"{number:04}-read",
                    )
                    rows.append(row)
                    samples += of_samples
                show(number + 1, f"{sampler.name} {sampler.setting} at {temperature:g}")
        if ranks.is_main():
            with atomic_path(frontier_path) as target:
                target.mkdir()
                write_frontier(target, rows, samples)
            record_stage(f"frontier@{model_name}", frontier_path / ROWS_FILE, device)
            work.finish()
