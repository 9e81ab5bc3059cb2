"""A plug-in brings its settings in its own file, and nothing else has to know them."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import ValidationError

from halfstep.run.errors import UserError
from halfstep.settings.base import Settings
from halfstep.settings.messages import nearest_key
from halfstep.settings.plugins import Plugin, plugin_module

FOLDER = "shapes_of_a_test"


class Shape(Settings):
    name: str
    scale: int


class Figure(Settings):
    shape: str
    border: int


class Drawing(Settings):
    ground: Annotated[Shape, Plugin(FOLDER, key="name", group="shape")]
    shapes: tuple[Annotated[Shape, Plugin(FOLDER, key="name")], ...]
    figure: Annotated[Figure, Plugin(FOLDER, key="shape", has_section=True)]


CIRCLE = """
from halfstep.settings.base import PositiveInt
from tests.settings.test_plugins import Shape

class Settings(Shape):
    radius: PositiveInt
"""
SQUARE = "from halfstep.settings.base import Settings as Base\nclass Settings(Base):\n    side: int\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / FOLDER
    folder.mkdir()
    files = {
        "__init__": "SHARED = ('base',)",
        "base": "",
        "_shared": "",
        "circle": CIRCLE,
        "square": SQUARE,
        "point": "",
        "broken": "?",
    }
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text.replace("tests.settings.test_plugins", __name__))
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == FOLDER]:
        del sys.modules[name]


def drawing() -> dict:
    circle = {"name": "circle", "scale": 1, "radius": 2}
    return {
        "ground": dict(circle),
        "shapes": [dict(circle), {"name": "point", "scale": 3}],
        "figure": {"shape": "square", "border": 1, "square": {"side": 4}},
    }


def test_settings_are_those_of_the_files_that_are_named_and_are_written_as_they_were_read() -> None:
    read = Drawing.model_validate(drawing(), strict=False)
    assert read.ground.radius == 2  # type: ignore[attr-defined]
    assert type(read.shapes[1]) is Shape
    assert read.figure.square.side == 4  # type: ignore[attr-defined]
    assert read.model_dump(mode="json") == drawing()
    assert read == Drawing.model_validate(drawing(), strict=False)
    assert f"{FOLDER}.broken" not in sys.modules


@pytest.mark.parametrize(
    ("change", "where", "kind"),
    [
        (lambda v: v["ground"].update(radius=0), ("ground", "radius"), "greater_than"),
        (lambda v: v["ground"].update(radios=1), ("ground", "radios"), "extra_forbidden"),
        (lambda v: v["ground"].pop("radius"), ("ground", "radius"), "missing"),
        (lambda v: v["ground"].update(name="circel"), ("ground", "name"), "no_plugin"),
        (lambda v: v["ground"].update(name="base"), ("ground", "name"), "no_plugin"),
        (lambda v: v["ground"].update(name="../circle"), ("ground", "name"), "no_plugin"),
        (lambda v: v["ground"].update(name=5), ("ground", "name"), "string_type"),
        (lambda v: v["shapes"][1].update(radius=1), ("shapes", 1, "radius"), "extra_forbidden"),
        (lambda v: v["figure"]["square"].update(side="4"), ("figure", "square", "side"), "int_type"),
        (lambda v: v["figure"].pop("square"), ("figure", "shape"), "no_section"),
        (lambda v: v["figure"].update(circle={}), ("figure", "circle"), "extra_forbidden"),
    ],
)
def test_what_is_wrong_is_found_where_it_is(change, where: tuple, kind: str) -> None:
    values = drawing()
    change(values)
    with pytest.raises(ValidationError) as raised:
        Drawing.model_validate(values, strict=False)
    first = raised.value.errors()[0]
    assert (first["loc"], first["type"]) == (where, kind)
    if kind == "no_plugin":
        assert first["msg"] == "it should be 'broken', 'circle', 'point' or 'square'"


def test_the_nearest_key_may_be_one_of_a_plugin() -> None:
    assert nearest_key("ground.radios", Drawing, drawing()) == "ground.radius"
    assert nearest_key("figure.square.sides", Drawing, drawing()) == "figure.square.side"


def test_a_plugin_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(UserError, match="has no 'circel': it should be 'broken', 'circle', 'point' or 'square'"):
        plugin_module(FOLDER, "circel")
