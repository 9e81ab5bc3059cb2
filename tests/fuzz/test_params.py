"""`params.yaml` in every way that it can be wrong: refused in one line that names the key and the value."""

import copy
import datetime
import json
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from halfstep import settings
from halfstep.run.errors import shown
from halfstep.settings import MAX_INT, Params, check_model_name, load_params

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
KIND = "params.yaml"
KEY = tuple[str | int, ...]

COMMON = {
    "context_length": 64, "tokens_per_shard": 2**20, "valid_fraction": 0.02, "max_documents": None,
    "num_workers": 1, "cloze": None,
    "tokenizer": {"source": "train-words", "vocab_size": 1024, "revision": None},
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
    return values


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)


def keys_of(model: type[BaseModel], values: Any, at: KEY = ()) -> Iterator[KEY]:
    """Every field of the schema in these values, nested ones after the one that holds them."""
    for name, field in model.model_fields.items():
        yield (*at, name)
        inner = values[name]
        for part in models_in(field.annotation):
            if isinstance(inner, list):
                yield from keys_of(part, inner[0], (*at, name, 0))
            elif inner.keys() == part.model_fields.keys():
                yield from keys_of(part, inner, (*at, name))
            elif name == "schedule":
                yield from keys_of(part, inner["1"], (*at, name, "1"))


KEYS = [
    (corpus, key)
    for corpus in CORPORA
    for key in keys_of(Params, sound(corpus))
    if corpus == "stories" or "data" in key
]
SECTIONS = sorted({key[:-1] for _, key in KEYS}, key=str)


def get(values: Any, key: KEY) -> Any:
    for part in key:
        values = values[part]
    return values


def put(values: Any, key: KEY, value: Any) -> Any:
    get(values, key[:-1])[key[-1]] = value
    return values


NO_FIELD_TAKES = (
    math.nan, math.inf, -math.inf, -1, -0.5, -(2**63), 10**400, datetime.date(2020, 1, 1),
    b"bytes", {"nested": 1}, {}, [[]], [{}], [None], {1: 2}, "\x00", "a\x07b", "\x1b[2J", "two\nlines", "\ud800",
    "x" * 256, "\u00e9" * 128, ("tuple",) * 3 + (1,),
)  # fmt: skip


def test_the_schema_is_walked_to_its_leaves() -> None:
    leaves = {key[-1] for _, key in KEYS}
    for name in ("vocab_size", "teacher", "hub_id", "path", "num_cloze", "split", "epsilon", "num_repeats", "compile"):
        assert name in leaves
    assert len(KEYS) > 150


