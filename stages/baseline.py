"""Stage `baseline`: the autoregressive model that samples are compared with and, without network, scored by."""

from pathlib import Path
from typing import Annotated

import typer

from halfstep.run import console


def main(
    params_path: Annotated[Path, typer.Option("--params", help="Composed parameters, read.")] = Path("params.yaml"),
    tokens_path: Annotated[Path, typer.Option("--tokens", help="Packed tokens, read.")] = Path("data/tokens"),
    tokenizer_path: Annotated[Path, typer.Option("--tokenizer", help="Tokenizer, read.")] = Path("data/tokenizer"),
    model_path: Annotated[Path, typer.Option("--model", help="Baseline, written.")] = Path("models/ar"),
    curve_path: Annotated[Path, typer.Option("--curve", help="Training curve, written.")] = Path("curves/ar.csv"),
) -> None:
    """Train a GPT-2 of the denoiser's size on the same tokens by the same loop, or take it from a checkpoint.

    Reads the parameters, the tokens and the tokenizer; writes the model (transformers' layout, averaged weights, the
    tokenizer) and the training curve. Killed, it goes on from its last checkpoint.
    """
    from halfstep.model.gpt2 import load_autoregressive, new_gpt2
    from halfstep.objectives.autoregressive import autoregressive_objective
    from halfstep.run.files import local_or_hub
    from halfstep.run.fits import check_baseline
    from halfstep.settings import load_params
    from halfstep.training.fit import seed_weights
    from halfstep.training.stage import Stage

    stage = Stage.begin("baseline", load_params(params_path), tokens_path, tokenizer_path)
    params, settings, length = stage.params, stage.params.baseline, stage.params.data.context_length
    if settings.init_from is not None:
        model = load_autoregressive(local_or_hub(settings.init_from), settings.init_revision)
        check_baseline(model.config, settings.init_from, vocab_size=stage.vocab_size, context_length=length)
    else:
        seed_weights(params.seed, "baseline")
        sizes = params.model.model_dump(exclude={"cond_dim"})
        model = new_gpt2(vocab_size=stage.vocab_size, length=length, **sizes)
    stage.train(
        "baseline",
        model,
        autoregressive_objective(),
        model_path=model_path,
        curve_path=curve_path,
        data_seed=params.seed,
    )


if __name__ == "__main__":
    console.run(main)
