import errno
import io
import re
import signal
import subprocess

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from halfstep.run import console
from halfstep.run.errors import Interrupted, MachineFault, UserError


def _exit_code_of(command) -> int | str | None:
    app = typer.Typer()
    app.command()(command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["command"])
        with pytest.raises(SystemExit) as raised:
            console.run_app(app)
    return raised.value.code


def test_a_users_mistake_is_one_line_and_exit_code_2(capfd: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise UserError("rounds is -1: give 0 or more [dim]")

    assert _exit_code_of(command) == 2
    assert capfd.readouterr().err.strip() == "error: rounds is -1: give 0 or more [dim]"


def test_an_interruption_exits_with_128_plus_the_signal(capfd: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise Interrupted(signal.SIGTERM, "stopped after step 3 of 9")

    assert _exit_code_of(command) == 143
    assert "stopped after step 3 of 9" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MachineFault("a process was\nended"), "error: a process was ended"),
        (OSError(errno.ENOSPC, "No space left on device", "models/0"), "models/0: no space is left on the disk"),
        (MemoryError(), "error: memory ran out: raise the stage's num_accumulation_steps"),
    ],
)
def test_a_fault_of_the_machine_is_one_line_and_exit_code_1(
    capfd: pytest.CaptureFixture[str], error: Exception, said: str
) -> None:
    def command() -> None:
        raise error

    assert _exit_code_of(command) == 1
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert said in line


def test_a_permission_denied_that_a_reader_took_for_a_broken_file_is_reported(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def command() -> None:
        try:
            raise PermissionError(errno.EACCES, "Permission denied", "/")
        except OSError:
            raise UserError("config.json is no JSON: make it again") from None

    assert _exit_code_of(command) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert line.startswith("error: /: permission denied: ")


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    def command() -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "models/0")

    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["command"])
        with pytest.raises(FileNotFoundError):
            console.run_app(app)


def test_on_a_narrow_terminal_the_note_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = io.StringIO()
    terminal = Console(file=seen, force_terminal=True, color_system=None, width=80, soft_wrap=True)
    monkeypatch.setattr(console, "console", terminal)
    with console.progress("frontier 0", 36, unit="way") as show:
        show(24, "ordered num_steps=16,score=entropy,noise=0.25,counts=cosine at 0.95")
    last = re.sub(r"\x1b\[[?\d]*\w", "", seen.getvalue()).strip().splitlines()[-1]
    assert re.fullmatch(r"frontier 0 ━+ +67% [-\d:]+ 24/36 \S+ way/s ordered.*…", last)
    assert len(last) <= 80


def test_progress_without_a_terminal_ends_with_a_line_that_says_all(capfd: pytest.CaptureFixture[str]) -> None:
    with console.progress("training", 3, unit="step") as show:
        for done in (1, 2, 3):
            show(done, f"loss {1 / done:.2f}")
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert line.startswith("training: 3/3, ")
    assert line.endswith("loss 0.33")


def test_the_ui_listens_on_this_machine_only_and_shows_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands can be listed by every user of a machine, environments cannot."""
    from halfstep.tools import cli

    calls = []

    def run(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        calls.append((command, env))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@server/runs")
    result = CliRunner().invoke(cli.app, ["ui", "--port", "5005"])
    assert (result.exit_code, len(calls)) == (0, 1)
    ((command, environment),) = calls
    assert command[1:] == ["-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", "5005"]
    assert environment["MLFLOW_BACKEND_STORE_URI"] == "postgresql://me:secret@server/runs"
    assert "secret" not in " ".join(command) + result.output
