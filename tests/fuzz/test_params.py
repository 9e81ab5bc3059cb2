"""`params.yaml` with what a person can mistype: refused in one line that names the key and the value."""

import copy
import datetime
import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from halfstep import settings
from halfstep.run.errors import shown
from halfstep.settings import load_params
from halfstep.settings.graph import check_model_name

pytestmark = pytest.mark.stage  # takes seconds
ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
KIND = "params.yaml"
KEY = tuple[str | int, ...]

COMMON = {
    "context_length": 64, "tokens_per_shard": 2**20, "valid_fraction": 0.02, "max_documents": None,
    "num_workers": 1, "cloze": None,
    "tokenizer": {"source": "train-words", "vocab_size": 1024, "revision": None, "mask_token": None},
}  # fmt: skip
CORPORA: dict[str, dict[str, Any]] = {
    "stories": {"source": "stories", "num_documents": 100, "num_cloze": 5, **COMMON},
    "pydocs": {"source": "pydocs", **COMMON},
    "text": {"source": "text", "path": ["a.txt"], "text_column": "text", "split_on_blank_lines": 1, **COMMON},
    "hub": {
        "source": "hub", "hub_id": "a/b", "hub_config": None, "revision": None, "split": "train", "text_column": "text",
        "streaming": False, **COMMON,
    },
}  # fmt: skip


def sound(corpus: str = "stories") -> dict[str, Any]:
    """Parameters that load, with something in every list."""
    values = yaml.safe_load(TEXT)
    values["data"] = copy.deepcopy(CORPORA[corpus])
    values["evaluate"]["likelihood_on"] = [
        {"name": "books", "source": "books/*.txt", "hub_config": None, "split": "test", "text_column": "text"}
    ]
    values["evaluate"]["downstream_tasks"] = ["piqa"]
    # What may be left out is stated, so that it is what comes back.
    for section, name in (("sample", "samplers"), ("latency", "samplers"), ("frontier", "samplers")):
        common = {"block_length": [8], "drawing": ["independent"], "head_passes": [None]}
        values[section][name] = [{"name": "ancestral", "num_steps": [4], "counts": ["even"], **common}]
    values["frontier"]["student_samplers"] = values["frontier"]["samplers"]
    return values


def keys_of(values: Any, at: KEY = ()) -> Iterator[KEY]:
    """Every key, nested ones after the one that holds them."""
    for name, inner in values.items():
        yield (*at, name)
        if isinstance(inner, dict):
            yield from keys_of(inner, (*at, name))
        elif isinstance(inner, list) and inner and isinstance(inner[0], dict):
            yield from keys_of(inner[0], (*at, name, 0))


KEYS = [(corpus, key) for corpus in CORPORA for key in keys_of(sound(corpus)) if corpus == "stories" or "data" in key]


def get(values: Any, key: KEY) -> Any:
    for part in key:
        values = values[part]
    return values


def put(values: Any, key: KEY, value: Any) -> Any:
    get(values, key[:-1])[key[-1]] = value
    return values


NO_FIELD_TAKES = (
    math.nan, math.inf, -1, -0.5, 10**400, datetime.date(2020, 1, 1), {"nested": 1}, {}, [[]], [None],
    "a\x07b", "two\nlines", "x" * 256,
)  # fmt: skip


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    """Load values as YAML would give them; reading a file for each of ten thousand takes minutes."""
    given: list[Any] = []
    monkeypatch.setattr(settings, "_read_yaml", lambda path: given.pop())
    return lambda values: given.append(values) or load_params(Path("params.yaml"))


def test_what_no_field_takes_is_refused_in_every_field(refuse: Callable[..., None], load: Callable[..., Any]) -> None:
    for corpus, key in KEYS:
        for value in NO_FIELD_TAKES:
            if key[-1] in ("block_length", "head_passes") and value == [None]:
                continue
            values = put(sound_once(corpus), key, value)
            # A section says which of its keys is wrong, and a list which of its entries.
            named = () if isinstance(value, dict | list | tuple) else (shown(value),)
            refuse(KIND, partial(load, values), "params.yaml", str(key[0]), *named)


def test_nothing_is_made_a_number_or_text_that_is_not_one(
    refuse: Callable[..., None], load: Callable[..., Any]
) -> None:
    for corpus, key in KEYS:
        value = get(SOUND[corpus], key)
        if isinstance(value, bool):
            others: tuple[Any, ...] = (int(value), str(value), float(value))
        elif isinstance(value, int):
            others = (str(value), value + 0.5, str(float(value)), True)
        elif isinstance(value, float):
            others = (str(value), True)
        else:
            others = (5, 0.5, True) if isinstance(value, str) else ()
        for other in others:
            if key[-2:] == ("evaluate", "mauve_num_buckets") and other == 5 and not isinstance(other, bool):
                continue
            refuse(KIND, partial(load, put(sound_once(corpus), key, other)), str(key[0]), shown(other))


OPTIONAL = ("counts", "block_length", "drawing", "head_passes")


def sound_once(corpus: str) -> dict[str, Any]:
    return copy.deepcopy(SOUND[corpus])


SOUND = {corpus: sound(corpus) for corpus in CORPORA}


def test_sound_parameters_load_and_say_the_same(tmp_path: Path) -> None:
    for corpus in CORPORA:
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(SOUND[corpus]))
        assert load_params(path).model_dump(mode="json") == SOUND[corpus]


