"""Settings of plug-ins: of whatever a parameter chooses by the name of a file, and only that file knows.

A plug-in is a file of a folder, such as `data/corpora/text.py`. Its settings are the class `Settings` in it; without
that class it has none of its own. A field with plug-ins is annotated in one of two ways:

    data: Annotated[CorpusSettings, Plugin("halfstep.data.corpora", key="source")]
    distill: Annotated[DistillSettings, Plugin("halfstep.objectives", key="objective", has_section=True)]

In the first the plug-in's `Settings`, a subclass of the one in the annotation, are the field's value (or that of each
entry of a list); in the second they lie in it under the plug-in's name, `getattr(params.distill, "sdtt")`. The key is a
field of type `str` of the annotated class. What uses a plug-in gets its file by `plugin_module`. Only the files that
parameters name are imported.
"""

import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import Any

from pydantic import GetCoreSchemaHandler, ValidationError, create_model
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from halfstep.run.errors import UserError, shown
from halfstep.settings.base import Settings


def plugin_names(folder: str) -> list[str]:
    """The plug-ins of a folder, which is named as a package is.

    Files that the folder's `__init__.py` lists as SHARED are none, nor are those whose names begin with an underscore.
    """
    package = import_module(folder)
    names = {module.name for module in pkgutil.iter_modules(package.__path__)}
    return sorted(name for name in names - {*getattr(package, "SHARED", ())} if not name.startswith("_"))


def plugin_module(folder: str, name: str) -> ModuleType:
    """The file of a plug-in, imported.

    Raises:
        UserError: there is none.
    """
    if name not in plugin_names(folder):
        raise UserError(f"{folder} has no {shown(name)}: it should be {one_of(plugin_names(folder))}")
    return import_module(f"{folder}.{name}")


def one_of(names: list[str]) -> str:
    """Names as pydantic lists what is expected."""
    *others, last = map(repr, names)
    return f"{', '.join(others)} or {last}" if others else last


@dataclass(frozen=True)
class Plugin:
    """Annotation of a field whose settings are those of the plug-in that it names; see above.

    Attributes:
        folder: package of the plug-ins.
        key: the field that names one.
        has_section: whether its settings lie in a section of its name.
        group: Hydra's group that sets the key, for the way out in messages; None where there is none.
    """

    folder: str
    key: str
    has_section: bool = False
    group: str | None = None

    def __get_pydantic_core_schema__(self, common: type[Settings], handler: GetCoreSchemaHandler) -> CoreSchema:
        def validate(values: Any) -> Any:
            name = values.get(self.key) if isinstance(values, dict) else None
            if not isinstance(name, str):
                return values
            names = plugin_names(self.folder)
            context = {"names": one_of(names), "section": name, "group": self.group}
            if name not in names:
                problem = PydanticCustomError("no_plugin", "it should be {names}", context)
            elif self.has_section and name not in values:
                problem = PydanticCustomError("no_section", "there is no section {section}", context)
            else:
                return self.settings_class(common, name).model_validate(values)
            error = InitErrorDetails(type=problem, loc=(self.key,), input=name)
            raise ValidationError.from_exception_data(common.__name__, [error])

        return core_schema.no_info_before_validator_function(
            validate, handler(common), serialization=core_schema.simple_ser_schema("any")
        )

    def settings_class(self, common: type[Settings], name: str) -> type[Settings]:
        """The class of the field's value where it names this plug-in."""
        own = getattr(plugin_module(self.folder, name), "Settings", None)
        if own is None:
            return common
        return _with_section(common, name, own) if self.has_section else own

    def settings_classes(self, common: type[Settings], values: Any) -> Iterator[type[Settings]]:
        """That of the plug-in which the field's value names, or else those of all."""
        named = values.get(self.key) if isinstance(values, dict) else None
        names = plugin_names(self.folder)
        for name in [named] if named in names else names:
            yield self.settings_class(common, name)


@lru_cache
def _with_section(common: type[Settings], name: str, own: type[Settings]) -> type[Settings]:
    sections: dict[str, Any] = {name: (own, ...)}
    return create_model(common.__name__, __base__=common, **sections)
