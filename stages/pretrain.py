"""Stage `pretrain`: the first teacher, a masked diffusion language model."""

from pathlib import Path
from typing import Annotated

import typer

from halfstep.run import console


def main(
    params_path: Annotated[Path, typer.Option("--params", help="Composed parameters, read.")] = Path("params.yaml"),
    tokens_path: Annotated[Path, typer.Option("--tokens", help="Packed tokens, read.")] = Path("data/tokens"),
    tokenizer_path: Annotated[Path, typer.Option("--tokenizer", help="Tokenizer, read.")] = Path("data/tokenizer"),
    model_path: Annotated[Path, typer.Option("--model", help="Teacher, written.")] = Path("models/0"),
    curve_path: Annotated[Path, typer.Option("--curve", help="Training curve, written.")] = Path("curves/0.csv"),
) -> None:
    """Train the first teacher (model 0) with the continuous-time negative ELBO, or take it from a checkpoint.

    Reads the parameters, the tokens and the tokenizer; writes the model (config.json, model.safetensors with the
    averaged weights, the tokenizer) and the training curve. Killed, it goes on from its last checkpoint.
    """
    import dataclasses

    from halfstep.data.fits import check_fits
    from halfstep.data.manifest import MANIFEST_FILE
    from halfstep.data.tokens import first_batches, load_tokens, token_batches, vocab_size_of
    from halfstep.diffusion.schedule import LogLinearSchedule
    from halfstep.model.config import DenoiserConfig
    from halfstep.model.denoiser import Denoiser
    from halfstep.model.loading import locate_weights
    from halfstep.objectives.nelbo import nelbo_objective
    from halfstep.run import ranks
    from halfstep.run.errors import UserError
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
    settings = params.pretrain
    enter(params.launch, params.runtime)
    accelerator = make_accelerator(params.runtime)
    train_tokens = load_tokens(tokens_path, "train")
    valid_tokens = load_tokens(tokens_path, "valid")
    vocab_size = vocab_size_of(tokens_path)
    check_fits(params, num_valid_sequences=len(valid_tokens), vocab_size=vocab_size)
    key_inputs = [tokens_path / MANIFEST_FILE]
    if settings.init_from is not None:
        source = local_or_hub(settings.init_from)
        model = Denoiser.from_pretrained(source, settings.init_revision)
        # Of a hub id; the content of files is among `inputs_of`.
        key_inputs.append(locate_weights(source, settings.init_revision))
        if (model.config.vocab_size, model.config.mask_token_id) != (vocab_size, vocab_size - 1):
            raise UserError(
                f"pretrain.init_from {settings.init_from} has {model.config.vocab_size} tokens, of which"
                f" {model.config.mask_token_id} masks, but the tokenizer in {tokenizer_path} has {vocab_size}, of which"
                f" the last one masks: set data.tokenizer.source to the one it was trained with"
            )
        # From here on it is trained and used so; its positions are rotary and have no end.
        length, noise_epsilon = params.data.context_length, params.noise.epsilon
        model.config = dataclasses.replace(model.config, length=length, noise_epsilon=noise_epsilon)
    else:
        seed_weights(params.seed, "pretrain")
        model = Denoiser(
            DenoiserConfig(
                vocab_size=vocab_size,
                mask_token_id=vocab_size - 1,
                length=params.data.context_length,
                noise_epsilon=params.noise.epsilon,
                **params.model.model_dump(),
            )
        )
    objective = nelbo_objective(
        schedule=LogLinearSchedule(params.noise.epsilon),
        min_time=settings.min_time,
        mask_token_id=model.config.mask_token_id,
    )
    values = params.deciding("seed", "runtime", "model", "noise", "pretrain")
    with open_work("pretrain", values, key_inputs, inputs_of(params, "pretrain")) as work:
        with live_run(params.model_dump(mode="json"), model="0") as log:
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
        record_stage("pretrain", curve_path, accelerator.device)
        work.finish()


if __name__ == "__main__":
    console.run(main)
