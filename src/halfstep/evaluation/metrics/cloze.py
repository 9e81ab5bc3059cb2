"""Cloze passages in the form of LAMBADA: guess the last word. The task itself is run by lm-eval."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from halfstep.data.texts.cloze import read_passages, split_passage
from halfstep.evaluation.evaluated import Evaluated, rows_of
from halfstep.evaluation.lm_eval.harness import silenced
from halfstep.metrics.estimate import Estimate, mean_estimate, perplexity_estimate
from halfstep.metrics.record import Row
from halfstep.run.errors import UserError

if TYPE_CHECKING:
    from halfstep.evaluation.lm_eval.autoregressive_lm import AutoregressiveLM
    from halfstep.evaluation.lm_eval.denoiser_lm import DenoiserLM

TASK = "halfstep_cloze"


def measure(evaluated: Evaluated) -> Iterator[Row]:
    """cloze_accuracy and cloze_perplexity; nothing without passages."""
    if evaluated.passages:
        lm = evaluated.lm(evaluated.settings.num_cloze_maskings)
        result = run_cloze(lm, evaluated.passages)
        yield from rows_of(None, cloze_accuracy=result.accuracy, cloze_perplexity=result.perplexity)
        yield from rows_of(None, **{"num_truncated.cloze": lm.num_truncated})


class ClozeResult(NamedTuple):
    """How well a model guesses last words; counts are in passages.

    Attributes:
        accuracy: share of passages whose whole last word is decoded greedily.
        perplexity: exp of the mean negative log-likelihood of a last word (of the word, not of its tokens).
    """

    accuracy: Estimate
    perplexity: Estimate


def load_passages(path: Path, limit: int | None) -> list[str]:
    """Read passages from a JSONL file of `{"text": ...}`, the target being the last word.

    Args:
        path: the file; empty lines are passed over, and it may hold no others.
        limit: read this many at most; None is all.
    Raises:
        UserError: the file is missing, or a line is not a passage.
    """
    try:
        return [text.strip() for text in islice(read_passages(path), limit)]
    except UserError as error:
        raise UserError(f"{error}: dvc repro -f prepare writes it again") from None


def run_cloze(lm: "AutoregressiveLM | DenoiserLM", passages: Sequence[str]) -> ClozeResult:
    """Run the cloze task on a model with lm-eval.

    Args:
        lm: the model.
        passages: texts of two words or more, at least one.
    """
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator import evaluate

    documents = [dict(zip(("context", "target"), split_passage(text), strict=True)) for text in passages]
    with silenced():
        task = ConfigurableTask(
            config={
                "task": TASK,
                # Kept in memory: a data set read from a file would be copied into a cache in the user's home.
                "custom_dataset": lambda **_: {"test": Dataset.from_list(documents)},
                "test_split": "test",
                "output_type": "loglikelihood",
                "doc_to_text": "context",
                "doc_to_target": "target",
                "target_delimiter": "",
                "num_fewshot": 0,
                "metric_list": [
                    {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
                    {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
                ],
            }
        )
        # lm-eval bootstraps the error of a perplexity, in many processes; per passage values give it in
        # closed form.
        results: Any = evaluate(lm, {"tasks": {TASK: task}, "groups": {}}, bootstrap_iters=0, log_samples=True)
    samples = results["samples"][TASK]
    nlls = [-sample["perplexity"] for sample in samples]
    accuracy = mean_estimate([float(sample["acc"]) for sample in samples], "1", name="cloze accuracy")
    return ClozeResult(accuracy, perplexity_estimate(nlls, [1] * len(nlls), name="cloze perplexity"))
