"""Edited inputs are noticed: whatever file, folder or glob a parameter names, and nothing but its content counts."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from stages import inputs as stage
from tests.composed import composed
from tests.model.hub_folders import published

from halfstep.run import inputs as module
from halfstep.run.errors import UserError
from halfstep.run.inputs import fingerprint, inputs_of
from halfstep.run.work import open_work
from halfstep.settings import Params, load_params, named_inputs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with `my/a.txt` and `my/b.txt`, whose stages run in another folder, as in DVC's queue."""
    root, copy = tmp_path / "project", tmp_path / "copy"
    for folder in (root / "my", copy):
        folder.mkdir(parents=True)
    for name in ("a", "b"):
        (root / "my" / f"{name}.txt").write_text(f"a cat named {name}\n")
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.delenv("DVC_STAGE", raising=False)
    return root


def compose(*overrides: str) -> Params:
    Path("params.yaml").write_text(composed(*overrides))
    return load_params(Path("params.yaml"))


def now(name: str, *overrides: str) -> dict[str, list[str]]:
    """What the inputs of a stage hold."""
    return fingerprint(inputs_of(compose(*overrides), name))


def age(*files: Path) -> None:
    """Make files old enough for their hashes to be kept."""
    for file in files:
        os.utime(file, (1e9, 1e9))


def append(path: Path) -> None:
    path.write_text(path.read_text() + "one more\n")


