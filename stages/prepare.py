"""Stage `prepare`: the corpus as packed tokens, its tokenizer and its cloze passages."""

from pathlib import Path
from typing import Annotated

import typer

from halfstep.run import console


def main(
    params_path: Annotated[Path, typer.Option("--params", help="Composed parameters, read.")] = Path("params.yaml"),
    tokens_path: Annotated[
        Path, typer.Option("--tokens", help="Shards of packed tokens and manifest.json, written.")
    ] = Path("data/tokens"),
    tokenizer_path: Annotated[Path, typer.Option("--tokenizer", help="Tokenizer with the mask token, written.")] = Path(
        "data/tokenizer"
    ),
    cloze_path: Annotated[
        Path, typer.Option("--cloze", help="Cloze passages, written; one empty line if there are none.")
    ] = Path("data/cloze.jsonl"),
) -> None:
    """Turn the corpus into packed tokens.

    Reads the parameters and the corpus they name (built in, local files, or a data set of the hub); writes
    the tokens of the training and the validation documents, the tokenizer, and the cloze passages. Killed, it goes on
    after the last documents whose tokens it had noted.
    """
    from halfstep.data.packing.documents import open_corpus
    from halfstep.data.packing.prepare import check_sources, prepare, publish
    from halfstep.data.tokens.manifest import MANIFEST_FILE
    from halfstep.run.device import select_device
    from halfstep.run.inputs import inputs_of
    from halfstep.run.signals import stops_at_signals
    from halfstep.run.stage_times import record_stage
    from halfstep.run.work import open_work
    from halfstep.settings import load_params

    params = load_params(params_path)
    # Before the long part, which a mistake in them would make vain.
    if params.runtime.device == "cuda" and not params.launch.start_with:
        # What starts the other stages elsewhere may find devices there that are not here.
        select_device(params.runtime.device)
    check_sources(params)
    with (
        open_work("prepare", params.deciding("seed", "data"), [], inputs_of(params, "prepare")) as work,
        stops_at_signals(lambda: "prepare: stopped; the same command goes on from there"),
    ):
        with open_corpus(params.data, params.seed, work.path) as documents:
            manifest = prepare(documents, params, work.path)
            publish(work.path, manifest, tokens_path, tokenizer_path, cloze_path)
        record_stage("prepare", tokens_path / MANIFEST_FILE)
        work.finish()


if __name__ == "__main__":
    console.run(main)
