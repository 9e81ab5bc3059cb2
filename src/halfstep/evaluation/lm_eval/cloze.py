"""Cloze passages in the form of LAMBADA: guess the last word. The task itself is run by lm-eval."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfstep.data.cloze import read_passages, split_passage
from halfstep.evaluation.lm_eval.harness import silenced
from halfstep.metrics.estimate import Estimate, mean_estimate, perplexity_estimate
from halfstep.run.errors import UserError

if TYPE_CHECKING:
    from halfstep.evaluation.lm_eval.autoregressive_lm import AutoregressiveLM
    from halfstep.evaluation.lm_eval.denoiser_lm import DenoiserLM

TASK = "halfstep_cloze"


@dataclass(frozen=True)
class ClozeResult:
    """How well a model guesses last words; counts are in passages.

    Attributes:
        accuracy: share of passages whose whole last word is decoded greedily.
        perplexity: exp of the mean negative log-likelihood of a last word (of the word, not of its tokens).
        num_truncated: passages whose context lost tokens on the left to fit the model.
    """

    accuracy: Estimate
    perplexity: Estimate
    num_truncated: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a metrics file."""
        return {
            "accuracy": self.accuracy.as_dict(),
            "perplexity": self.perplexity.as_dict(),
            "num_truncated": self.num_truncated,
        }


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


def run_cloze(lm: "AutoregressiveLM | DenoiserLM", passages: Sequence[str]) -> ClozeResult | None:
    """Run the cloze task on a model with lm-eval.

    Args:
        lm: the model.
        passages: texts of two words or more.
    Returns:
        the result; None where there are no passages.
    """
    if not passages:
        return None
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
    return ClozeResult(
        accuracy=mean_estimate([float(sample["acc"]) for sample in samples], "1", name="cloze accuracy"),
        perplexity=perplexity_estimate(nlls, [1] * len(nlls), name="cloze perplexity"),
        num_truncated=lm.num_truncated,
    )
