"""Corpora, found by their names."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter

from halfstep.data.corpora import pydocs
from halfstep.data.corpora.stories import make_passages, stories
from halfstep.data.packing.documents import open_corpus
from halfstep.data.texts.cloze import passages_of
from halfstep.settings import Params
from halfstep.settings.data import CorpusSettings
from halfstep.settings.plugins import Plugin


def settings(source: str, **own: Any) -> CorpusSettings:
    """Settings of a corpus, as they are found by its name."""
    tokenizer = {"source": "train-bpe", "vocab_size": 300, "revision": None, "mask_token": None}
    common = {"context_length": 8, "tokens_per_shard": 99, "valid_fraction": 0.5, "num_workers": 1, "cloze": None}
    values = {"source": source, "max_documents": None, "tokenizer": tokenizer, **common, **own}
    plugin = Params.model_fields["data"].metadata[0]
    assert isinstance(plugin, Plugin)
    return TypeAdapter(Annotated[CorpusSettings, plugin]).validate_python(values)


def test_stories_are_the_grammars_and_bring_their_cloze_passages(tmp_path: Path) -> None:
    data = settings("stories", num_documents=7, num_cloze=2)
    with open_corpus(data, 4, tmp_path) as documents:
        assert list(documents) == list(stories(7, 4))
    assert list(passages_of(data, 4)) == list(make_passages(2, 4))
    data = settings("stories", num_documents=7, num_cloze=2, max_documents=3)
    assert list(open_corpus(data, 4, tmp_path)) == list(stories(3, 4))


def test_pydocs_are_topics_then_modules(tmp_path: Path) -> None:
    from pydoc_data.topics import topics

    data = settings("pydocs", max_documents=len(topics) + 3)
    documents = list(open_corpus(data, 0, tmp_path))
    assert documents[: len(topics)] == [topics[name] for name in sorted(topics)]
    assert len(documents) == len(topics) + 3
    assert list(passages_of(data, 0)) == []


def test_docstrings_are_parsed_in_order_and_nothing_runs(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text(
        '"""Module."""\nraise SystemExit\n'
        'class A:\n    """Class."""\n    def f(self):\n        """Method."""\n'
        'async def g():\n    """Coroutine.\n\n    More."""\nx = """no docstring"""\n'
    )
    assert pydocs.docstrings_of(source) == "Module.\n\nClass.\n\nMethod.\n\nCoroutine.\n\nMore."
    source.write_text("def broken(:")
    assert pydocs.docstrings_of(source) == ""
