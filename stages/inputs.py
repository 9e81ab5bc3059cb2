"""Stage `inputs@NAME`: what the user's own files hold that another stage reads."""

import glob
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from halfstep.run import console


def main(
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="prepare, pretrain, baseline or evaluate")],
    params_path: Annotated[Path, typer.Option("--params", help="Composed parameters, read.")] = Path("params.yaml"),
    inputs_path: Annotated[
        Path | None, typer.Option("--inputs", help="Hashes of the files, written (inputs/STAGE.json).")
    ] = None,
) -> None:
    """Record the SHA-256 of the files that a stage's parameters name, so that DVC runs it again when they are edited.

    Files that did not change since they were last read are not read again. Where a parameter's files are not on this
    machine, the hashes recorded before are kept.
    """
    from halfstep.run.errors import UserError
    from halfstep.run.files import read_json, write_json
    from halfstep.run.inputs import fingerprint, inputs_of
    from halfstep.settings import load_params, named_inputs

    params = load_params(params_path)
    named = named_inputs(params)
    if stage not in named:
        raise UserError(f"stage {stage} reads no files that a parameter names: give one of {', '.join(named)}")
    inputs_path = inputs_path or Path("inputs") / f"{stage}.json"
    try:
        recorded = read_json(inputs_path)
    except (OSError, ValueError):
        recorded = {}
    found: dict[str, list[str]] = {}
    inputs = inputs_of(params, stage)
    for (name, find), value in zip(inputs.items(), named[stage].values(), strict=True):
        is_gone = bool(recorded.get(name)) and not _is_there(value)
        try:
            found |= fingerprint({name: find})
        except UserError:
            if not is_gone:
                raise
            found[name] = []
        if is_gone and not found[name]:
            line = f"{name} is not on this machine: the hashes recorded before are kept"
            console.console.print(line)
            found[name] = recorded[name]
    write_json(inputs_path, found)


def _is_there(value: Any) -> bool:
    """Whether there is anything at all of a name, or of one of several."""
    from halfstep.run.files import resolve_user_path

    paths = [str(resolve_user_path(source)) for source in ([value] if isinstance(value, str) else value)]
    return any(os.path.lexists(path) or glob.glob(path, recursive=True) for path in paths)


if __name__ == "__main__":
    console.run(main)
