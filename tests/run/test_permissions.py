"""Files and folders of another user: one line with the owner and the way out. And for whom our own files are."""

import email.policy  # noqa: F401  # as below
import os
import shutil
import sqlite3  # noqa: F401  # another user may not read the folder of this Python
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from halfstep.data.tokenizer import load_tokenizer, train_word_tokenizer
from halfstep.data.tokens.manifest import read_manifest
from halfstep.model.denoiser import Denoiser
from halfstep.model.gpt2 import load_autoregressive, new_gpt2
from halfstep.run import console
from halfstep.run.files import atomic_path, make_folder, write_json
from halfstep.run.work import open_work
from halfstep.samples.table import read_sample_sets
from halfstep.settings import load_params
from halfstep.tools import cli
from halfstep.training.checkpoint import CheckpointFolder

pytestmark = pytest.mark.system

OTHER = 65534
PARAMS = Path(__file__).parents[2] / "params.yaml"


def _run_by(user: int, folder: Path, command: Callable[[], object], *arguments: str) -> tuple[int, str]:
    """(exit code, output) of a call that another user makes in a folder."""
    reader, writer = os.pipe()
    if not (process := os.fork()):
        code = 99
        try:
            sys.argv = ["command", *arguments]
            sys.stdout = sys.stderr = os.fdopen(writer, "w", buffering=1)
            os.chdir(folder)
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            command()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 0
        except BaseException as error:
            print(repr(error))
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as output:
        said = output.read()
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), said