def edit_in_place(path: Path) -> None:
    """As long as before, and with the old time of its content."""
    before = path.stat()
    path.write_text(path.read_text().replace("cat", "dog"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_another(path: Path) -> None:
    """Of the same size and time."""
    before = path.stat()
    other = path.with_name("other")
    other.write_text(path.read_text().replace("cat", "cow"))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def link_elsewhere(path: Path) -> None:
    target = path.parents[2] / "elsewhere.txt"
    target.write_text("a cow\n")
    path.unlink()
    path.symlink_to(target)


TEXT = "data=text"
EDITS: dict[str, Callable[[Path], object]] = {
    "appended": append,
    "same size, time set back": edit_in_place,
    "replaced": replace_by_another,
    "linked elsewhere": link_elsewhere,
}
OTHERS: dict[str, Callable[[Path], object]] = {
    "added": lambda path: path.with_name("c.txt").write_text("a cow\n"),
    "removed": Path.unlink,
    "renamed": lambda path: path.rename(path.with_name("z.txt")),
}


@pytest.mark.parametrize(
    ("path", "edit"),
    [
        *((path, edit) for path in ("my", "[my/b.txt,**/*.txt]") for edit in {**EDITS, **OTHERS}),
        *(("my/a.txt", edit) for edit in EDITS),
    ],
)
def test_an_edited_corpus_is_noticed_and_an_edit_back_too(project: Path, path: str, edit: str) -> None:
    overrides = (TEXT, f"data.path={path}")
    first = now("prepare", *overrides)
    file = project / "my" / "a.txt"
    before = file.read_text()
    {**EDITS, **OTHERS}[edit](file)
    assert now("prepare", *overrides) != first
    for other in ("c.txt", "z.txt", "a.txt"):
        (project / "my" / other).unlink(missing_ok=True)
    file.write_text(before)
    assert now("prepare", *overrides) == first


def test_what_is_not_content_changes_nothing(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = (TEXT, "data.path=[my/a.txt,my/*.txt,my]")
    first = now("prepare", *overrides)
    assert [line.split("  ")[1] for line in next(iter(first.values()))] == ["a.txt", "b.txt"]
    a = project / "my" / "a.txt"
    for change in (a.touch, lambda: os.utime(a, (1, 1)), lambda: a.chmod(0o600), lambda: a.write_text(a.read_text())):
        change()
        assert now("prepare", *overrides) == first
    # The same files under a link, and in a project elsewhere.
    (project / "my").rename(tmp_path / "moved")
    (project / "my").symlink_to(tmp_path / "moved")
    assert now("prepare", *overrides) == first
    project.rename(tmp_path / "deeper")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "deeper"))
    assert now("prepare", *overrides) == first


def test_an_unchanged_file_is_read_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    real = module.file_hash
    monkeypatch.setattr(module, "file_hash", lambda path: reads.append(path) or real(path))
    monkeypatch.setattr(module, "NANOSECONDS_UNSURE", -1)
    first = now("prepare", TEXT, "data.path=my")
    assert now("prepare", TEXT, "data.path=my/*.txt").popitem()[1] == first.popitem()[1]
    assert len(reads) == 2
    (project / "my" / "a.txt").write_text("a dog named a\n")
    now("prepare", TEXT, "data.path=my")
    assert len(reads) == 3
    for broken in ("", "[]", '{"x": 1}', "{"):
        (project / ".halfstep" / "hashes.json").write_text(broken)
        now("prepare", TEXT, "data.path=my")


def test_a_file_that_was_just_written_is_read_again(project: Path) -> None:
    """Two edits within one tick of the file system's clock cannot be seen by times."""
    now("prepare", TEXT, "data.path=my")
    assert not (project / ".halfstep" / "hashes.json").exists()


FOLDERS = {
    "data.tokenizer.source": "prepare",
    "pretrain.init_from": "pretrain",
    "baseline.init_from": "baseline",
    "evaluate.scorer": "evaluate",
    "evaluate.downstream_include_path": "evaluate",
}
TASKS = "evaluate.downstream_tasks=[facts]"


@pytest.mark.parametrize("parameter", FOLDERS)
def test_an_edited_folder_is_noticed(project: Path, parameter: str) -> None:
    folder = project / "own"
    (folder / "inner").mkdir(parents=True)
    for name in ("config.json", "weights.ckpt", "inner/tasks.py"):
        (folder / name).write_text("1")
    overrides = (f"{parameter}=own", TASKS)
    seen = [now(FOLDERS[parameter], *overrides)]
    for name in ("config.json", "weights.ckpt", "inner/tasks.py"):
        (folder / name).write_text("2")
        seen.append(now(FOLDERS[parameter], *overrides))
    (folder / "config.json").rename(folder / "other.json")
    seen.append(now(FOLDERS[parameter], *overrides))
    assert len({json.dumps(found) for found in seen}) == 5
    # What Python compiles, what an editor and Git leave, a link that leads nowhere.
    for name in ("inner/__pycache__/tasks.pyc", ".git/index", "inner/.tasks.py.swp"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("3")
    (folder / "nowhere").symlink_to("none")
    assert now(FOLDERS[parameter], *overrides) == seen[-1]


@pytest.mark.parametrize(("parameter", "name"), [("data.cloze", "prepare"), ("pretrain.init_from", "pretrain")])
def test_an_edited_file_is_noticed(project: Path, parameter: str, name: str) -> None:
    file = project / "own.ckpt"
    file.write_text('{"text": "a cat sat"}')
    first = now(name, f"{parameter}=own.ckpt")
    edit_in_place(file)
    assert now(name, f"{parameter}=own.ckpt") != first


def test_edited_likelihood_texts_are_noticed_each_by_its_name(project: Path) -> None:
    sources = {"one": "my/a.txt", "all": "my/*.txt", "hub": "a/b"}
    texts = f"evaluate.likelihood_on=[{', '.join(f'{{name: {name}, source: {it}}}' for name, it in sources.items())}]"
    first = now("evaluate", texts)
    append(project / "my" / "b.txt")
    second = now("evaluate", texts)
    assert [name for name in first if first[name] != second[name]] == ["evaluate.likelihood_on.all=my/*.txt"]
    assert second["evaluate.likelihood_on.hub=a/b"] == []


def test_the_documentation_of_another_python_is_another_corpus(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = project / "lib"
    for name in ("os.py", "pydoc_data/topics.py", "test/test_os.py"):
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_text("'''A docstring.'''")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(library))
    [lines] = now("prepare", "data=pydocs").values()
    assert [line.split("  ")[1] for line in lines] == ["os.py", "pydoc_data/topics.py"]
    append(library / "pydoc_data" / "topics.py")
    assert now("prepare", "data=pydocs").popitem()[1] != lines


def test_what_is_composed_is_what_the_parameters_name(project: Path) -> None:
    """DVC runs `inputs` for exactly the stages that read files; for none by default."""
    cases: dict[tuple[str, ...], list[str]] = {
        (): [],
        ("preset=smoke",): [],
        ("data=pydocs",): ["prepare"],
        (TEXT, "data.path=a.txt"): ["prepare"],
        ("data.cloze=a/b",): ["prepare"],
        ("data.tokenizer.source=gpt2",): ["prepare"],
        ("pretrain.init_from=x", "baseline.init_from=y"): ["pretrain", "baseline"],
        ("evaluate.scorer=./models/ar/",): [],
        ("evaluate.scorer=models/mine",): ["evaluate"],
        ("evaluate.likelihood_on=[{name: a, source: b}]",): ["evaluate"],
        ("evaluate.downstream_include_path=tasks",): [],
        ("evaluate.downstream_include_path=tasks", TASKS): ["evaluate"],
        ("preset=paper",): ["prepare", "evaluate"],
        ("objective=gumbel",): [],
        ("objective=mmd",): [],
    }
    for overrides, expected in cases.items():
        params = compose(*overrides)
        assert params.inputs.stages == expected == [name for name, named in named_inputs(params).items() if named]
        none = "pipeline/no-inputs.json"
        assert params.inputs.files.model_dump(exclude={"scorer", "distill"}) == {
            name: f"inputs/{name}.json" if name in expected else none for name in named_inputs(params)
        }
        # evaluate waits for models/ar only where that judges the samples.
        is_baseline = params.evaluate.scorer in ("models/ar", "./models/ar/")
        assert params.inputs.files.scorer == ("models/ar" if is_baseline else none)
        assert params.inputs.files.distill == ("models/ar" if params.distill.asks_autoregressive else none)
        assert (ROOT / none).is_file()


def test_parameters_edited_by_hand_so_that_no_stage_watches_a_file_are_refused_under_dvc(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compose()
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["pretrain"]["init_from"] = "my/teacher"
    Path("params.yaml").write_text(yaml.safe_dump(values))
    load_params(Path("params.yaml"))
    monkeypatch.setenv("DVC_STAGE", "pretrain")
    with pytest.raises(UserError, match=r"contradicts itself: files are read by the stages \['pretrain'\]"):
        load_params(Path("params.yaml"))


def note(name: str, *overrides: str) -> Any:
    """Run the stage; what it wrote."""
    compose(*overrides)
    stage.main(name, Path("params.yaml"), None)
    return json.loads(Path(f"inputs/{name}.json").read_text())


def test_where_the_files_are_not_what_was_recorded_is_kept(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a clone that pulled the results."""
    (project / "own").mkdir()
    (project / "own" / "tokenizer.json").write_text("1")
    overrides = (TEXT, "data.path=[my/a.txt,my/b.txt]", "data.tokenizer.source=own", "data.cloze=a/b")
    noted = note("prepare", *overrides)
    assert noted["data.cloze=a/b"] == []
    for name in ("my", "own"):
        (project / name).rename(tmp_path / name)
    assert note("prepare", *overrides) == noted
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"{name} is not on this machine: the hashes recorded before are kept"
        for name in ("data.path=['my/a.txt', 'my/b.txt']", "data.tokenizer.source=own")
    ]
    # Another value was never noted, and where some of the files are there the others are missed.
    with pytest.raises(UserError, match="matches no file"):
        note("prepare", TEXT, "data.path=my/a.txt")
    (tmp_path / "my").rename(project / "my")
    (project / "my" / "b.txt").unlink()
    with pytest.raises(UserError, match="matches no file"):
        note("prepare", *overrides)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("prepare", (TEXT, "data.path=none/*.txt"), r"data\.path 'none/\*\.txt' matches no file"),
        ("prepare", ("data.cloze=none.jsonl",), r"data\.cloze 'none\.jsonl': .* is not there"),
        ("prepare", ("data.tokenizer.source=./none",), r"data\.tokenizer\.source '\./none': .* is not there"),
        ("pretrain", ("pretrain.init_from=a/b/none",), r"pretrain\.init_from 'a/b/none': .* is not there"),
        ("evaluate", ("evaluate.downstream_include_path=none", TASKS), r"include_path 'none': .* is not there"),
        ("evaluate", ("evaluate.likelihood_on=[{name: x, source: ./none}]",), r"likelihood_on\.x \(\./none\): "),
        ("distill", (), "stage distill reads no files"),
    ],
)
def test_a_file_that_is_nowhere_is_missed_before_anything_runs(
    project: Path, name: str, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        note(name, *overrides)
    assert not Path("inputs").exists()


@pytest.mark.parametrize("objective", ["di4c", "gumbel"])
def test_an_objective_that_adds_an_input_is_refused_before_a_hubs_model_is_taken(project: Path, objective: str) -> None:
    published(project / "hub", "llama", vocab_size=12, pad_token_id=None)
    overrides = ["pretrain.init_from=hub", "pretrain.init_shift=false", f"objective={objective}"]
    assert note("pretrain", *overrides[:-1])
    with pytest.raises(UserError, match=rf"objective is {objective}, which adds an input, .* -S objective=sdtt"):
        note("pretrain", *overrides)
    assert note("pretrain", *overrides, "rounds=0")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="everything is readable to root")
def test_a_file_that_may_not_be_read_is_named(project: Path) -> None:
    (project / "my" / "a.txt").chmod(0)
    with pytest.raises(UserError, match=r"a\.txt cannot be read"):
        now("prepare", TEXT, "data.path=my")


def test_work_on_another_content_is_other_work_and_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def path() -> Path:
        with open_work("prepare", {}, [], inputs_of(compose(TEXT, "data.path=my"), "prepare")) as work:
            (work.path / "kept").write_text("something")
            return work.path

    first = path()
    (project / "my" / "a.txt").touch()
    assert path() == first
    assert capsys.readouterr().err == ""
    edit_in_place(project / "my" / "a.txt")
    assert path() != first
    assert "is not used, for it differs in the content of data.path=my" in " ".join(capsys.readouterr().err.split())


def test_the_stage_needs_no_torch() -> None:
    """It runs whenever anything does."""
    code = "import sys; from stages import inputs; from halfstep.run import inputs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
