"""`halfstep COMMAND --help`: what is written in the code is what a user reads."""

import itertools

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from halfstep.tools.cli import app

# lm-eval's own help is lm-eval's.
COMMANDS = {name: command for name, command in get_command(app).commands.items() if name != "lm-eval"}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_loses_no_word_and_runs_on_over_lines(name: str) -> None:
    output = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"}).output
    command = COMMANDS[name]
    assert " ".join(command.help.replace("`", "").split()) in " ".join(output.split())
    for parameter in command.params:
        assert set((getattr(parameter, "help", None) or "").replace("`", "").split()) <= set(output.split())

    narrow = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "50"}).output.split("╭")[0].splitlines()
    for line, below in itertools.pairwise(map(str.strip, narrow)):
        assert not (line and below) or len(f"{line} {below.split()[0]}") > 48, "a line ends where it is full"
