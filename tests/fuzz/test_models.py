"""Model folders and tokenizers as people hand them in: loaded whole, or refused; nothing that they bring is run."""

import importlib
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from halfstep.data.packing.documents import store_documents
from halfstep.data.packing.shards import pack_documents
from halfstep.data.tokenizer import check_vocabulary, load_tokenizer, train_word_tokenizer, with_mask_token
from halfstep.evaluation.scorer import load_scorer
from halfstep.model.config import DenoiserConfig
from halfstep.model.denoiser import Denoiser
from halfstep.model.gpt2 import load_autoregressive, new_gpt2
from halfstep.model.loading import locate_weights, save_denoiser
from halfstep.samplers.base import Samples
from halfstep.samples.table import Batch, write_samples

pytestmark = pytest.mark.stage  # takes seconds
WEIGHTS = "model.safetensors"
CPU = torch.device("cpu")
TEXTS = ["One day Ann sat by the river.", "Ben ran to the river, and Ann sat."]
Loader = Callable[[Path], Any]


def load_as_scorer(folder: Path) -> Any:
    return load_scorer(str(folder), None, CPU)


LOADERS: dict[str, list[Loader]] = {
    "denoiser": [Denoiser.from_pretrained],
    "autoregressive": [load_autoregressive, load_as_scorer],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A denoiser and an autoregressive model with the tokenizer of both."""
    tokenizer = train_word_tokenizer(TEXTS, 40)
    root = tmp_path_factory.mktemp("models")
    vocab_size = len(tokenizer)
    denoiser = Denoiser(DenoiserConfig(vocab_size, vocab_size - 1, 8, 16, 2, 2, 4, 0.0, 1e-3))
    for name in ("denoiser", "autoregressive"):
        (root / name).mkdir()
        tokenizer.save_pretrained(root / name)
    save_denoiser(denoiser.config, denoiser, root / "denoiser")
    sizes = {"hidden_size": 16, "num_blocks": 2, "num_heads": 2, "dropout": 0.0}
    new_gpt2(vocab_size=vocab_size, length=8, **sizes).save_pretrained(root / "autoregressive")
    torch.save({"state_dict": denoiser.state_dict()}, root / "last.ckpt")
    return {"denoiser": root / "denoiser", "autoregressive": root / "autoregressive", "checkpoint": root / "last.ckpt"}


@pytest.fixture
def copied(models: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda kind: Path(shutil.copytree(models[kind], tmp_path / kind))


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where hostile files leave their trace; the test fails if they do."""
    trace = tmp_path / "ran"
    monkeypatch.chdir(tmp_path)
    # A question to the user, as transformers asks before it runs a repository's code, would wait for ever.
    monkeypatch.setattr("builtins.input", lambda prompt="": (trace.touch(), "n")[1])
    yield trace
    assert not trace.exists()


class Hostile:
    """Pickled, it is a command."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch '{self.trace}'",)


def header(entries: dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file, whose header may lie."""
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


BROKEN_WEIGHTS: dict[str, bytes] = {
    "empty": b"",
    "too short for a header": b"\x08\0\0",
    "a header beyond the file": header({}, length=2**40),
    "a header beyond memory": header({}, length=2**64 - 1),
    "a header that is no JSON": struct.pack("<Q", 4) + b"oops",
    "a header that is a list": struct.pack("<Q", 2) + b"[]",
    "offsets beyond the data": header({"a": tensor([4], 0, 16)}, b"\0" * 4),
    "a shape beyond its offsets": header({"a": tensor([2**40, 2**40], 0, 4)}, b"\0" * 4),
    "a shape that overflows": header({"a": tensor([2**63, 2], 0, 0)}),
    "overlapping tensors": header({"a": tensor([1], 0, 4), "b": tensor([1], 2, 6)}, b"\0" * 6),
    "a hole": header({"a": tensor([1], 4, 8)}, b"\0" * 8),
    "a number type that nobody has": header({"a": tensor([1], 0, 4, "F31")}, b"\0" * 4),
    "no tensors": header({}),
    "text": b"this is text and no weights",
}


@pytest.mark.parametrize("case", BROKEN_WEIGHTS)
@pytest.mark.parametrize("kind", LOADERS)
def test_broken_weights_are_refused(kind: str, case: str, copied: Any, refuse: Callable[..., None]) -> None:
    folder = copied(kind)
    (folder / WEIGHTS).write_bytes(BROKEN_WEIGHTS[case])
    for load in LOADERS[kind]:
        refuse(f"{kind} folders", lambda load=load: load(folder), str(folder))


@pytest.mark.parametrize("kind", LOADERS)
def test_weights_that_are_a_pickle_are_refused(
    kind: str, copied: Any, refuse: Callable[..., None], nothing_runs: Path
) -> None:
    """Under every name, as pickle and as torch saves it, in a dict or bare."""
    folder = copied(kind)
    (folder / WEIGHTS).unlink()
    hostile = Hostile(nothing_runs)
    for name in (WEIGHTS, "model.ckpt", "pytorch_model.bin", "model.pt", "model.pth"):
        for value in (hostile, {"state_dict": hostile}, {"hyper_parameters": hostile, "state_dict": {}}, [hostile]):
            for save in (pickle_to, torch.save, save_as_old_torch):
                save(value, folder / name)
                for load in LOADERS[kind]:
                    refuse("pickles in disguise", lambda load=load: load(folder), str(folder))
                if kind == "denoiser":
                    refuse("pickles in disguise", lambda path=folder / name: Denoiser.from_pretrained(path), name)
        (folder / name).unlink()


def pickle_to(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


def save_as_old_torch(value: Any, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("kind", LOADERS)
def test_code_that_a_model_brings_is_refused_and_nobody_is_asked(
    kind: str, copied: Any, refuse: Callable[..., None], attempt: Callable[..., Any], nothing_runs: Path
) -> None:
    folder = copied(kind)
    (folder / "own.py").write_text(f"open({str(nothing_runs)!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    auto_map = {name: f"own.{what}" for name, what in (
        ("AutoConfig", "Config"), ("AutoModel", "Model"), ("AutoModelForCausalLM", "Model"), ("AutoTokenizer", "Model"),
    )}  # fmt: skip
    values = json.loads((folder / "config.json").read_text())
    tokenizer_values = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**values, "model_type": "own", "auto_map": auto_map, "trust_remote_code": True})
    )
    if kind == "denoiser":
        Denoiser.from_pretrained(folder)
    else:
        for load in LOADERS[kind]:
            refuse("folders with code", lambda load=load: load(folder), str(folder))
        (folder / "config.json").write_text(json.dumps(values))
    tokenizer_values |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Model", "own.Model"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer_values, "trust_remote_code": True}))
    # Of a model that it knows, transformers takes its own tokenizer instead.
    attempt("folders with code", lambda: load_tokenizer(folder), str(folder))
    if kind == "autoregressive":
        attempt("folders with code", lambda: load_as_scorer(folder), str(folder))


