"""What the page says of puzzles."""

import pytest

from halfstep.metrics.frontier import FrontierRow
from halfstep.report.solved import Solved, budget_rows, sentences


def row(sampler: str, setting: str, evaluations: float, solved: float, temperature: float = 0.0) -> FrontierRow:
    return FrontierRow(
        model="0", sampler=sampler, setting=setting, temperature=temperature, evaluations=evaluations,
        equivalent_evaluations=evaluations, seconds_per_sample=0.1, num_samples=400, givens=14, solved=solved,
    )  # fmt: skip


ORDERED = "score=entropy,noise=0.0,counts=even"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_each_budget_has_the_best_way_by_its_short_name_and_ancestral_sampling_at_any_temperature(
    temperature: float,
) -> None:
    solved = Solved([
        row("ancestral", "num_steps=4", 4.0, 0.45, temperature),
        row("ancestral", "num_steps=8", 7.6, 0.65, temperature),
        row("ordered", f"num_steps=4,{ORDERED}", 4.0, 0.6), row("ordered", f"num_steps=8,{ORDERED}", 8.0, 0.85),
        row("entropy_bound", "gamma=0.1", 4.6, 0.992), row("entropy_bound", "gamma=0.2", 5.5, 0.997),
    ])  # fmt: skip
    found = {budget: cells for budget, *cells in budget_rows(solved, 14)}
    assert found["2"] == ["–"] * 5
    assert found["4"][0] == "ordered (4 steps), likeliest token"
    assert found["4"][2].startswith("45 % [40.2, 49.9]")
    # Of two that solve 99 % or more the cheaper one, whichever solves more.
    assert found["8"][:2] == ["entropy_bound (gamma 0.1), likeliest token", "99.2 % [97.8, 99.7]"]
    assert found["8"][2].startswith("65 %")
    (sentence,) = sentences(solved)
    assert "drawn by entropy_bound (gamma 0.1), likeliest token, solves 99.2 %" in sentence
    assert "ancestral sampling solves 65 %" in sentence
