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

    import numpy as np
    import torch

    from halfstep.diffusion.schedule import LogLinearSchedule
    from halfstep.model.config import DenoiserConfig
    from halfstep.model.denoiser import Denoiser
    from halfstep.model.hub import HubModel
    from halfstep.model.loading import CONFIG_FILE, HUB_WEIGHTS, locate
    from halfstep.model.opening import open_first
    from halfstep.objectives.nelbo import nelbo_objective
    from halfstep.run.files import local_or_hub
    from halfstep.settings import load_params
    from halfstep.training.first import check_bound
    from halfstep.training.fit import seed_weights
    from halfstep.training.stage import Stage

    stage = Stage.begin("pretrain", load_params(params_path), tokens_path, tokenizer_path)
    params, settings, vocab_size = stage.params, stage.params.pretrain, stage.vocab_size
    files = []
    # New are all weights, or those of a token that a model of others lacks.
    seed_weights(params.seed, "pretrain")
    if settings.init_from is not None:
        length = params.data.context_length
        model = open_first(
            settings,
            num_tokens=vocab_size,
            mask_token_id=stage.mask_token_id,
            length=length,
            noise_epsilon=params.noise.epsilon,
        )
        # Of a hub id; the content of local files is part of the key already.
        found = locate(local_or_hub(settings.init_from), settings.init_revision, CONFIG_FILE, HUB_WEIGHTS)
        files = [found] if found.is_file() else sorted(found.glob(HUB_WEIGHTS))
        # It is used at this length from here on; positions that are only rotary have no end.
        model.config = dataclasses.replace(model.config, length=length)
        if settings.num_train_steps:
            model.config = dataclasses.replace(model.config, noise_epsilon=params.noise.epsilon)
    else:
        model = Denoiser(
            DenoiserConfig(
                vocab_size=vocab_size,
                mask_token_id=stage.mask_token_id,
                length=params.data.context_length,
                noise_epsilon=params.noise.epsilon,
                **params.model.model_dump(),
            )
        )
    objective = nelbo_objective(
        schedule=LogLinearSchedule(model.config.noise_epsilon),
        min_time=settings.min_time,
        mask_token_id=model.config.mask_token_id,
    )
    if isinstance(model, HubModel) and not settings.num_train_steps:
        tokens = torch.from_numpy(stage.valid_tokens.stored(slice(16)).astype(np.int64))
        check_bound(model, tokens, objective, seed=params.seed)
    stage.train(
        "pretrain",
        model,
        objective,
        model_path=model_path,
        curve_path=curve_path,
        data_seed=params.seed,
        files=files,
    )


if __name__ == "__main__":
    console.run(main)
