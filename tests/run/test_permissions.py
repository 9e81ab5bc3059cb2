"""Files and folders of another user are one line. And for whom our own files are."""

import email.policy  # noqa: F401  # as below
import os
import re
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
from halfstep.model.denoiser import Denoiser
from halfstep.model.gpt2 import load_autoregressive, new_gpt2
from halfstep.run import console
from halfstep.run.files import atomic_path, make_folder, write_json
from halfstep.run.work import open_work
from halfstep.samples.table import read_sample_sets
from halfstep.settings import load_params

pytestmark = pytest.mark.system

OTHER = 65534
PARAMS = Path(__file__).parents[2] / "params.yaml"


def _run_by(user: int, folder: Path, command: Callable[[], object]) -> tuple[int, str]:
    """(exit code, output) of a call that another user makes in a folder."""
    reader, writer = os.pipe()
    if not (process := os.fork()):
        code = 99
        try:
            sys.argv = ["command"]
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
        shutil.copytree(Path(__file__).parents[1] / "fixtures" / "mdlm-tiny-a", root / "models/0")
        gpt2 = new_gpt2(vocab_size=8, length=8, hidden_size=8, num_blocks=1, num_heads=1, dropout=0.0)
        gpt2.save_pretrained(root / "models/ar")
        train_word_tokenizer(["one two three"] * 3, vocab_size=20).save_pretrained(root / "models/ar")
        for folder in ("samples", ".halfstep/work"):
            (root / folder).mkdir(parents=True)
        pq.write_table(pa.table({"num_steps": [1]}), root / "samples/0.parquet")
        # What is imported late is imported now: the other user may not read the environment.
        for load in (load_tokenizer, load_autoregressive):
            load(root / "models/ar")
        yield root


REFUSED: dict[str, tuple[int, Callable[[], object]]] = {
    "params.yaml": (0o600, lambda: load_params(Path("params.yaml"))),
    "models/0/config.json": (0o600, lambda: Denoiser.from_pretrained("models/0")),
    "models/0/model.safetensors": (0o600, lambda: Denoiser.from_pretrained("models/0")),
    "models/ar/tokenizer.json": (0o600, lambda: load_tokenizer(Path("models/ar"))),
    "models/ar": (0o700, lambda: load_autoregressive("models/ar")),
    "models/ar/model.safetensors": (0o600, lambda: load_autoregressive("models/ar")),
    "samples/0.parquet": (0o600, lambda: read_sample_sets(Path("samples/0.parquet"))),
    "models/": (0o755, lambda: write_json(Path("models/1/config.json"), {})),
    ".halfstep/work": (0o755, lambda: open_work("pretrain", {}, []).__enter__()),
}


@pytest.mark.parametrize("path", REFUSED)
def test_what_another_user_may_not_read_or_write_is_one_line(project: Path, path: str) -> None:
    mode, command = REFUSED[path]
    before = stat.S_IMODE((project / path).stat().st_mode)
    (project / path).chmod(mode)
    try:
        code, said = _run_by(OTHER, project, lambda: console.run(lambda: command() and None))
    finally:
        (project / path).chmod(before)
    assert code in (console.EXIT_MACHINE_FAULT, console.EXIT_USER_ERROR), said
    (line,) = said.strip().splitlines()
    assert re.match(rf"error: \S*{path}\S*: permission denied: give this user access to it", line)


@pytest.fixture(params=[0o022, 0o077], ids=oct)
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
