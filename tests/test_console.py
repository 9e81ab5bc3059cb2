import signal
import subprocess

import pytest
import typer
from typer.testing import CliRunner

from halfstep import console
from halfstep.errors import Interrupted, UserError


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


def test_progress_without_a_terminal_ends_with_a_line_that_says_all(capfd: pytest.CaptureFixture[str]) -> None:
    with console.progress("training", 3, unit="step") as show:
        for done in (1, 2, 3):
            show(done, f"loss {1 / done:.2f}")
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert line.startswith("training: 3/3, ")
    assert line.endswith("loss 0.33")


def test_the_ui_listens_on_this_machine_only_and_tells_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands can be listed by every user of a machine, environments cannot."""
    from halfstep import cli

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
