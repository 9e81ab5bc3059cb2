"""The help topics of the running Python and its standard library's docstrings, a document per module."""

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from halfstep.settings.data import CorpusSettings

NOT_LIBRARY = frozenset(
    {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "turtledemo", "__pycache__"}
)
"""Folders of the standard library that hold something else."""


def texts(settings: CorpusSettings, seed: int) -> Iterator[str]:
    from pydoc_data.topics import topics

    yield from (topics[name] for name in sorted(topics))
    yield from filter(None, map(docstrings_of, library_files()))


def library_files() -> list[Path]:
    """The modules of the running Python's standard library, that of the help topics among them."""
    library = Path(sysconfig.get_path("stdlib"))
    return [file for file in sorted(library.rglob("*.py")) if NOT_LIBRARY.isdisjoint(file.relative_to(library).parts)]


def docstrings_of(file: Path) -> str:
    """The docstrings of a Python file in order, apart by blank lines; the file is parsed, not run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # templates, and samples of bad code
        return ""
    documented = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    documented.sort(key=lambda node: getattr(node, "lineno", 0))
    return "\n\n".join(text for node in documented if (text := ast.get_docstring(node)))