NUMBERS: list[Any] = [
    0, -1, 1, 3, 2**31, 2**63, 10**30, 10**400, 1.5, -0.0, 1e308, "16", "x", "", None, True, [], {}, [16], {"a": 1},
]  # fmt: skip
RAW_NUMBERS = ("NaN", "Infinity", "-Infinity", "1" * 5000)


REQUIRED = ("vocab_size", "length", "hidden_size", "n_blocks", "n_heads", "cond_dim")
NO_SIZES = {"0", "-1", *map(json.dumps, (2**31, 10**30, 10**400, 1.5, True, None, [], {}, "x")), *RAW_NUMBERS}


@pytest.mark.parametrize("kind", LOADERS)
def test_any_number_in_a_configuration_loads_or_is_refused(
    kind: str, copied: Any, attempt: Callable[..., Any], refuse: Callable[..., None]
) -> None:
    folder = copied(kind)
    path, load = folder / "config.json", LOADERS[kind][0]
    values = json.loads(path.read_text())
    for key in [key for key, value in values.items() if isinstance(value, int | float | dict)]:
        for number in [*map(json.dumps, NUMBERS), *RAW_NUMBERS]:
            path.write_text(json.dumps({**values, key: "HERE"}).replace('"HERE"', number))
            is_no_size = kind == "denoiser" and key in REQUIRED and number in NO_SIZES
            (refuse if is_no_size else attempt)(f"{kind} folders", lambda: load(folder), str(folder))


