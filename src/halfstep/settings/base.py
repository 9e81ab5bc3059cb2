"""The base class of all settings, and the kinds of numbers and lists that they hold."""

import unicodedata
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from halfstep.run.errors import shown

MAX_INT = 2**31 - 1
"""Largest number of anything, and largest seed: what the libraries that count in 32 bits take."""
MAX_SEED = 2_000_000_000
"""Seeds are counted on from this one, and none may exceed `MAX_INT`."""
MAX_ROUNDS = 30
"""Each round needs twice the denoising steps of the one before it, and 2^31 is more than `MAX_INT`."""
MAX_CONTEXT_LENGTH = 2**20
MAX_BLOCKS = 10_000
"""More than any model has; what states more is broken."""
MAX_WORKERS = 1024
"""More processes or threads than this are a slip of the hand, and would bring a machine down."""
MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 4000
"""No file system holds a longer name, and no system call takes a longer path."""

UNSET = "???"
"""What is in `pipeline/conf` where only the user can say the value."""

PositiveInt = Annotated[int, Field(gt=0, le=MAX_INT)]
NumBlocks = Annotated[int, Field(gt=0, le=MAX_BLOCKS)]
NonNegativeInt = Annotated[int, Field(ge=0, le=MAX_INT)]


class Settings(BaseModel):
    """Base of all settings: frozen, strict about types, no unknown keys, finite numbers and plain text only."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _text_is_plain(cls, value: Any) -> Any:
        """Texts name files, models and columns: none has control characters, or a name that no file can have."""
        for text in value if isinstance(value, tuple | list) else (value,):
            if isinstance(text, str):
                if text == UNSET:
                    raise ValueError("only you know its value, so it has to be given")
                if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
                    raise ValueError("text holds a control character: take it out")
                names = [len(name.encode()) for name in text.split("/")]
                if max(names) > MAX_NAME_BYTES or sum(names) + len(names) > MAX_PATH_BYTES:
                    raise ValueError("text is longer than the name of a file can be")
        return value


def flat(values: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values one by one, by dotted name."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from flat(value, f"{name}.{key}" if name else key)
    else:
        yield name, values


def each_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if repeated := [value for number, value in enumerate(values) if value in values[:number]]:
        raise ValueError(f"{shown(repeated[0])} is given twice; give each once")
    return values


Value = TypeVar("Value")
Several = Annotated[tuple[Value, ...], Field(strict=False, min_length=1), AfterValidator(each_once)]
"""One value or more, each once."""
PositiveInts = Several[PositiveInt]
Probability = Annotated[float, Field(ge=0, lt=1)]
