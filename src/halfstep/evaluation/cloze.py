"""Cloze passages in the form of LAMBADA: guess the last word. The task itself is run by lm-eval."""

import contextlib
import io
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfstep.errors import UserError
from halfstep.evaluation.estimates import Estimate, mean_estimate, perplexity_estimate

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from transformers import PreTrainedTokenizerBase

TASK = "halfstep_cloze"


@dataclass(frozen=True)
class ClozeResult:
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
        path: the file; it may be empty.
        limit: read this many at most; None is all.
    Raises:
        UserError: the file is missing, or a line is not a passage of two words or more.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): dvc repro prepare writes it") from None
    passages = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"].strip()
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f'{path}, line {number}: {line[:60]!r} is not of the form {{"text": "..."}}') from None
        if " " not in text:
            raise UserError(f"{path}, line {number}: {text[:60]!r} has no last word to guess after a space: remove it")
        passages.append(text)
    return passages[:limit]


def split_passage(text: str) -> tuple[str, str]:
    """(all before the last space, the space and the last word)."""
    context, _, word = text.rpartition(" ")
    return context, f" {word}"


def encode_passage(
    tokenizer: "PreTrainedTokenizerBase", context: str, target: str, max_length: int
) -> tuple[list[int], list[int], bool]:
    """Token ids of context and target, the context beginning with BOS as in training.

    Args:
        tokenizer: with a BOS token.
        context: what is given.
        target: what is to be guessed.
        max_length: tokens of both together; a longer context loses tokens after its BOS.
    Returns:
        (context with BOS, target, whether the context was cut).
    Raises:
        UserError: the target has no token of its own, or does not fit.
    """
    whole = tokenizer.encode(context + target, add_special_tokens=False)
    context_ids = tokenizer.encode(context, add_special_tokens=False)
    target_ids = whole[len(context_ids) :]
    if not target_ids:
        raise UserError(f"cloze target {target!r} has no tokens of its own after {context[-40:]!r}: remove the passage")
    room = max_length - 1 - len(target_ids)
    if room < 0:
        raise UserError(
            f"cloze target {target[:60]!r} has {len(target_ids)} tokens, more than the model's length"
            f" {max_length} holds: remove the passage, or raise data.context_length"
        )
    kept = context_ids[max(len(context_ids) - room, 0) :]
    return [tokenizer.bos_token_id, *kept], target_ids, len(kept) < len(context_ids)


def run_cloze(lm: "LM", passages: Sequence[str]) -> ClozeResult | None:
    """Run the cloze task on a model with lm-eval.

    Args:
        lm: such as `DenoiserLM` or `AutoregressiveLM`.
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
    with _lm_eval_silenced():
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
    )


@contextlib.contextmanager
def _lm_eval_silenced() -> Iterator[None]:
    """Keep lm-eval's advice and progress bars off the terminal; errors are exceptions, which still show."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        # Its bars cannot be switched off, and elsewhere than on a terminal they fill the log.
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
