"""Options of `halfstep bench`, each stated once: alone, or with those that go with it as the fields of a dataclass."""

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

SizeName = Annotated[str, typer.Option("--size", help="S1, S2, or a model group such as small.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Sequences at once.")]
TeacherSteps = Annotated[int, typer.Option(min=2, help="The teacher's denoising steps; the student takes half.")]
StepsList = Annotated[str, typer.Option("--num-steps", help="Denoising steps, such as 16,64,128.")]
Clock = Annotated[str, typer.Option(help="wall, or cpu: processor seconds, on a machine with other work to do.")]
Compile = Annotated[bool, typer.Option("--compile", help="torch.compile our networks' blocks.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the results there, too.")]


@dataclass(frozen=True)
class Shape:
    """Numbers that take the place of the named size's own."""

    vocab_size: Annotated[int | None, typer.Option(min=3, help="Tokens, the mask included.")] = None
    hidden_size: Annotated[int | None, typer.Option(min=2, help="Width.")] = None
    num_heads: Annotated[int | None, typer.Option(min=1, help="Attention heads.")] = None
    num_blocks: Annotated[int | None, typer.Option(min=1, help="Depth.")] = None
    length: Annotated[int | None, typer.Option(min=1, help="Tokens of a sequence.")] = None


@dataclass(frozen=True)
class Repeats:
    """How often a time is taken."""

    num_repeats: Annotated[int, typer.Option(min=1, help="Rounds that count; a round does each side once.")]
    num_warmups: Annotated[int, typer.Option(min=0, help="Rounds before those.")]


@dataclass(frozen=True)
class Machine:
    """Where it computes."""

    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto"
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto"
    num_threads: Annotated[int | None, typer.Option(min=1, help="CPU threads (all cores).")] = None


def fields_as_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command for Typer, which knows no dataclasses: each of their fields is an option of its own.

    Args:
        command: a parameter whose default is a dataclass is handed one; the fields of that default are the options'
            defaults.
    """
    parameters = inspect.signature(command).parameters
    groups: dict[str, Any] = {
        name: parameter.default for name, parameter in parameters.items() if is_dataclass(parameter.default)
    }

    @functools.wraps(command)
    def call(**options: Any) -> None:
        for name, default in groups.items():
            options[name] = replace(default, **{field.name: options.pop(field.name) for field in fields(default)})
        command(**options)

    def flat() -> Iterator[inspect.Parameter]:
        for name, parameter in parameters.items():
            if name not in groups:
                yield parameter
                continue
            for field in fields(parameter.default):
                default = getattr(parameter.default, field.name)
                yield parameter.replace(name=field.name, annotation=field.type, default=default)

    call.__signature__ = inspect.Signature(list(flat()))  # type: ignore[attr-defined]
    return call
