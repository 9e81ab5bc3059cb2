"""The samples that the page plays: which token came in which denoising step."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfstep.metrics.estimate import Estimate
from halfstep.metrics.record import AUTOREGRESSIVE
from halfstep.report.records import Drawn, describe_drawn, steps_of
from halfstep.samples.table import read_sample_sets

KINDS = ("unconditional", "continuations")
NUM_SHOWN = 2
"""Samples of each kind."""
NUM_BEFORE = 8
"""Tokens before one that are decoded with it: more than a character takes."""


@dataclass(frozen=True)
class Sample:
    """One sample and how it came about.

    Attributes:
        model: which drew it.
        kind: `unconditional` or `continuations`.
        index: which of its kind; with the seed it decides the noise, so that the same index of two models and two
            settings continues the same prefix from the same random numbers.
        drawn: sampler and setting.
        num_steps: the last step; of the autoregressive model, the tokens it generated.
        nfe: network evaluations.
        num_given: tokens at the start that were given.
        pieces: the text that each token adds.
        unmask_step: the step in which each token came, from 1; 0 if it was there from the start.
    """

    model: str
    kind: str
    index: int
    drawn: Drawn
    num_steps: int
    nfe: int
    num_given: int
    pieces: tuple[str, ...]
    unmask_step: tuple[int, ...]


def load_samples(folder: Path, models: Sequence[str], decode: Callable[[list[int]], str]) -> list[Sample]:
    """The first samples of each model in each setting, the same indices of each.

    Args:
        folder: holds `MODEL/unconditional.parquet` and `MODEL/continuations.parquet` for every model.
        models: names, in the order wanted.
        decode: token ids to text.
    Raises:
        UserError: see `read_sample_sets`.
    """
    return [
        Sample(
            model,
            kind,
            index,
            (drawn.sampler, drawn.setting),
            drawn.num_steps or max(drawn.unmask_step[index]),
            drawn.nfe[index],
            drawn.prefix_length,
            tuple(token_pieces(drawn.token_ids[index], decode)),
            tuple(drawn.unmask_step[index]),
        )
        for model in models
        for kind in KINDS
        for drawn in read_sample_sets(folder / model / f"{kind}.parquet", NUM_SHOWN)
        for index in range(len(drawn.nfe))
    ]


def token_pieces(token_ids: Sequence[int], decode: Callable[[list[int]], str]) -> list[str]:
    """The text that each token adds to what comes before it; joined, they are the whole text.

    What a token is decoded to depends on where it is, and a character may need several tokens: then the last one of
    them adds it, and the others add nothing.

    Args:
        token_ids: of the text.
        decode: token ids to text.
    """
    text = decode(list(token_ids))
    pieces: list[str] = []
    written = 0
    for end in range(1, len(token_ids) + 1):
        # Nearly always the tokens just before decide; where the text says otherwise, all of them are decoded.
        window = list(token_ids[max(0, end - NUM_BEFORE - 1) : end])
        before, now = decode(window[:-1]), decode(window)
        piece = now[len(before) :]
        if not (now.startswith(before) and text.startswith(piece, written)):
            so_far = decode(list(token_ids[:end]))
            while not text.startswith(so_far):  # an unfinished character, a space that the next token takes away
                so_far = so_far[:-1]
            piece = text[written : len(so_far)]
        pieces.append(piece)
        written += len(piece)
    return pieces


def tokens_together(folder: Path, model: str) -> dict[int, Estimate]:
    """How many tokens a token is drawn with, in the same denoising step of one ancestral sample, itself included.

    Args:
        folder: holds `MODEL/unconditional.parquet`.
        model: its name.
    Returns:
        by number of steps: the mean over tokens, with the interval that holds the middle 90 % of them; count is in
        tokens. It has no standard error, since the tokens of a step are one event.
    Raises:
        UserError: see `read_sample_sets`.
    """
    found = {}
    for drawn in read_sample_sets(folder / model / "unconditional.parquet"):
        if (num_steps := steps_of(drawn.sampler, drawn.setting)) is not None:
            sizes: Counter[int] = Counter()
            for unmask_step in drawn.unmask_step:
                for size in Counter(step for step in unmask_step if step).values():
                    sizes[size] += size
            found[num_steps] = _spread(sizes)
    return found


def _spread(counts: Counter[int]) -> Estimate:
    values = sorted(counts.elements())
    total = len(values)
    low, high = values[-(-total // 20) - 1], values[-(-19 * total // 20) - 1]
    return Estimate(sum(values) / total, None, total, "tokens", (float(low), float(high)))


def browser_data(samples: Sequence[Sample], titles: Mapping[str, str]) -> dict[str, Any]:
    """What the page's script plays, compactly: pieces of text are numbered, and each is there once.

    Args:
        samples: those to show.
        titles: what each model is called, in the order wanted.
    """
    numbers: dict[str, int] = {}
    models = list(titles)
    # An autoregressive model has one way to draw, and is not chosen.
    settings = list(dict.fromkeys(sample.drawn for sample in samples if sample.drawn[0] != AUTOREGRESSIVE))
    settings.sort(key=lambda drawn: steps_of(*drawn) or 1 << 62)
    prompts = sorted({(KINDS.index(sample.kind), sample.index): sample for sample in samples}.items())
    places = [key for key, _ in prompts]
    return {
        "models": list(titles.values()),
        "settings": [describe_drawn(*drawn) for drawn in settings],
        "prompts": [_prompt_title(sample) for _, sample in prompts],
        "samples": [
            {
                "model": models.index(sample.model),
                "prompt": places.index((KINDS.index(sample.kind), sample.index)),
                "setting": settings.index(sample.drawn) if sample.drawn in settings else -1,
                "unit": "steps" if sample.drawn in settings else "tokens",
                "steps": sample.num_steps,
                "nfe": sample.nfe,
                "pieces": [numbers.setdefault(piece, len(numbers)) for piece in sample.pieces],
                "unmask": sample.unmask_step,
            }
            for sample in samples
        ],
        "pieces": list(numbers),
    }


def _prompt_title(sample: Sample) -> str:
    if sample.kind == KINDS[0]:
        return f"from nothing, sample {sample.index}"
    start = " ".join("".join(sample.pieces[: sample.num_given]).split())
    return f"continue “{start[:40]}{'…' if len(start) > 40 else ''}”"
