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

    A model that the first teacher is to begin as is asked for, before anything is made, whether it will do.
    Files that did not change since they were last read are not read again. Where a parameter's files are not on this
    machine, the hashes recorded before are kept.
    """
    from halfstep.run.errors import UserError
    from halfstep.run.files import read_json, resolve_user_path, write_json
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
    if stage == "pretrain" and params.pretrain.init_from is not None:
        _check_teacher(params, resolve_user_path(params.pretrain.init_from))
    write_json(inputs_path, found)


def _check_teacher(params: Any, folder: Path) -> None:
    """By its config.json and its tokenizer; one of the hub waits until `pretrain` asks for it, maybe elsewhere."""
    from halfstep.data.tokenizer import make_tokenizer, vocab_size_of
    from halfstep.model.hub import Description, check_shards, no_place
    from halfstep.model.loading import CONFIG_FILE
    from halfstep.model.opening import describe_first
    from halfstep.run.errors import UserError

    if not (folder / CONFIG_FILE).is_file():
        return
    mask_token_id, num_tokens = None, 0
    if not params.data.tokenizer.source.startswith("train-"):
        tokenizer = make_tokenizer(params.data.tokenizer, ())
        mask_token_id, num_tokens = tokenizer.mask_token_id, vocab_size_of(tokenizer)
    described = describe_first(
        params.pretrain,
        mask_token_id=mask_token_id,
        num_tokens=num_tokens,
        length=params.data.context_length,
        noise_epsilon=params.noise.epsilon,
    )
    if isinstance(described, Description) and params.rounds and getattr(params.distill.own, "adds_input", False):
        raise UserError(no_place(params.distill.objective))
    check_shards(folder)


def _is_there(value: Any) -> bool:
    """Whether there is anything at all of a name, or of one of several."""
    from halfstep.run.files import resolve_user_path

    paths = [str(resolve_user_path(source)) for source in ([value] if isinstance(value, str) else value)]
    return any(os.path.lexists(path) or glob.glob(path, recursive=True) for path in paths)


if __name__ == "__main__":
    console.run(main)
