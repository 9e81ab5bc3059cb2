"""Other texts than the corpus, packed as it is: to ask a model how likely it finds them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from halfstep.data.corpora.base import store_documents
from halfstep.data.finding import is_local
from halfstep.data.hub import read_hub
from halfstep.data.packing import id_type, pack_documents
from halfstep.data.reading import read_texts
from halfstep.data.scratch import scratch_folder
from halfstep.data.tokens import PackedTokens, Tokens
from halfstep.run.errors import UserError
from halfstep.settings.evaluation import TextSourceSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENS_PER_SHARD = 2**26
"""Of the intermediate files; the rows are the same for any number."""


def pack_texts(
    name: str,
    source: str,
    *,
    hub_config: str | None,
    split: str,
    text_column: str,
    tokenizer: PreTrainedTokenizerFast,
    context_length: int,
    num_sequences: int | None,
    scratch: Path,
) -> Tokens:
    """Rows of tokens, `[BOS] chunk [EOS]`, of texts in their order; see `pack_documents`.

    Args:
        name: what the texts are called in messages.
        source: a local file, folder or glob, from the project's root where it is relative, or else a hub id. A local
            `.txt` file is one document.
        hub_config, split: of a data set of the hub.
        text_column: of such a data set, and of `.jsonl` and `.parquet` files.
        tokenizer: the model's own.
        context_length: tokens per row.
        num_sequences: rows at most; None is all.
        scratch: folder for intermediate files.
    Returns:
        token ids [num_sequences, context_length], in memory.
    Raises:
        UserError: there is no such text, it cannot be read, or it does not fill one row.
    """
    folder = scratch / name
    folder.mkdir()
    try:
        if is_local(source):
            texts: Iterable[str | None] = read_texts([source], text_column, split_on_blank_lines=0)
        else:
            texts = read_hub(
                source, config=hub_config, revision=None, split=split, text_column=text_column, streaming=False
            )
        documents = store_documents(texts, None, folder)
        packed = pack_documents(
            documents,
            np.ones(len(documents), np.bool_),
            tokenizer,
            folder,
            "text",
            context_length=context_length,
            tokens_per_shard=TOKENS_PER_SHARD,
            num_workers=1,
            on_documents=lambda done, note: None,
        )
    except UserError as error:
        raise UserError(f"evaluate.likelihood_on {name} ({source}): {error}") from None
    tokens = PackedTokens(folder, packed, context_length, id_type(len(tokenizer)))
    return np.array(tokens[:num_sequences])


def pack_all(
    texts: Iterable[TextSourceSettings],
    tokenizer: PreTrainedTokenizerFast,
    *,
    context_length: int,
    num_sequences: int | None,
) -> dict[str, Tokens]:
    """`pack_texts` of each text that the parameters name, by its name."""
    with scratch_folder() as scratch:
        return {
            text.name: pack_texts(
                **text.model_dump(),
                tokenizer=tokenizer,
                context_length=context_length,
                num_sequences=num_sequences,
                scratch=scratch,
            )
            for text in texts
        }