@pytest.fixture(scope="module")
def project() -> Iterator[Path]:
    """A project of root's in a place that all users can reach, which the folder of a test is not."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        shutil.copyfile(PARAMS, root / "params.yaml")
        tokenizer = train_word_tokenizer(["one two three"] * 3, vocab_size=20)
        for folder in ("models/0", "models/ar", "data/tokens", "samples/0", ".halfstep/work/checkpoints/step-1"):
            (root / folder).mkdir(parents=True)
        shutil.copytree(Path(__file__).parents[1] / "fixtures" / "mdlm-tiny-a", root / "models/0", dirs_exist_ok=True)
        new_gpt2(vocab_size=8, length=8, hidden_size=8, num_blocks=1, num_heads=1, dropout=0.0).save_pretrained(
            root / "models/ar"
        )
        for model in ("0", "ar"):
            tokenizer.save_pretrained(root / "models" / model)
        write_json(root / "data/tokens/manifest.json", {})
        write_json(root / ".halfstep/work/checkpoints/step-1/hashes.json", {})
        pq.write_table(pa.table({"num_steps": [1]}), root / "samples/0/unconditional.parquet")
        # What is imported late is imported now: the other user may not read the environment.
        for load in (load_tokenizer, load_autoregressive):
            load(root / "models/ar")
        yield root


REFUSED: dict[str, tuple[str, int, Callable[[], object]]] = {
    "params.yaml": ("params.yaml", 0o600, lambda: load_params(Path("params.yaml"))),
    "configuration": ("models/0/config.json", 0o600, lambda: Denoiser.from_pretrained("models/0")),
    "weights": ("models/0/model.safetensors", 0o600, lambda: Denoiser.from_pretrained("models/0")),
    "folder of models": ("models", 0o600, lambda: Denoiser.from_pretrained("models/0")),
    "model": ("models/0", 0o600, lambda: Denoiser.from_pretrained("models/0")),
    "model, not to be listed": ("models/0", 0o711, lambda: load_tokenizer(Path("models/0"))),
    "tokenizer": ("models/0/tokenizer.json", 0o600, lambda: load_tokenizer(Path("models/0"))),
    "tokenizer's folder": ("models", 0o600, lambda: load_tokenizer("models/0")),
    "baseline": ("models/ar", 0o700, lambda: load_autoregressive("models/ar")),
    "baseline's weights": ("models/ar/model.safetensors", 0o600, lambda: load_autoregressive("models/ar")),
    "manifest": ("data/tokens/manifest.json", 0o600, lambda: read_manifest(Path("data/tokens"))),
    "samples": (
        "samples/0/unconditional.parquet",
        0o600,
        lambda: read_sample_sets(Path("samples/0/unconditional.parquet")),
    ),
    "checkpoint": (
        ".halfstep/work/checkpoints/step-1/hashes.json",
        0o600,
        lambda: CheckpointFolder(Path(".halfstep/work/checkpoints"))._newest(),
    ),
    "folder to write to": ("models", 0o755, lambda: write_json(Path("models/1/config.json"), {})),
    "folder to replace": ("models", 0o755, lambda: Path("models/0").rename("models/2")),
    "work": (".halfstep/work", 0o755, lambda: open_work("pretrain", {}, []).__enter__()),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_another_users_is_one_line_with_its_owner_and_the_way_out(project: Path, name: str) -> None:
    path, mode, command = REFUSED[name]
    before = stat.S_IMODE((project / path).stat().st_mode)
    (project / path).chmod(mode)
    try:
        shown_mode = stat.filemode((project / path).stat().st_mode)
        code, said = _run_by(OTHER, project, lambda: console.run(lambda: command() and None))
    finally:
        (project / path).chmod(before)
    assert code in (console.EXIT_MACHINE_FAULT, console.EXIT_USER_ERROR), said
    (line,) = said.strip().splitlines()
    assert f"{path} belongs to root, mode {shown_mode}, and this is user {OTHER}: " in line
    assert f"sudo chown -R {OTHER} " in line


def test_ones_own_folder_that_is_not_writable_is_reported_with_its_mode(project: Path) -> None:
    folder = project / "own"
    folder.mkdir()
    os.chown(folder, OTHER, OTHER)
    folder.chmod(0o500)
    code, said = _run_by(OTHER, project, lambda: console.run(lambda: write_json(Path("own/metrics.json"), {})))
    assert code == console.EXIT_MACHINE_FAULT
    assert said.startswith("error: own/metrics.json: permission denied: own belongs to ")
    assert "mode dr-x------: chmod -R u+rwX own, then the same command goes on" in said


def test_what_is_missing_in_another_users_folder_is_missing(project: Path) -> None:
    _, said = _run_by(OTHER, project, lambda: console.run(lambda: read_manifest(Path("data")) and None))
    assert said.startswith("error: data/manifest.json is not there")


def test_a_file_named_on_the_command_line_is_refused_in_one_line(project: Path) -> None:
    """Typer would look beforehand, and say in a box that the path is not readable."""
    (project / "params.yaml").chmod(0o600)
    _, said = _run_by(OTHER, project, lambda: console.run_app(cli.app), "summary")
    (project / "params.yaml").chmod(0o644)
    assert said.startswith("error: params.yaml: permission denied: params.yaml belongs to root, mode -rw-------")
    assert len(said.splitlines()) == 1


@pytest.fixture(params=[0o022, 0o027, 0o002, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_the_umask_says_for_whom_files_are_whatever_a_library_made_of_them(tmp_path: Path, umask: int) -> None:
    with atomic_path(tmp_path / "new" / "model") as folder:
        (folder / "inner").mkdir(parents=True)
        Path(tempfile.mkdtemp(dir=folder))
        save_file({"x": np.zeros(3)}, folder / "inner" / "model.safetensors")
        (folder / "script").touch()
        (folder / "script").chmod(0o755)
    make_folder(tmp_path / "new")
    write_json(tmp_path / "new" / "metrics.json", {})
    for path in (tmp_path / "new").rglob("*"):
        expected = (0o777 if path.is_dir() else 0o666) & ~umask | (0o755 if path.name == "script" else 0)
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_what_has_another_name_keeps_its_mode(tmp_path: Path) -> None:
    """It may be DVC's, which protects what it keeps."""
    (tmp_path / "kept").touch()
    (tmp_path / "kept").chmod(0o444)
    with atomic_path(tmp_path / "folder") as folder:
        folder.mkdir()
        (folder / "file").hardlink_to(tmp_path / "kept")
    assert stat.S_IMODE((tmp_path / "kept").stat().st_mode) == 0o444


def test_what_export_writes_is_for_whom_the_umask_says(published: Path, tmp_path: Path, umask: int) -> None:
    from typer.testing import CliRunner

    result = CliRunner().invoke(cli.app, ["export", str(published), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert modes == {0o666 & ~umask}
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777 & ~umask
