"""Corpora, one file each: `NAME.py` is what `data.source: NAME` means; its values are in Hydra's `data/NAME.yaml`.

A file holds the class `Settings`, a `CorpusSettings` with what the corpus needs besides (if it needs anything), and a
function `texts(settings, seed)` that yields the documents in a fixed order; None is no document. A corpus that brings
cloze passages has a function `cloze_passages(settings, seed)`, which yields them. One of puzzles has `prompts(settings,
seed, num_prompts, num_givens)`, documents token by token, with None for what is not given, and `is_solved(document,
prompt)`. One whose documents are rows of their own, some of whose tokens are given, has `rows(documents, tokenizer,
context_length)`, which makes them, int32, see `halfstep.data.tokens.given`. Files of the user are named by a parameter
`path`, with the meaning of `halfstep.run.finding`, so that DVC learns when they are edited.
"""

CORPORA = __name__
