"""The puzzles of a corpus that has them."""

from halfstep.data.corpora import CORPORA
from halfstep.run.errors import UserError
from halfstep.settings.data import CorpusSettings
from halfstep.settings.plugins import plugin_module


def prompts_of(data: CorpusSettings, seed: int, num_prompts: int, num_givens: int) -> list[list[str | None]]:
    """Puzzles that give so many tokens, each a document token by token, with None for what is not given.

    Raises:
        UserError: the corpus has none, or none that give so many.
    """
    corpus = plugin_module(CORPORA, data.source)
    if not hasattr(corpus, "prompts"):
        raise UserError(
            f"frontier.num_givens is {num_givens}, but data.source {data.source} has no puzzles: dvc exp run -S"
            " frontier.num_givens=[]"
        )
    return corpus.prompts(data, seed, num_prompts, num_givens)
