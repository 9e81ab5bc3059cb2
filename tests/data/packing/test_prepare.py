"""The stage `prepare`: what it writes fits together, and a user's mistake leaves nothing."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from stages import prepare as stage

from halfstep.data.corpora.stories import stories
from halfstep.data.packing import prepare as preparing
from halfstep.data.texts import reading
from halfstep.data.tokenizer import load_tokenizer
from halfstep.data.tokens.packed import load_tokens, verify_tokens
from halfstep.run.errors import UserError

ROOT = Path(__file__).parents[3]


def write_params(folder: Path, **data: Any) -> None:
    """The committed parameters, with those of the corpus changed."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"] = {**data}
    params["sample"]["num_prefixes"] = 4
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def prepare(folder: Path) -> None:
    stage.main(folder / "params.yaml", folder / "data/tokens", folder / "data/tokenizer", folder / "data/cloze.jsonl")


def prepared(folder: Path, data: dict[str, Any]) -> dict[str, bytes]:
    """The files of the tokens that the stage makes, by name."""
    write_params(folder, **data)
    prepare(folder)
    return {file.name: file.read_bytes() for file in (folder / "data/tokens").iterdir()}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in which the stage runs within the process of the tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    # The stage would change what ends the process of the tests.
    monkeypatch.setattr(signal, "signal", lambda number, handler: signal.SIG_DFL)
    return tmp_path


def corpus(**changes: Any) -> dict[str, Any]:
    common = {
        "source": "stories",
        "num_documents": 60,
        "num_cloze": 7,
        "context_length": 64,
        "tokens_per_shard": 2**20,
        "valid_fraction": 0.1,
        "max_documents": None,
        "num_workers": 1,
        "cloze": None,
        "tokenizer": {"source": "train-words", "vocab_size": 1024, "revision": None, "mask_token": None},
    }
    return {**common, **changes}


def gpt2(folder: Path, **sizes: int) -> None:
    """A baseline to start from, as far as `prepare` looks."""
    config = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, **sizes}
    (folder / "gpt2").mkdir()
    (folder / "gpt2/config.json").write_text(json.dumps(config))


