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
    from halfstep.data.fits import check_baseline, check_fits
    from halfstep.data.manifest import MANIFEST_FILE
    from halfstep.data.tokens import first_batches, load_tokens, token_batches, vocab_size_of
    from halfstep.model.gpt2 import load_autoregressive, new_gpt2
    from halfstep.objectives.autoregressive import autoregressive_objective
    from halfstep.run import ranks
    from halfstep.run.files import local_or_hub
    from halfstep.run.inputs import inputs_of
    from halfstep.run.launch import enter
    from halfstep.run.stage_times import record_stage
    from halfstep.run.work import open_work
    from halfstep.settings import load_params
    from halfstep.tracking.live import live_run
    from halfstep.training.output import write_curve, write_model
    from halfstep.training.parallel import make_accelerator
    from halfstep.training.session import fit, seed_weights

    params = load_params(params_path)
    settings = params.baseline
    enter(params.launch, params.runtime)
    accelerator = make_accelerator(params.runtime)
    train_tokens = load_tokens(tokens_path, "train")
    valid_tokens = load_tokens(tokens_path, "valid")
    vocab_size = vocab_size_of(tokens_path)
    check_fits(params, num_valid_sequences=len(valid_tokens), vocab_size=vocab_size)
    if settings.init_from is not None:
        source = local_or_hub(settings.init_from)
        model = load_autoregressive(source, settings.init_revision)
        length = params.data.context_length
        check_baseline(model.config, settings.init_from, vocab_size=vocab_size, context_length=length)
    else:
        seed_weights(params.seed, "baseline")
        model = new_gpt2(
            vocab_size=vocab_size,
            length=params.data.context_length,
            hidden_size=params.model.hidden_size,
            num_blocks=params.model.num_blocks,
            num_heads=params.model.num_heads,
            dropout=params.model.dropout,
        )
    objective = autoregressive_objective()
    values = params.deciding("seed", "runtime", "model", "baseline")
    with open_work("baseline", values, [tokens_path / MANIFEST_FILE], inputs_of(params, "baseline")) as work:
        with live_run(params.model_dump(mode="json"), model="ar") as log:
            state = fit(
                work,
                model,
                settings,
                runtime=params.runtime,
                launch=params.launch,
                objective=objective,
                valid_objective=objective,
                batch_at=lambda step: token_batches(
                    train_tokens, settings.batch_size, seed=params.seed, start_step=step, rows=ranks.share()
                ),
                valid_batches=lambda: first_batches(valid_tokens, settings.num_valid_sequences, settings.batch_size),
                seed=params.seed,
                accelerator=accelerator,
                log=log,
            )
        write_model(state, model_path, tokenizer_path, save=model.save_pretrained, keep_train_state=False)
        write_curve(state.curve, curve_path)
        record_stage("baseline", curve_path, accelerator.device)
        work.finish()


if __name__ == "__main__":
    console.run(main)