@pytest.mark.parametrize(
    ("key", "number"),
    [("vocab_size", 2**31 - 1), ("hidden_size", 2**30), ("n_blocks", 2**31 - 1), ("cond_dim", 2**30)],
)
def test_sizes_that_the_weights_do_not_bear_out_are_refused_without_memory_for_them(
    key: str, number: int, copied: Any, refuse: Callable[..., None]
) -> None:
    folder = copied("denoiser")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: number, "mask_index": 5}))
    refuse("denoiser folders", lambda: Denoiser.from_pretrained(folder), str(folder))


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"{", b"{}", b"\xff\xfe", b"\0", b"[" * 100_000, b'{"a": ' * 100_000, b'"text"',
     b'{"model": 3}', b'{"model_type": "gpt3"}', b'{"model_type": 3}', b'{"model": {"n_blocks": 1}}'],
)  # fmt: skip
def test_broken_configurations_are_refused(kind: str, content: bytes, copied: Any, refuse: Callable[..., None]) -> None:
    folder = copied(kind)
    (folder / "config.json").write_bytes(content)
    for load in LOADERS[kind]:
        refuse(f"{kind} folders", lambda load=load: load(folder), str(folder))


@pytest.mark.parametrize("kind", LOADERS)
def test_missing_files_and_what_is_no_file_are_refused(kind: str, copied: Any, refuse: Callable[..., None]) -> None:
    folder = copied(kind)
    for name in ("config.json", WEIGHTS):
        content = (folder / name).read_bytes()
        for make in (os.mkfifo, os.mkdir, lambda path: os.symlink("/nowhere", path), lambda path: None):
            (folder / name).unlink()
            make(folder / name)
            for load in LOADERS[kind]:
                refuse(f"{kind} folders", lambda load=load: load(folder), str(folder))
            if (folder / name).is_dir():
                (folder / name).rmdir()
            else:
                (folder / name).unlink(missing_ok=True)
            (folder / name).write_bytes(content)
    shutil.rmtree(folder)
    for load in LOADERS[kind]:
        refuse(f"{kind} folders", lambda load=load: load(folder), str(folder))
    for source in ("", " ", "no/such/model", "../x", "a" * 300, "nobody/nothing", "\0", "x\ny/z"):
        refuse(f"{kind} folders", lambda source=source: (
            locate_weights(source) if kind == "denoiser" else load_autoregressive(source)
        ))  # fmt: skip


@pytest.mark.parametrize("kind", ["denoiser", "autoregressive", "checkpoint"])
def test_mutated_weights_load_or_are_refused(
    kind: str,
    models: dict[str, Path],
    examples: Any,
    attempt: Callable[..., Any],
    mutated: Callable[[bytes, int], bytes],
    tmp_path_factory: Any,
) -> None:
    folder = tmp_path_factory.mktemp("mutated") / kind
    shutil.copytree(models["denoiser" if kind == "checkpoint" else kind], folder)
    path = folder / WEIGHTS
    if kind == "checkpoint":
        path.unlink()
        path = folder / "last.ckpt"
        shutil.copyfile(models[kind], path)
    data, (load, *_) = path.read_bytes(), LOADERS.get(kind, [Denoiser.from_pretrained])
    # What describes the tensors, and a little of what they hold.
    head = 4000 if kind != "checkpoint" else len(data)

    @examples(25 if kind == "autoregressive" else 100)
    @given(st.integers(0, 2**32))
    def check(seed: int) -> None:
        path.write_bytes(mutated(data[:head], seed) + data[head:])
        attempt(f"{kind} files, mutated", lambda: load(folder), str(folder))

    check()


# Tokenizers


def pack(texts: list[str], tokenizer: Any, folder: Path) -> None:
    pack_documents(
        store_documents(texts, None, folder),
        np.ones(len(texts), np.bool_),
        tokenizer,
        folder,
        "train",
        context_length=8,
        tokens_per_shard=2**20,
        num_workers=1,
        on_documents=lambda done, note: None,
    )