BOOKS = {"name": "books", "source": "books.txt"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample.num_prefixes": 99}, r"validation split has \d+ sequences, fewer than sample\.num_prefixes 99: .*-S"),
        ({"data.cloze": "cloze.jsonl"}, r"^cloze\.jsonl line 3: 'alpha\\u200bomega' is not a cloze passage"),
        ({"data.cloze": "long.jsonl"}, r"^long\.jsonl line 2: .* has 66 tokens, more than fit into the 63"),
        ({"pretrain.init_from": "./none"}, r"pretrain\.init_from '\./none': /.* is not there"),
        ({"pretrain.init_from": "none"}, r"pretrain\.init_from 'none': /.* is not there"),
        ({"baseline.init_from": "my/models/gpt2"}, r"baseline\.init_from 'my/models/gpt2': /.* is not there"),
        ({"baseline.init_from": "."}, r"baseline\.init_from \. is not a causal language model's folder"),
        (
            {"baseline.init_from": "gpt2", "n_positions": 32},
            r"reads 32 tokens at most, .*context_length 64: .*=32",
        ),
        (
            {"baseline.init_from": "gpt2", "vocab_size": 20},
            r"gpt2 knows 20 tokens, fewer than the \d+ of the",
        ),
        ({"evaluate.scorer": "~/none"}, r"evaluate\.scorer '~/none': /.* is not there"),
        ({"evaluate.scorer": "scorers/smollm2"}, r"'scorers/smollm2': /.* is not there; make scorer makes it"),
        ({"evaluate.likelihood_on": [BOOKS]}, r"evaluate\.likelihood_on\.books \(books\.txt\): .* matches no file"),
        (
            {"evaluate.likelihood_on": [{**BOOKS, "source": "short.txt"}]},
            r"likelihood_on books .* context needs 62",
        ),
        (
            {"evaluate.downstream_tasks": ["a"], "evaluate.downstream_include_path": "none"},
            r"downstream_include_path 'none': /.* is not there",
        ),
    ],
)
def test_what_a_later_stage_would_refuse_is_refused(here: Path, changes: dict[str, Any], message: str) -> None:
    gpt2(here, **{name: changes.pop(name) for name in ("n_positions", "vocab_size") if name in changes})
    passage = '{"text": "two words"}\n'
    (here / "cloze.jsonl").write_text(passage + "\n" + '{"text": "alpha\\u200bomega"}\n')
    (here / "long.jsonl").write_text(passage + json.dumps({"text": "alpha " + 66 * "!"}))
    (here / "short.txt").write_text("too short")
    write_params(here, **corpus())
    params = yaml.safe_load(Path("params.yaml").read_text())
    for key, value in changes.items():
        section, _, name = key.partition(".")
        params[section][name] = value
    Path("params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(UserError, match=message):
        prepare(here)
    assert not (here / "data").exists()
    assert not list(here.rglob("train-*.npy"))


def test_what_it_writes_fits_together(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared(here, corpus())
    said = " ".join(capsys.readouterr().err.split())
    manifest = json.loads((here / "data/tokens/manifest.json").read_text())
    tokenizer = load_tokenizer(here / "data/tokenizer")
    assert manifest["vocab_size"] == len(tokenizer) == tokenizer.mask_token_id + 1
    assert "train 54 documents" in said
    assert "valid 6 documents" in said
    for name in ("train", "valid"):
        rows = load_tokens(here / "data/tokens", name)[:]
        assert rows.shape == (manifest[name]["num_sequences"], 64)
        assert (rows[:, 0] == tokenizer.bos_token_id).all()
        assert (rows[:, -1] == tokenizer.eos_token_id).all()
        assert (rows[:, 1:-1] < tokenizer.mask_token_id).all()
    assert verify_tokens(here / "data/tokens") == 2
    passages = [json.loads(line)["text"] for line in (here / "data/cloze.jsonl").read_text().splitlines()]
    assert len(passages) == 7
    assert f"vocabulary {len(tokenizer)}; 7 cloze passages" in said
    assert sorted(path.name for path in (here / "data").iterdir()) == ["cloze.jsonl", "tokenizer", "tokens"]
    assert not [path for path in (here / ".halfstep").rglob("*") if path.suffix == ".arrow"]


def own_texts(path: str) -> dict[str, Any]:
    """Parameters of a corpus of the user's own."""
    common = {key: value for key, value in corpus().items() if key not in ("num_documents", "num_cloze")}
    return common | {"source": "text", "path": path, "text_column": "text", "split_on_blank_lines": 1}


def write_stories(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, story in enumerate(stories(60, 0)):
        (folder / f"{number:02}.txt").write_text(story)


def test_the_same_tokens_lie_in_the_same_files_whatever_they_are_made_of(here: Path) -> None:
    """All that trains depends on these files: one cloze passage less trains nothing again."""
    first = prepared(here, corpus())
    write_stories(here / "my")
    (here / "cloze.jsonl").write_text('{"text": "two words"}')
    changes = ({"num_cloze": 6}, {"num_documents": 90, "max_documents": 60}, {"cloze": "cloze.jsonl"})
    for data in (*(corpus(**change) for change in changes), own_texts("my")):
        assert prepared(here, data) == first
    assert prepared(here, corpus(num_documents=61)) != first


def test_an_edited_corpus_is_not_gone_on_with(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stories(here / "my")

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    def read_a_second_time(*arguments: object) -> None:
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(preparing, "make_tokenizer", killed)
        with pytest.raises(KeyboardInterrupt):
            prepared(here, own_texts("my/*.txt"))
    for file in (here / "my").iterdir():
        file.touch()
    with monkeypatch.context() as patch:
        patch.setattr(preparing, "make_tokenizer", killed)
        patch.setattr(reading, "READERS", dict.fromkeys(reading.READERS, read_a_second_time))
        with pytest.raises(KeyboardInterrupt):
            prepared(here, own_texts("my/*.txt"))
    file = here / "my" / "07.txt"
    before, text = file.stat(), file.read_text()
    file.write_text(text.replace("a", "o"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    edited = prepared(here, own_texts("my/*.txt"))
    file.write_text(text)
    first = prepared(here, own_texts("my/*.txt"))
    monkeypatch.setenv("DVC_ROOT", str(here / "elsewhere"))
    write_stories(here / "elsewhere" / "my")
    assert prepared(here / "elsewhere", own_texts("my")) == first != edited
