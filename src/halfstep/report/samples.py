"""The samples that the page plays: which token came in which denoising step."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfstep.metrics.estimate import Estimate
from halfstep.run.errors import UserError

KINDS = ("unconditional", "continuations")


@dataclass(frozen=True)
class Sample:
    """One sample and how it came about.

    Attributes:
        model: which drew it.
        kind: `unconditional` or `continuations`.
        sample_index: which of its kind; with the seed it decides the noise, so the same index of two models and two
            numbers of steps continues the same prefix from the same random numbers.
        num_steps: denoising steps; of the autoregressive model, the tokens it generated.
        nfe: network evaluations.
        num_given: tokens at the start that were given.
        pieces: the text that each token adds.
        unmask_step: the step in which each token came, from 1; 0 if it was there from the start.
    """

    model: str
    kind: str
    sample_index: int
    num_steps: int
    nfe: int
    num_given: int
    pieces: tuple[str, ...]
    unmask_step: tuple[int, ...]

    @property
    def prefix(self) -> str:
        """The part of the text that was given; empty if nothing was."""
        return "".join(self.pieces[: self.num_given])

    @property
    def text(self) -> str:
        """The rest of the text."""
        return "".join(self.pieces[self.num_given :])


def load_samples(
    folder: Path,
    models: Sequence[str],
    *,
    num_unconditional: int,
    num_continuations: int,
    decode: Callable[[list[int]], str],
) -> list[Sample]:
    """Read the first samples of every model at every number of steps, the same indices of each.

    Args:
        folder: holds `MODEL/unconditional.parquet` and `MODEL/continuations.parquet` for every model.
        models: names, in the order wanted.
        num_unconditional: how many unconditional samples of each model and number of steps.
        num_continuations: how many continuations.
        decode: token ids to text.
    Returns:
        samples by model, kind, number of steps and index.
    Raises:
        UserError: a file is missing or is not what `sample` writes.
    """
    return [
        sample
        for model in models
        for kind, count in zip(KINDS, (num_unconditional, num_continuations), strict=True)
        for sample in _read_samples(folder / model / f"{kind}.parquet", model, kind, count, decode)
    ]


COLUMNS = ("num_steps", "sample_index", "nfe", "token_ids", "unmask_step")


def _read_samples(
    path: Path, model: str, kind: str, count: int, decode: Callable[[list[int]], str]
) -> Iterable[Sample]:
    table = _read_table(path, COLUMNS, filters=[("sample_index", "<", count)])
    try:
        num_given = int(json.loads(table.schema.metadata[b"halfstep"])["prefix_length"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} does not say prefix_length as sample does: make it again with dvc repro") from None
    for num_steps, index, nfe, token_ids, unmask_step in sorted(
        zip(*(table[name].to_pylist() for name in COLUMNS), strict=True)
    ):
        pieces = tuple(token_pieces(token_ids, decode))
        yield Sample(model, kind, index, num_steps, nfe, num_given, pieces, tuple(unmask_step))


def _read_table(path: Path, columns: Sequence[str], **options: Any) -> Any:
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    try:
        return pq.read_table(path, columns=list(columns), **options)
    except FileNotFoundError:
        raise UserError(f"{path} is not there: make it with dvc repro") from None
    except (OSError, ArrowException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not what sample writes ({reason}): make it again with dvc repro") from None


def token_pieces(token_ids: Sequence[int], decode: Callable[[list[int]], str]) -> list[str]:
    """The text that each token adds to what stands before it; joined, they are the whole text.

    What a token is decoded to depends on where it stands, and a character may need several tokens: then the last one of
    them adds it, and the others add nothing.

    Args:
        token_ids: of the text.
        decode: token ids to text.
    """
    text = decode(list(token_ids))
    pieces: list[str] = []
    written = 0
    for end in range(1, len(token_ids) + 1):
        so_far = decode(list(token_ids[:end]))
        while not text.startswith(so_far):  # an unfinished character, a space that the next token takes away
            so_far = so_far[:-1]
        pieces.append(text[written : len(so_far)])
        written = max(written, len(so_far))
    return pieces


def tokens_together(folder: Path, model: str) -> dict[int, Estimate]:
    """How many tokens a token is drawn with, in the same denoising step of one sample, itself included.

    Args:
        folder: holds `MODEL/unconditional.parquet`.
        model: its name.
    Returns:
        by number of steps: the mean over tokens, with the interval that holds the middle 90 % of them; count is in
        tokens. It has no standard error, since the tokens of a step are one event. Empty without samples.
    Raises:
        UserError: the file is missing or is not what `sample` writes.
    """
    table = _read_table(folder / model / "unconditional.parquet", ("num_steps", "unmask_step"))
    sizes: dict[int, Counter[int]] = {}
    for num_steps, unmask_step in zip(table["num_steps"].to_pylist(), table["unmask_step"].to_pylist(), strict=True):
        together = Counter(step for step in unmask_step if step)
        for size in together.values():
            sizes.setdefault(num_steps, Counter())[size] += size
    return {num_steps: _spread(counts) for num_steps, counts in sorted(sizes.items())}


def _spread(counts: Counter[int]) -> Estimate:
    total = counts.total()
    mean = sum(size * count for size, count in counts.items()) / total
    seen, low, high = 0, None, None
    for size, count in sorted(counts.items()):
        seen += count
        low = size if low is None and seen >= 0.05 * total else low
        high = size if high is None and seen >= 0.95 * total else high
    assert low is not None
    assert high is not None
    return Estimate(mean, None, total, "tokens", (float(low), float(high)))


def browser_data(samples: Sequence[Sample], titles: dict[str, str], units: dict[str, str]) -> dict[str, Any]:
    """What the page's script plays, compactly: pieces of text are numbered, and each stands there once.

    Args:
        samples: of `load_samples`.
        titles: what each model is called.
        units: what a step of each model is called.
    """
    numbers: dict[str, int] = {}
    models = list(dict.fromkeys(sample.model for sample in samples))
    prompts = list(dict.fromkeys((sample.kind, sample.sample_index) for sample in samples))
    prompts.sort(key=lambda prompt: (KINDS.index(prompt[0]), prompt[1]))
    entries = [
        {
            "model": models.index(sample.model),
            "prompt": prompts.index((sample.kind, sample.sample_index)),
            "steps": sample.num_steps,
            "nfe": sample.nfe,
            "pieces": [numbers.setdefault(piece, len(numbers)) for piece in sample.pieces],
            "unmask": list(sample.unmask_step),
        }
        for sample in samples
    ]
    return {
        "pieces": list(numbers),
        "models": [{"title": titles[model], "unit": units[model]} for model in models],
        "prompts": [_prompt_title(kind, index, samples) for kind, index in prompts],
        "samples": entries,
    }


def _prompt_title(kind: str, index: int, samples: Sequence[Sample]) -> str:
    if kind == "unconditional":
        return f"from nothing, sample {index}"
    given = next(sample.prefix for sample in samples if (sample.kind, sample.sample_index) == (kind, index))
    start = " ".join(given.split())
    return f"continue “{start[:40]}{'…' if len(start) > 40 else ''}”"