def test_a_tokenizer_that_knows_no_token_for_the_unknown_is_refused(
    tmp_path: Path, refuse: Callable[..., None]
) -> None:
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2}))
    wrapped = with_mask_token(PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"))
    refuse("tokenizers", lambda: pack(["b"], wrapped, tmp_path), "data.tokenizer.source")


@pytest.mark.parametrize("change", [-3, -1, 0, 1, 3])
@pytest.mark.parametrize("kind", LOADERS)
def test_a_tokenizer_of_another_size_than_the_model_is_refused(
    kind: str, change: int, copied: Any, refuse: Callable[..., None], attempt: Callable[..., Any]
) -> None:
    folder = copied(kind)
    size = len(load_tokenizer(folder))
    other = train_word_tokenizer([" ".join(f"w{i}" for i in range(60))], size + change)
    other.save_pretrained(folder)
    config = LOADERS[kind][0](folder).config
    mask_token_id = config.mask_token_id if kind == "denoiser" else None
    # An autoregressive model may know more tokens than its tokenizer; of the mask it needs none.
    is_refused = change != 0 if kind == "denoiser" else change > 1

    def check() -> bool:
        check_vocabulary(other, folder, vocab_size=config.vocab_size, mask_token_id=mask_token_id)
        return True

    if is_refused:
        refuse("tokenizers", check, str(folder), str(size + change), str(size))
    else:
        assert attempt("tokenizers", check)
    if kind == "autoregressive" and is_refused:
        refuse("tokenizers", lambda: load_as_scorer(folder), str(folder))


@pytest.mark.parametrize(
    ("stage", "arguments"),
    [("sample", ("0", "--model", "denoiser")), ("evaluate", ("0", "--model", "denoiser")),
     ("sample", ("ar", "--model", "autoregressive"))],
)  # fmt: skip
def test_stages_refuse_a_model_with_another_tokenizer(
    stage: str,
    arguments: tuple[str, ...],
    copied: Any,
    tmp_path: Path,
    run_stage: Callable[..., str],
    write_tokens: Callable[..., None],
) -> None:
    values = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
    values["sample"] |= {"num_prefixes": 2}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    write_tokens(tmp_path / "data" / "tokens", {"train": np.zeros((4, 64), np.uint16)})
    (tmp_path / "data" / "cloze.jsonl").touch()
    folder = copied(arguments[-1])
    train_word_tokenizer([" ".join(f"w{i}" for i in range(60))], 50).save_pretrained(folder)
    ones = torch.ones(2, 4, dtype=torch.int64)
    batch = Batch("ancestral", "num_steps=4", 4, range(2), [-1, -1], Samples(ones, ones[:, 0], ones, ones[:, 0]))
    for kind in ("unconditional", "continuations"):
        write_samples(tmp_path / f"samples/0/{kind}.parquet", [batch], decode=str, metadata={"prefix_length": 0})
    run_stage("tokenizers", importlib.import_module(f"stages.{stage}").main, *arguments, named=(folder.name, "50"))


def places_in(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield (*at, key)
        yield from places_in(entry, (*at, key))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_any_value_in_a_tokenizer_loads_or_is_refused(
    name: str, models: dict[str, Path], examples: Any, attempt: Callable[..., Any], tmp_path_factory: Any
) -> None:
    """What loads also tokenizes, or says that it cannot."""
    folder = tmp_path_factory.mktemp("tokenizer")
    shutil.copytree(models["denoiser"], folder, dirs_exist_ok=True)
    values = json.loads((folder / name).read_text())
    places = list(places_in(values))
    texts = ["Ann sat by the unknown, river.\u202e\n"] * 20

    def use() -> bool:
        pack(texts, with_mask_token(load_tokenizer(folder)), folder)
        return True

    @examples(60)
    @given(
        st.sampled_from(places),
        st.sampled_from([*NUMBERS, "DELETE", "<|eos|>", "BPE", "own.py", "../../x", {"type": "WordLevel"}]),
    )
    def check(place: tuple[Any, ...], value: Any) -> None:
        changed = json.loads(json.dumps(values))
        inner = changed
        for key in place[:-1]:
            inner = inner[key]
        if value == "DELETE":
            del inner[place[-1]]
        else:
            inner[place[-1]] = value
        (folder / name).write_text(json.dumps(changed))
        attempt("tokenizers", use)

    check()


def test_mutated_tokenizers_load_or_are_refused(
    models: dict[str, Path],
    examples: Any,
    attempt: Callable[..., Any],
    mutated: Callable[[bytes, int], bytes],
    tmp_path_factory: Any,
) -> None:
    folder = tmp_path_factory.mktemp("tokenizer")
    shutil.copytree(models["denoiser"], folder, dirs_exist_ok=True)
    files = {name: (folder / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}

    @examples(60)
    @given(st.sampled_from(sorted(files)), st.integers(0, 2**32))
    def check(name: str, seed: int) -> None:
        for other, content in files.items():
            (folder / other).write_bytes(mutated(content, seed) if other == name else content)
        attempt("tokenizers, mutated", lambda: load_tokenizer(folder), str(folder))

    check()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b"\xff", b"[" * 100_000, b'{"model": null}'])
def test_broken_tokenizers_are_refused(content: bytes, copied: Any, refuse: Callable[..., None]) -> None:
    folder = copied("autoregressive")
    (folder / "tokenizer.json").write_bytes(content)
    refuse("tokenizers", lambda: load_tokenizer(folder), str(folder))
    refuse("tokenizers", lambda: load_as_scorer(folder), str(folder))
