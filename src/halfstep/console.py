"""How commands talk to a person: one console, one way to fail."""

import sys
from collections.abc import Callable

import typer
from rich.console import Console

from halfstep.errors import UserError

console = Console(stderr=True, highlight=False)

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def run(command: Callable[..., None]) -> None:
    """Run a function as a Typer command; a `UserError` becomes one line and exit code 2.

    Args:
        command: the function whose signature and docstring define the command line.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    run_app(app)


def run_app(app: typer.Typer) -> None:
    """Run a Typer app with the project's rules for errors and interruption."""
    try:
        app()
    except UserError as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        console.print("interrupted", style="yellow")
        sys.exit(EXIT_INTERRUPTED)
