"""Stage `distill@k`: one round of Self-Distillation Through Time."""

from pathlib import Path
from typing import Annotated

import typer

from halfstep.run import console


def main(
    round_index: Annotated[int, typer.Argument(min=1, help="Round, from 1.")],
    teacher_path: Annotated[Path | None, typer.Option("--teacher", help="Model before, read (models/ROUND-1).")] = None,
    student_path: Annotated[Path | None, typer.Option("--student", help="Model, written (models/ROUND).")] = None,
    params_path: Annotated[Path, typer.Option("--params", help="Composed parameters, read.")] = Path("params.yaml"),
    tokens_path: Annotated[Path, typer.Option("--tokens", help="Packed tokens, read.")] = Path("data/tokens"),
    tokenizer_path: Annotated[Path, typer.Option("--tokenizer", help="Tokenizer, read.")] = Path("data/tokenizer"),
    curve_path: Annotated[Path | None, typer.Option("--curve", help="Written (curves/ROUND.csv).")] = None,
) -> None:
    """Distill one round: its student learns to do in one denoising step what its teacher does in several.

    Reads the parameters, the tokens, the tokenizer and the model before; writes the student (averaged weights, the
    tokenizer, and the training state from which the next round goes on) and its training curve. Killed, it goes on
    from its last checkpoint.
    """
    import copy

    from halfstep.data.fits import check_prefixes
    from halfstep.data.manifest import MANIFEST_FILE
    from halfstep.data.seeds import derive_seed
    from halfstep.data.tokens import first_batches, load_tokens, token_batches, vocab_size_of
    from halfstep.diffusion.divergences import DIVERGENCES
    from halfstep.diffusion.schedule import LogLinearSchedule
    from halfstep.model.denoiser import Denoiser
    from halfstep.objectives.nelbo import nelbo_objective
    from halfstep.objectives.sdtt import distillation_objective, teacher_step_size
    from halfstep.run import ranks
    from halfstep.run.errors import UserError, nan_as_user_error
    from halfstep.run.launch import enter
    from halfstep.run.stage_times import record_stage
    from halfstep.run.work import open_work
    from halfstep.settings import load_params
    from halfstep.tracking.live import live_run
    from halfstep.training.output import write_curve, write_model
    from halfstep.training.parallel import is_teacher_shared, lay_out_teacher, make_accelerator
    from halfstep.training.session import CarriedOver, fit, load_raw_weights

    params = load_params(params_path)
    settings = params.distill
    if round_index > params.rounds:
        raise UserError(
            f"round {round_index} is not one of the {params.rounds} rounds in {params_path}:"
            f" dvc exp run -S rounds={round_index}"
        )
    teacher_path = teacher_path or Path(f"models/{round_index - 1}")
    student_path = student_path or Path(f"models/{round_index}")
    curve_path = curve_path or Path(f"curves/{round_index}.csv")
    enter(params.launch, params.runtime)
    accelerator = make_accelerator(params.runtime)
    train_tokens = load_tokens(tokens_path, "train")
    valid_tokens = load_tokens(tokens_path, "valid")
    check_prefixes(params, len(valid_tokens))

    # The first teacher is a finished model; from then on the paper's rounds go on from the training state.
    carried_over = None
    teacher = Denoiser.from_pretrained(teacher_path)
    if teacher.config.vocab_size != (vocab_size := vocab_size_of(tokens_path)):
        raise UserError(
            f"the teacher {teacher_path} has {teacher.config.vocab_size} tokens, but {tokens_path} are of {vocab_size}:"
            " give --teacher and --tokens that belong together, or make both again: dvc repro"
        )
    if round_index > 1:
        if settings.next_teacher == "student":
            load_raw_weights(teacher, teacher_path)
        carried_over = CarriedOver(teacher_path, optimizer=not settings.reset_optimizer, ema=not settings.reset_ema)
    student = copy.deepcopy(teacher)
    lay_out_teacher(teacher, accelerator, params.runtime, params.launch)

    mask_token_id = student.config.mask_token_id
    schedule = LogLinearSchedule(params.noise.epsilon)
    with open_work(
        f"distill-{round_index}",
        params.deciding("seed", "runtime", "noise", "distill"),
        [tokens_path / MANIFEST_FILE, teacher_path],
    ) as work:
        with live_run(params.model_dump(mode="json"), model=str(round_index)) as log, nan_as_user_error(teacher_path):
            state = fit(
                work,
                student,
                settings,
                runtime=params.runtime,
                launch=params.launch,
                objective=distillation_objective(
                    teacher,
                    dt=teacher_step_size(round_index, settings.base_num_steps, settings.num_teacher_steps),
                    num_teacher_steps=settings.num_teacher_steps,
                    divergence=DIVERGENCES[settings.distance],
                    schedule=schedule,
                    min_time=settings.min_time,
                    mask_token_id=mask_token_id,
                    asks_in_every_step=is_teacher_shared(params.launch),
                ),
                valid_objective=nelbo_objective(
                    schedule=schedule, min_time=settings.min_time, mask_token_id=mask_token_id
                ),
                batch_at=lambda step: token_batches(
                    train_tokens,
                    settings.batch_size,
                    seed=derive_seed(params.seed, "distill", round_index),
                    start_step=step,
                    rows=ranks.share(),
                ),
                valid_batches=lambda: first_batches(valid_tokens, settings.num_valid_sequences, settings.batch_size),
                seed=params.seed,
                accelerator=accelerator,
                log=log,
                carried_over=carried_over,
            )
        write_model(state, student_path, tokenizer_path, save=student.save_pretrained, keep_train_state=True)
        write_curve(state.curve, curve_path)
        record_stage(f"distill@{round_index}", curve_path, accelerator.device)
        work.finish()


if __name__ == "__main__":
    console.run(main)