def test_unknown_and_missing_keys_are_named_at_every_depth(
    refuse: Callable[..., None], load: Callable[..., Any]
) -> None:
    for corpus, key in KEYS:
        if not {"schedule", "frontiers", "likelihood_on", "samplers", "student_samplers"} & {*key}:
            for unknown in (f"{key[-1]}_s", "two\nlines"):
                values = put(sound_once(corpus), (*key[:-1], unknown), 3)
                refuse(KIND, partial(load, values), "params.yaml: unknown parameter")
        if key[-3:-1] != ("likelihood_on", 0) and key[-1] not in OPTIONAL:
            values = sound_once(corpus)
            del get(values, key[:-1])[key[-1]]
            refuse(KIND, partial(load, values), str(key[0]))


TRAPS: dict[str, str | bytes] = {
    "empty": "",
    "only a comment": "# nothing\n",
    "a list": "- 1\n- 2\n",
    "a text": "just words",
    "two documents": f"{TEXT}---\n{TEXT}",
    "a tab": TEXT.replace("  epsilon", "\tepsilon"),
    "unclosed": TEXT.replace("seed: 0", "seed: {a: [1"),
    "a private tag": TEXT.replace("seed: 0", "seed: !secret 0"),
    "a Python object": TEXT.replace("seed: 0", "seed: !!python/object/apply:os.system ['touch pwned']"),
    "no such month": TEXT.replace("preset: laptop", "preset: 2020-13-01"),
    "a number as a key": f"{TEXT}1: 2\n",
    "zero bytes": TEXT.encode() + b"\0\0",
    "UTF-16": TEXT.encode("utf-16"),
    "Latin-1": TEXT.replace("laptop", "l\xe4ptop").encode("latin-1"),
    "random bytes": bytes(range(256)) * 4,
    "rounds beyond the schedule": TEXT.replace("rounds: 1", "rounds: 30"),
    "a name that leaves its folder": TEXT.replace("likelihood_on: []", "likelihood_on: [{name: .., source: a.txt}]"),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_yaml_traps_are_refused(trap: str, tmp_path: Path, refuse: Callable[..., None]) -> None:
    content = TRAPS[trap]
    assert content != TEXT, "the trap was not set"
    path = tmp_path / "params.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refuse(KIND, lambda: load_params(path), str(path))
    assert [found.name for found in tmp_path.iterdir()] == ["params.yaml"]


def test_the_same_in_other_words_is_accepted(tmp_path: Path, attempt: Callable[..., Any]) -> None:
    """A byte order mark, Windows line ends, JSON and comments are YAML too."""
    path = tmp_path / "params.yaml"
    expected = load_params(ROOT / "params.yaml")
    as_json = json.dumps(yaml.safe_load(TEXT)).replace("1e-08", "1.0e-8").replace("1e-05", "1.0e-5")
    for text in (f"\ufeff{TEXT}", TEXT.replace("\n", "\r\n"), as_json, f"# seed: 1\n{TEXT}", f"---\n{TEXT}...\n"):
        path.write_bytes(text.encode())
        assert attempt(KIND, lambda: load_params(path)) == expected


def test_what_is_no_file_is_refused(tmp_path: Path, refuse: Callable[..., None]) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "dangling", "loop", "device", "absent", "x" * 300):
        refuse(KIND, lambda path=tmp_path / name: load_params(path), str(tmp_path / name))


STAGES = ("prepare", "pretrain", "baseline", "distill", "sample", "evaluate", "latency", "report", "track")
ARGUMENTS = {"distill": ("1",), "sample": ("0",), "evaluate": ("ar",)}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_refuses_them_and_writes_nothing(stage: str, tmp_path: Path, run_stage: Callable[..., str]) -> None:
    import importlib

    main = importlib.import_module(f"stages.{stage}").main
    path = tmp_path / "params.yaml"
    path.write_text("")
    run_stage(KIND, main, *ARGUMENTS.get(stage, ()), named=("params.yaml",))
    path.write_text(yaml.safe_dump(put(sound(), ("pretrain", "learning_rate"), math.nan)))
    run_stage(KIND, main, *ARGUMENTS.get(stage, ()), named=("pretrain.learning_rate", "nan"))


@pytest.mark.parametrize(
    "name", ["../../x", "..", ".", "/etc", "0/../../x", "-1", "01", "٣", "ar\n", "", "a b", "99999"]
)
def test_names_of_models_cannot_leave_their_folder(
    name: str, tmp_path: Path, refuse: Callable[..., None], run_stage: Callable[..., str]
) -> None:
    from stages import evaluate, sample

    refuse("names of models", lambda: check_model_name(name), shown(name))
    (tmp_path / "params.yaml").write_text(TEXT)
    for main in (sample.main, evaluate.main):
        run_stage("names of models", main, "--", name, named=(shown(name),))


def test_names_of_models_are_taken() -> None:
    for name in ("ar", "0", "1", "17"):
        assert check_model_name(name) == name


def test_a_round_beyond_the_last_is_refused(tmp_path: Path, run_stage: Callable[..., str]) -> None:
    from stages import distill

    (tmp_path / "params.yaml").write_text(TEXT)
    run_stage("names of models", distill.main, "5", named=("round 5", "rounds=5"))
