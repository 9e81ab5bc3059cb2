"""What `prepare` says of the tokens it wrote: their shards, sizes and hashes, in one JSON file beside them."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from halfstep.run.errors import UserError
from halfstep.run.files import read_json

MANIFEST_FILE = "manifest.json"

PositiveCount = Annotated[int, Field(gt=0, lt=2**63)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Shard(_Entry):
    """One `.npy` file of rows.

    Attributes:
        file: its name.
        num_sequences: rows, as many as in every shard of the split but the last, which may have fewer.
        num_bytes, sha256: of the file.
    """

    file: Annotated[str, Field(pattern=r"^[\w-]+\.npy$")]
    num_sequences: PositiveCount
    num_bytes: PositiveCount
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Split(_Entry):
    """What a part of the corpus became."""

    num_sequences: PositiveCount
    shards: Annotated[tuple[Shard, ...], Field(strict=False, min_length=1)]

    @model_validator(mode="after")
    def _shards_hold_the_sequences(self) -> "Split":
        first, *others = (shard.num_sequences for shard in self.shards)
        if any(number != first for number in others[:-1]) or (others and others[-1] > first):
            raise ValueError("shards but the last differ in num_sequences")
        if first + sum(others) != self.num_sequences:
            raise ValueError("num_sequences is not the sum of the shards'")
        return self


class PackedSplit(Split):
    """A split and what went into it; `num_tokens` counts the last chunk too, dropped where it was not full."""

    num_documents: int
    num_tokens: int


class Manifest(_Entry):
    """`manifest.json`: nothing but what follows from the tokens; `vocab_size` counts the mask token.

    Of `dtype` int32 are rows with tokens that are given, see `halfstep.data.tokens.given`.

    Whatever else changed in it would make every model stale.
    """

    context_length: Annotated[int, Field(ge=3, lt=2**31)]
    vocab_size: Annotated[int, Field(ge=2, lt=2**31)]
    mask_token_id: Annotated[int, Field(ge=0, lt=2**31)]
    dtype: Literal["uint16", "uint32", "int32"]
    train: Split
    valid: Split


def read_manifest(tokens_path: Path) -> Manifest:
    """The manifest of a folder of packed tokens.

    Raises:
        UserError: there is none, or it is not what `prepare` writes.
    """
    path = tokens_path / MANIFEST_FILE
    try:
        return Manifest.model_validate(read_json(path))
    except FileNotFoundError:
        raise UserError(f"{path} is not there; the stage prepare writes it: dvc repro prepare") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise UserError(
            f"{path} is not what prepare writes ({where}: {first['msg']}); write it again: dvc repro -f prepare"
        ) from None
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{path} is no JSON; write it again: dvc repro -f prepare") from None
