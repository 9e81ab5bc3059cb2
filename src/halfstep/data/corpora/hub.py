"""A data set of the Hugging Face hub."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from halfstep.data.texts.hub import read_hub
from halfstep.settings.data import CorpusSettings


class Settings(CorpusSettings):
    hub_id: Annotated[str, Field(min_length=1)]
    hub_config: str | None
    revision: str | None
    split: Annotated[str, Field(min_length=1)]
    text_column: Annotated[str, Field(min_length=1)]
    streaming: bool


def texts(settings: Settings, seed: int) -> Iterator[str | None]:
    return read_hub(
        settings.hub_id,
        config=settings.hub_config,
        revision=settings.revision,
        split=settings.split,
        text_column=settings.text_column,
        streaming=settings.streaming,
    )
