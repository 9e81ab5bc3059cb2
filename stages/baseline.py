"""Stage `baseline`: the autoregressive model that samples are compared with and, without network, scored by."""

from pathlib import Path
from typing import Annotated

import typer

from halfstep.run import console

NUM_COMPARED = 1000
"""Sequences by which is judged what is the same in all."""


def main(
    model_name: Annotated[
        str, typer.Argument(metavar="MODEL", help="ar, of the denoiser's depth, or ar-N, of N blocks, one of `rivals`.")
    ] = "ar",
    params_path: Annotated[Path, typer.Option("--params", help="Composed parameters, read.")] = Path("params.yaml"),
    tokens_path: Annotated[Path, typer.Option("--tokens", help="Packed tokens, read.")] = Path("data/tokens"),
    tokenizer_path: Annotated[Path, typer.Option("--tokenizer", help="Tokenizer, read.")] = Path("data/tokenizer"),
    model_path: Annotated[Path | None, typer.Option("--model", help="Written (models/MODEL).")] = None,
    curve_path: Annotated[Path | None, typer.Option("--curve", help="Training curve, written.")] = None,
) -> None:
    """Train a GPT-2 of the denoiser's size on the same tokens by the same loop, or take it from a checkpoint.

    One of `rivals` has the same width and training, and a depth of its own.

    Reads the parameters, the tokens and the tokenizer; writes the model (transformers' layout, averaged weights, the
    tokenizer) and the training curve. Killed, it goes on from its last checkpoint.
    """
    import torch

    from halfstep.model.gpt2 import load_autoregressive, new_gpt2
    from halfstep.objectives.autoregressive import autoregressive_objective
    from halfstep.run.errors import UserError, one_line, shown
    from halfstep.run.files import local_or_hub
    from halfstep.run.fits import check_baseline
    from halfstep.settings import load_params
    from halfstep.settings.graph import BASELINE, depth_of, rivals_of
    from halfstep.training.fit import seed_weights
    from halfstep.training.stage import Stage

    params = load_params(params_path)
    is_rival = model_name != BASELINE
    if is_rival and model_name not in (rivals := rivals_of(params.rivals)):
        raise UserError(f"{params_path}: rivals are {one_line(', '.join(rivals))}, not {shown(model_name)}")
    stage = Stage.begin("baseline", params, tokens_path, tokenizer_path)
    settings, length = params.baseline, params.data.context_length
    if settings.init_from is not None and not is_rival:
        model = load_autoregressive(local_or_hub(settings.init_from), settings.init_revision)
        check_baseline(model.config, settings.init_from, vocab_size=stage.vocab_size, context_length=length)
    else:
        seed_weights(params.seed, "baseline")
        sizes = params.model.of_baseline
        sizes["num_blocks"] = depth_of(model_name) or sizes["num_blocks"]
        model = new_gpt2(vocab_size=stage.vocab_size, length=length, fills_in=bool(settings.num_givens), **sizes)
    # What is the same in every sequence, as BOS and EOS are, is given with every puzzle.
    some = stage.train_tokens[:NUM_COMPARED]
    is_known = (some == some[0]).all(axis=0)
    stage.train(
        f"rival@{depth_of(model_name)}" if is_rival else "baseline",
        model,
        autoregressive_objective(
            settings.num_givens, is_known=torch.from_numpy(is_known), mask_token_id=stage.mask_token_id
        ),
        model_path=model_path or Path("models") / model_name,
        curve_path=curve_path or Path(f"curves/{model_name}.csv"),
        data_seed=params.seed,
    )


if __name__ == "__main__":
    console.run(main)
