"""Short stories from our own grammar; story i depends on the seed and i only."""

from collections.abc import Iterator

from halfstep.data import stories
from halfstep.settings.base import PositiveInt
from halfstep.settings.data import CorpusSettings


class Settings(CorpusSettings):
    num_documents: PositiveInt
    num_cloze: PositiveInt


def texts(settings: Settings, seed: int) -> Iterator[str]:
    return stories.stories(settings.num_documents, seed)


def cloze_passages(settings: Settings, seed: int) -> Iterator[str]:
    return stories.cloze_passages(settings.num_cloze, seed)
