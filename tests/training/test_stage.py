"""What a stage that trains says before it does."""

from pathlib import Path

import pytest

from halfstep.settings.training import TrainingSettings
from halfstep.tools.planning.compose import composed_params
from halfstep.training.stage import say_epochs


@pytest.fixture
def settings() -> TrainingSettings:
    return composed_params(
        ["pretrain.num_train_steps=300", "pretrain.batch_size=50"], Path(__file__).parents[2]
    ).pretrain


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((1000, 100), "pretrain: reads the training data, 100,000 tokens, 15 times\n"),
        ((10_000, 100), ""),  # a million tokens
        ((15_000, 10), ""),  # once
    ],
)
def test_a_small_corpus_is_said_with_its_epochs(
    settings: TrainingSettings, capsys: pytest.CaptureFixture[str], shape: tuple[int, int], said: str
) -> None:
    say_epochs("pretrain", settings, shape)
    assert "".join(capsys.readouterr()) == said
