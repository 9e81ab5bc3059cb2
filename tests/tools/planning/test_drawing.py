"""What samplers ask of a network, against closed forms."""

import itertools
from typing import Any

import pytest

from halfstep.samplers.sampler import Sampler
from halfstep.tools.planning.drawing import Drawing, count_drawing

ORDERED = {"num_steps": 4, "score": "entropy", "noise": 1.0, "counts": "even"}
LEFT_OF_12 = 12 + 9 + 6 + 3
"""Masked when each of four steps begins, which write equally many of 12."""


def expected_evaluations(num_steps: int, num_masked: int) -> float:
    """Of ancestral sampling: the steps, each equally likely for each position, in which at least one unmasks."""
    return num_steps * (1 - (1 - 1 / num_steps) ** num_masked)


def test_expected_evaluations_are_the_mean_over_all_outcomes() -> None:
    outcomes = [len(set(outcome)) for outcome in itertools.product(range(3), repeat=4)]
    assert expected_evaluations(3, 4) == pytest.approx(sum(outcomes) / len(outcomes))


def test_ancestral_sampling_evaluates_where_anything_unmasks_and_projects_that() -> None:
    """Eight samples of at most 64 evaluations, with a standard error of about 1."""
    drawing = count_drawing(Sampler("ancestral", {"num_steps": 64}), 66, 64)
    assert drawing.evaluations == pytest.approx(expected_evaluations(64, 64), abs=4)
    assert (drawing.chosen_from, drawing.drawn) == (0, 64)
    assert drawing.evaluations < drawing.calls <= 64


@pytest.mark.parametrize(
    ("name", "values", "drawing"),
    [
        ("ancestral", {"num_steps": 4, "counts": "even"}, Drawing(4, 4, 0, 12)),
        ("ordered", ORDERED, Drawing(4, 4, LEFT_OF_12, 12)),
        ("ordered", {**ORDERED, "drawing": "sequential"}, Drawing(4, 4, LEFT_OF_12, 12)),
        # Two blocks, of which each has its own steps.
        ("ordered", {**ORDERED, "num_steps": 2, "block_length": 6}, Drawing(4, 4, 2 * (6 + 3), 12)),
        ("entropy_bound", {"gamma": 0.1}, Drawing(6, 6, 6 * 6, 12)),
        ("ordered", {**ORDERED, "drawing": "speculative", "head_passes": 1}, Drawing(6, 6, 6 * 6, 12)),
    ],
)
def test_what_a_sample_of_twelve_tokens_takes(name: str, values: dict[str, Any], drawing: Drawing) -> None:
    assert count_drawing(Sampler(name, values), 14, 12) == drawing