def test_what_no_field_takes_is_refused_in_every_field(
    refuse: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values come as YAML would give them; reading a file for each of ten thousand takes minutes."""
    given_values: list[Any] = []
    monkeypatch.setattr(settings, "_read_yaml", lambda path: given_values[0])
    for corpus, key in KEYS:
        for value in NO_FIELD_TAKES:
            given_values[:] = [put(sound_once(corpus), key, value)]
            # A section says which of its keys is wrong, and a list which of its entries.
            named = () if isinstance(value, dict | list | tuple) else (shown(value),)
            refuse(KIND, lambda: load_params(Path("params.yaml")), "params.yaml", str(key[0]), *named)


def test_nothing_is_made_a_number_or_text_that_is_not_one(
    refuse: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    given_values: list[Any] = []
    monkeypatch.setattr(settings, "_read_yaml", lambda path: given_values[0])
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
            given_values[:] = [put(sound_once(corpus), key, other)]
            refuse(KIND, lambda: load_params(Path("params.yaml")), str(key[0]), shown(other))


def sound_once(corpus: str) -> dict[str, Any]:
    return copy.deepcopy(SOUND[corpus])


SOUND = {corpus: sound(corpus) for corpus in CORPORA}


def test_sound_parameters_load_and_say_the_same(tmp_path: Path) -> None:
    for corpus in CORPORA:
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(SOUND[corpus]))
        assert load_params(path).model_dump(mode="json") == SOUND[corpus]


ANY_VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(
        [0, 1, 2**31 - 1, 2**31, 2**63, 1e308, 5e-324, "", " ", "1", "1e5", "yes", "null", "../../x", "~"]
    )
    | st.text(max_size=20)
    | st.dates()
    | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def assert_legal(params: Params, values: Any) -> None:
    """What was accepted is what was written, nothing was made of anything, and no number or text is out of bounds."""
    dumped = params.model_dump(mode="json")
    filled = copy.deepcopy(values)
    for text in filled["evaluate"]["likelihood_on"]:
        for name in ("hub_config", "split", "text_column"):
            text.setdefault(name, {"hub_config": None, "split": "test", "text_column": "text"}[name])
    assert dumped == filled
    assert_plain(dumped)


def assert_plain(value: Any) -> None:
    if isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            assert_plain(entry)
    elif isinstance(value, str):
        assert not any(ord(character) < 32 for character in value)
        value.encode()
    elif isinstance(value, int):
        assert 0 <= value <= MAX_INT
    elif value is not None:
        assert math.isfinite(value)
        assert value >= 0


def test_any_value_in_any_field_is_legal_or_refused(
    examples: Any, attempt: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("params") / "params.yaml"

    @examples(150)
    @given(st.sampled_from(KEYS), ANY_VALUE)
    def check(where: tuple[str, KEY], value: Any) -> None:
        corpus, key = where
        values = put(sound_once(corpus), key, value)
        path.write_text(yaml.safe_dump(values, allow_unicode=False), encoding="utf-8")
        if (params := attempt(KIND, lambda: load_params(path), str(path))) is not None:
            assert_legal(params, values)

    check()


def test_unknown_and_missing_keys_are_named_at_every_depth(
    examples: Any, refuse: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("params") / "params.yaml"

    @examples(60)
    @given(
        st.sampled_from(SECTIONS),
        st.text(max_size=12) | st.sampled_from(["seeds", "bätch_size", "two\nlines", "\x1b[2J", "<<", "x" * 5000, ""]),
        ANY_VALUE,
    )
    def unknown(section: KEY, name: str, value: Any) -> None:
        corpus = next(corpus for corpus, key in KEYS if key[:-1] == section)
        values = sound_once(corpus)
        if name in get(values, section):
            return
        get(values, section)[name] = value
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        refuse(KIND, lambda: load_params(path), str(path))

    @examples(60)
    @given(st.sampled_from([where for where in KEYS if where[1][-3:-1] != ("likelihood_on", 0)]))
    def missing(where: tuple[str, KEY]) -> None:
        values = sound_once(where[0])
        del get(values, where[1][:-1])[where[1][-1]]
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        refuse(KIND, lambda: load_params(path), str(path), str(where[1][0]))

    unknown()
    missing()


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmnopqrst"))
TRAPS: dict[str, str | bytes] = {
    "empty": "",
    "only a comment": "# nothing\n",
    "a list": "- 1\n- 2\n",
    "a scalar": "42\n",
    "a text": "just words",
    "null": "null\n",
    "two documents": f"{TEXT}---\n{TEXT}",
    "a key twice": f"{TEXT}seed: 1\n",
    "a nested key twice": TEXT.replace("  epsilon: 0.001\n", "  epsilon: 0.001\n  epsilon: 0.002\n"),
    "aliases": TEXT.replace("seed: 0", "seed: &s 4").replace("rounds: 4", "rounds: *s"),
    "an alias bomb": f"{BOMB}{TEXT}",
    "an alias bomb in a field": TEXT.replace("models:\n", f"{BOMB}models:\n"),
    "an alias of itself": f"x: &x [*x]\n{TEXT}",
    "a merge key": TEXT.replace("noise:\n", "noise:\n  <<: {epsilons: 1}\n"),
    "a tab": TEXT.replace("  epsilon", "\tepsilon"),
    "a Python object": TEXT.replace("seed: 0", "seed: !!python/object/apply:os.system ['touch pwned']"),
    "a Python name": TEXT.replace("seed: 0", "seed: !!python/name:os.system"),
    "a Python module": TEXT.replace("seed: 0", "seed: !!python/module:antigravity"),
    "a private tag": TEXT.replace("seed: 0", "seed: !secret 0"),
    "no such bool": TEXT.replace("compile: false", "compile: !!bool perhaps"),
    "no such int": TEXT.replace("seed: 0", "seed: !!int zero"),
    "no such float": TEXT.replace("epsilon: 0.001", "epsilon: !!float little"),
    "no such month": TEXT.replace("preset: laptop", "preset: 2020-13-01"),
    "no such time": TEXT.replace("preset: laptop", "preset: !!timestamp soon"),
    "an empty hexadecimal": TEXT.replace("seed: 0", "seed: 0x_"),
    "5000 digits": TEXT.replace("seed: 0", f"seed: {'1' * 5000}"),
    "5000 hexadecimal digits": TEXT.replace("device: auto", f"device: 0x{'f' * 5000}"),
    "a list as a key": f"{TEXT}? [1, 2]\n: 3\n",
    "a mapping as a key": f"{TEXT}? {{a: b}}\n: 3\n",
    "a number as a key": f"{TEXT}1: 2\n",
    "null as a key": f"{TEXT}~: 2\n",
    "nested deeply": "[" * 5000,
    "nested deeply in a field": TEXT.replace("seed: 0", "seed: " + "[" * 2000 + "]" * 2000),
    "unclosed": TEXT.replace("seed: 0", "seed: {a: [1"),
    "zero bytes": TEXT.encode() + b"\0\0",
    "UTF-16": TEXT.encode("utf-16"),
    "Latin-1": TEXT.replace("laptop", "l\xe4ptop").encode("latin-1"),
    "random bytes": bytes(range(256)) * 4,
    "a pickle": b"\x80\x04cposix\nsystem\n(S'touch pwned'\ntR.",
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03",
    "two megabytes": TEXT + "#" * 2**21,
    "rounds that nobody can wait for": TEXT.replace("rounds: 4", "rounds: 2147483647"),
    "rounds beyond the schedule": TEXT.replace("rounds: 4", "rounds: 30"),
    "a name that leaves its folder": TEXT.replace(
        "likelihood_on: []", "likelihood_on: [{name: .., source: a.txt}]"
    ),
    "a name that begins with a dot": TEXT.replace(
        "likelihood_on: []", "likelihood_on: [{name: .hidden, source: a.txt}]"
    ),
}  # fmt: skip


@pytest.mark.parametrize("trap", TRAPS)
def test_yaml_traps_are_refused(trap: str, tmp_path: Path, refuse: Callable[..., None]) -> None:
    content = TRAPS[trap]
    assert content != TEXT, "the trap was not set"
    path = tmp_path / "params.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refuse(KIND, lambda: load_params(path), str(path))
    assert [found.name for found in tmp_path.iterdir()] == ["params.yaml"]


def test_a_number_too_long_to_show_is_told_by_its_line(tmp_path: Path, refuse: Callable[..., None]) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(TEXT.replace("seed: 0", f"seed: 0x{'f' * 5000}"))
    refuse(KIND, lambda: load_params(path), "is too large", "line 2")


def test_the_same_in_other_words_is_accepted(tmp_path: Path, attempt: Callable[..., Any]) -> None:
    """A byte order mark, Windows line ends, JSON and comments are YAML too."""
    path = tmp_path / "params.yaml"
    expected = load_params(ROOT / "params.yaml")
    as_json = json.dumps(yaml.safe_load(TEXT)).replace("1e-08", "1.0e-8").replace("1e-05", "1.0e-5")
    for text in (f"\ufeff{TEXT}", TEXT.replace("\n", "\r\n"), as_json, f"# seed: 1\n{TEXT}", f"---\n{TEXT}...\n"):
        path.write_bytes(text.encode())
        assert attempt(KIND, lambda: load_params(path)) == expected


def test_mutated_files_are_refused_or_mean_what_they_say(
    examples: Any, attempt: Callable[..., Any], mutated: Callable[[bytes, int], bytes], tmp_path_factory: Any
) -> None:
    path = tmp_path_factory.mktemp("params") / "params.yaml"

    @examples(100)
    @given(st.integers(0, 2**32))
    def check(seed: int) -> None:
        path.write_bytes(mutated(TEXT.encode(), seed))
        if (params := attempt("params.yaml, mutated", lambda: load_params(path), str(path))) is not None:
            assert_legal(params, yaml.safe_load(path.read_text()))

    check()


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
    for trap in ("empty", "a key twice", "an alias bomb", "a Python object", "zero bytes", "5000 hexadecimal digits"):
        content = TRAPS[trap]
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        run_stage(KIND, main, *ARGUMENTS.get(stage, ()), named=("params.yaml",))
    for key, value in ((("pretrain", "learning_rate"), math.nan), (("seed",), -1), (("rounds",), "4")):
        path.write_text(yaml.safe_dump(put(sound(), key, value)))
        run_stage(KIND, main, *ARGUMENTS.get(stage, ()), named=(".".join(map(str, key)), shown(value)))


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
