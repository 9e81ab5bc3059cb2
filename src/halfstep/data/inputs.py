"""The files behind any parameter that names some: texts as the corpus finds them, all else as files and folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from halfstep.data.corpora import CORPORA
from halfstep.data.finding import find_files, is_local
from halfstep.run.errors import UserError
from halfstep.run.inputs import local_files
from halfstep.settings.plugins import plugin_module


def find_input(parameter: str, value: Any) -> Sequence[Path]:
    """The files that a parameter means now, in the order in which they are read; none where it is a hub id.

    Raises:
        UserError: the value means a file, and there is none.
    """
    if parameter == "data.source":
        return list(plugin_module(CORPORA, value).library_files())
    if parameter == "data.path":
        return find_files([value] if isinstance(value, str) else value)
    if parameter.startswith("evaluate.likelihood_on"):
        try:
            return find_files([value]) if is_local(value) else []
        except UserError as error:
            raise UserError(f"{parameter} ({value}): {error}") from None
    return local_files(parameter, value)
