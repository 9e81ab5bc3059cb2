"""What is wrong with parameters, in one line with the way out."""

import difflib
import json
import math
import re
import shlex
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from halfstep.run.errors import one_line, shown
from halfstep.settings.base import UNSET
from halfstep.settings.plugins import Plugin

WANTED = {
    "tuple_type": "a list", "too_short": "a list with something in it", "int_type": "a whole number",
    "int_from_float": "a whole number", "float_type": "a number", "finite_number": "a finite number",
    "bool_type": "true or false", "string_type": "text", "string_too_short": "text", "model_type": "a group of keys",
    "model_attributes_type": "a group of keys", "dict_type": "a group of keys", "list_type": "a list",
    "string_pattern_mismatch": "{form}", "greater_than": "more than {gt:.10g}",
    "greater_than_equal": "{ge:.10g} or more", "less_than": "less than {lt:.10g}",
    "less_than_equal": "{le:.10g} or less", "literal_error": "{expected}",
}  # fmt: skip
"""What a value should be, by pydantic's name for what is wrong with it."""
FORMS = {"rendezvous": "HOST:PORT", "name": "letters, digits, '.', '_' and '-', a letter or digit first"}
GROUPS = ("model_type", "model_attributes_type", "dict_type")


def describe(error: ValidationError, path: Path, params: type[BaseModel], values: Any) -> str:
    """The first thing wrong, in one line; and how many more there are."""
    first, *others = error.errors(include_url=False)
    kind, value, location = first["type"], first["input"], list(first["loc"])
    # pydantic also names the alternative of a union.
    parts = [p for p in location[:-1] if isinstance(p, int) or p.isidentifier()]
    if location and (kind == "extra_forbidden" or str(location[-1]).isidentifier() or isinstance(location[-1], int)):
        parts.append(location[-1])
    key = one_line(".".join(map(str, parts)), 80)
    # Hydra sets a list whole.
    settable = one_line(".".join(map(str, takewhile(lambda part: not isinstance(part, int), parts))), 80)
    example = "VALUE" if settable == key and kind not in ("tuple_type", "too_short") else "[VALUE]"
    group = ""
    if kind == "extra_forbidden":
        problem, nearest = f"unknown parameter {key} (value {shown(value)})", nearest_key(key, params, values)
        if nearest:
            problem, settable, example = f"{problem}, is {nearest} meant?", nearest, _as_override(value)
    elif kind == "missing":
        problem = f"parameter {key} is missing"
    elif kind == "no_plugin":
        names = first["ctx"]["names"]
        problem = f"{key} is {shown(value)}: it should be {one_line(names)}"
        settable = first["ctx"]["group"] or settable
        example = _nearest(value, re.findall("'(.*?)'", names)) or example
    elif kind == "no_section":
        problem = f"{key} is {value}, whose section {'.'.join(map(str, parts[:-1]))}.{value} is missing"
        settable, example = first["ctx"]["group"], value
    elif kind in WANTED:
        form = FORMS.get(str(parts[-1]) if parts else "", "")
        wanted = WANTED[kind].format(**first.get("ctx", {}), form=form)
        for other in others:
            if (other["type"], other["loc"][:-1]) == ("literal_error", first["loc"][:-1]):
                wanted += f" or {other['ctx']['expected']}"
        problem = f"{key or 'the file'} is {shown(value)}: it should be {one_line(wanted)}"
        if settable == key:
            example = _mended(kind, value, wanted) or example
            settable += ".KEY" if kind in GROUPS and key else ""
        if kind == "float_type" and example != "VALUE":
            problem += f", which YAML reads only in the form {example}"
    else:
        if value == UNSET and location[0] == "data":
            group = f"-S data={values['data'].get('source')} "
        message = one_line(first["msg"].removeprefix("Value error, "))
        problem = f"{key or 'the file'}{'' if isinstance(value, dict) else f' is {shown(value)}'}: {message}"
    more = f" (and {len(others)} more)" if others else ""
    override = shlex.quote(one_line(f"{settable or 'KEY'}={example}"))
    return f"{path}: {problem}{more}; the file is composed from pipeline/conf: dvc exp run {group}-S {override}"


def _mended(kind: str, value: Any, wanted: str) -> str | None:
    """What a value of the wrong kind may have been meant to be, as Hydra takes it; None where that is not clear."""
    if kind == "tuple_type" and isinstance(value, str | int | float) and not isinstance(value, bool):
        return f"[{value}]"
    if kind == "literal_error":
        return _nearest(str(value), re.findall("'(.*?)'", wanted))
    if isinstance(value, str | float) and kind in ("int_type", "int_from_float", "float_type"):
        try:
            number = float(value)
        except ValueError:
            return None
        if math.isfinite(number) and (kind == "float_type" or number.is_integer()):
            text = str(number if kind == "float_type" else int(number))
            return text if "e" not in text or "." in text else text.replace("e", ".0e")
    return None


def _as_override(value: Any) -> str:
    """A value as Hydra takes it; one of a kind that makes no sense there is left to the user."""
    if isinstance(value, list) and all(isinstance(entry, str | int | float) for entry in value):
        return f"[{','.join(map(_as_override, value))}]"
    if isinstance(value, str):
        return value
    return json.dumps(value) if value is None or isinstance(value, int | float) else "VALUE"


def _nearest(name: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def nearest_key(key: str, params: type[BaseModel], values: Any = None) -> str | None:
    """The parameter, among those of the plug-ins that `values` name, that was likely meant by one that is not known."""
    return _nearest(key, _keys(params, values))


def _keys(annotation: Any, values: Any, prefix: str = "") -> Iterator[str]:
    """The dotted names of all parameters of a model, or of the models in a union."""
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        for part in get_args(annotation) if get_origin(annotation) not in (tuple, dict) else ():
            yield from _keys(part, values, prefix)
        return
    for name, field in annotation.model_fields.items():
        value = values.get(name) if isinstance(values, dict) else None
        classes: Iterable[Any] = [field.annotation]
        for plugin in field.metadata:
            if isinstance(plugin, Plugin) and isinstance(field.annotation, type):
                classes = plugin.settings_classes(field.annotation, value)
        inner = [key for each in classes for key in _keys(each, value, f"{prefix}{name}.")]
        yield from inner or [f"{prefix}{name}"]
