"""Other texts than the corpus, as rows of tokens: to ask a model how likely it finds them."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np

from halfstep.data.texts.encoding import as_rows, batches, encode, id_type
from halfstep.data.texts.hub import read_hub
from halfstep.data.texts.reading import read_texts
from halfstep.data.tokenizer import vocab_size_of
from halfstep.data.tokens.packed import Tokens
from halfstep.run.errors import UserError
from halfstep.run.finding import is_local
from halfstep.settings.evaluation import TextSourceSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def pack_texts(
    text: TextSourceSettings, tokenizer: PreTrainedTokenizerFast, *, context_length: int, num_sequences: int | None
) -> Tokens:
    """Rows of tokens, `[BOS] chunk [EOS]`, of texts in their order; see `pack_documents`.

    Args:
        text: its source is a local file, folder or glob, from the project's root where it is relative, or else a hub
            id. A local `.txt` file is one document.
        tokenizer: the model's own.
        context_length: tokens per row.
        num_sequences: rows at most; no text is read beyond them. None is all.
    Returns:
        token ids [num_sequences, context_length], in memory.
    Raises:
        UserError: there is no such text, it cannot be read, or it does not fill one row.
    """
    dtype = np.dtype(id_type(vocab_size_of(tokenizer)))
    wanted = None if num_sequences is None else num_sequences * (context_length - 2)
    ids, num_tokens = [], 0
    try:
        with closing(_texts(text)) as texts:
            for batch in batches(texts):
                ids.append(encode(batch, tokenizer.backend_tokenizer, tokenizer.eos_token_id, dtype))
                num_tokens += len(ids[-1])
                if wanted is not None and num_tokens >= wanted:
                    break
        rows, _ = as_rows(np.concatenate([np.empty(0, dtype), *ids]), context_length, tokenizer)
        if not len(rows):
            raise UserError(f"the text has {num_tokens} tokens, but one context needs {context_length - 2}: give more")
    except UserError as error:
        raise UserError(f"evaluate.likelihood_on {text.name} ({text.source}): {error}") from None
    return rows[:num_sequences]


def _texts(text: TextSourceSettings) -> Generator[str | None]:
    if is_local(text.source):
        yield from read_texts([text.source], text.text_column, split_on_blank_lines=0)
    else:
        yield from read_hub(
            text.source,
            config=text.hub_config,
            revision=None,
            split=text.split,
            text_column=text.text_column,
            streaming=False,
        )


def pack_all(
    texts: Iterable[TextSourceSettings],
    tokenizer: PreTrainedTokenizerFast,
    *,
    context_length: int,
    num_sequences: int | None,
) -> dict[str, Tokens]:
    """`pack_texts` of each text that the parameters name, by its name."""
    return {
        text.name: pack_texts(text, tokenizer, context_length=context_length, num_sequences=num_sequences)
        for text in texts
    }
