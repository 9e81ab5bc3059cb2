"""The corpus, whatever it is, and its tokenizer."""

from typing import Annotated

from pydantic import Field, model_validator

from halfstep.settings.base import MAX_CONTEXT_LENGTH, MAX_WORKERS, PositiveInt, Settings


class TokenizerSettings(Settings):
    """Where the tokenizer comes from.

    `train-words` and `train-bpe` train one on the corpus with `vocab_size` entries at most; any other source is
    a local folder or a hub id, which brings its own size. `mask_token` names the token that masks where such a
    tokenizer has it and does not say so; null: the one that it says, or else a new one.
    """

    source: Annotated[str, Field(min_length=1)]
    vocab_size: PositiveInt | None
    revision: str | None
    mask_token: str | None

    @model_validator(mode="after")
    def _vocab_size_belongs_to_training(self) -> "TokenizerSettings":
        if self.source.startswith("train-"):
            if self.source not in ("train-words", "train-bpe"):
                raise ValueError(f"source is {self.source!r}: train-words and train-bpe can be trained")
            if self.vocab_size is None:
                raise ValueError(f"source is {self.source!r}, which needs a vocab_size")
        return self


class CorpusSettings(Settings):
    """What every corpus has in common; `source` names its file in `halfstep.data.corpora`, which has the rest.

    `cloze` is null, a local JSONL file (one `{"text": ...}` a line, the target its last word) or a hub data set
    id; null uses the passages that the corpus brings, if it brings any. `tokens_per_shard` is the size of a file of
    tokens, within which the order of training is drawn. `num_workers` processes tokenize, or fewer where there is
    little text (null: as many as there are cores).
    """

    source: str
    context_length: Annotated[int, Field(ge=8, le=MAX_CONTEXT_LENGTH)]
    tokens_per_shard: PositiveInt
    valid_fraction: Annotated[float, Field(gt=0, lt=1)]
    max_documents: PositiveInt | None
    num_workers: Annotated[int, Field(gt=0, le=MAX_WORKERS)] | None
    cloze: str | None
    tokenizer: TokenizerSettings

    @model_validator(mode="after")
    def _a_shard_holds_a_sequence(self) -> "CorpusSettings":
        if self.tokens_per_shard < self.context_length:
            raise ValueError(
                f"tokens_per_shard {self.tokens_per_shard} is less than a context of {self.context_length}"
            )
        return self
