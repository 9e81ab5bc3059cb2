"""Stage `distill@k`: one round of distillation."""

from pathlib import Path
from typing import Annotated, Any

import typer

from halfstep.run import console


def main(
    round_index: Annotated[int, typer.Argument(min=1, help="Round, from 1.")],
    teacher_path: Annotated[Path | None, typer.Option("--teacher", help="Model before, read (models/ROUND-1).")] = None,
    state_path: Annotated[
        Path | None, typer.Option("--state", help="Training state before, read from round 2 on (states/ROUND-1).")
    ] = None,
    student_path: Annotated[Path | None, typer.Option("--student", help="Model, written (models/ROUND).")] = None,
    student_state_path: Annotated[
        Path | None, typer.Option("--student-state", help="Training state, written (states/ROUND).")
    ] = None,
    params_path: Annotated[Path, typer.Option("--params", help="Composed parameters, read.")] = Path("params.yaml"),
    tokens_path: Annotated[Path, typer.Option("--tokens", help="Packed tokens, read.")] = Path("data/tokens"),
    tokenizer_path: Annotated[Path, typer.Option("--tokenizer", help="Tokenizer, read.")] = Path("data/tokenizer"),
    curve_path: Annotated[Path | None, typer.Option("--curve", help="Written (curves/ROUND.csv).")] = None,
    baseline_path: Annotated[
        Path, typer.Option("--baseline", help="Autoregressive model, read if the objective asks it.")
    ] = Path("models/ar"),
) -> None:
    """Distill one round: by default its student learns to do in one denoising step what its teacher does in several.

    Reads the parameters, the tokens, the tokenizer, the model before, from round 2 on its training state, and the
    autoregressive model if the objective asks it; writes the student (averaged weights, the tokenizer), its training
    state and its training curve. Killed, it goes on from its last checkpoint.
    """
    from halfstep.data.tokens.seeds import derive_seed
    from halfstep.diffusion.schedule import LogLinearSchedule
    from halfstep.model.gpt2 import load_autoregressive
    from halfstep.model.opening import open_denoiser
    from halfstep.objectives.distillation import Distillation, adapt, distillation_objective, student_of
    from halfstep.objectives.nelbo import nelbo_objective
    from halfstep.run.errors import UserError
    from halfstep.settings import load_params
    from halfstep.training.fit import CarriedOver, load_raw_weights, seed_weights
    from halfstep.training.parallel import parallelize_teacher
    from halfstep.training.stage import Stage

    params = load_params(params_path)
    settings = params.distill
    if round_index > params.rounds:
        raise UserError(
            f"round {round_index} is not one of the {params.rounds} rounds in {params_path}:"
            f" dvc exp run -S rounds={round_index}"
        )
    # 1. The teacher, and its student. The first one is a finished model; later rounds go on from the training state.
    before = round_index - 1
    teacher_path, state_path = teacher_path or Path(f"models/{before}"), state_path or Path(f"states/{before}")
    stage = Stage.begin("distill", params, tokens_path, tokenizer_path)
    teacher = open_denoiser(teacher_path, keeps_adapter=settings.lora.rank is not None)
    if teacher.config.num_tokens != stage.vocab_size:
        raise UserError(
            f"the teacher {teacher_path} has {teacher.config.num_tokens} tokens, but {tokens_path} are of"
            f" {stage.vocab_size}: give --teacher and --tokens that belong together, or make both again: dvc repro"
        )
    carried_over, files = None, [teacher_path]
    if round_index > 1:
        if not state_path.is_dir():
            raise UserError(f"{state_path} is not there: the round before writes it: dvc repro distill@{before}")
        files.append(state_path)
        carried_over = CarriedOver(state_path, optimizer=not settings.reset_optimizer, ema=not settings.reset_ema)
    seed_weights(params.seed, f"distill@{round_index}")
    adapt(teacher, teacher_path, settings.lora)
    student: Any = student_of(teacher, settings)
    if round_index > 1 and settings.next_teacher == "student":
        # The state holds what the student trains; what is frozen both have.
        load_raw_weights(student, state_path)
        teacher.load_state_dict(student.state_dict())
    parallelize_teacher(teacher, stage.devices)
    autoregressive = None
    if settings.asks_autoregressive:
        autoregressive = load_autoregressive(baseline_path).requires_grad_(False).to(stage.devices.device)
        files.append(baseline_path)

    # 2. What the student is trained and validated by.
    schedule = LogLinearSchedule(teacher.config.noise_epsilon)
    objective = distillation_objective(
        Distillation(round_index, teacher, student, schedule, settings, stage.devices.shards_teacher, autoregressive)
    )
    valid_objective = nelbo_objective(
        schedule=schedule, min_time=settings.min_time, mask_token_id=student.config.mask_token_id
    )
    stage.train(
        f"distill@{round_index}",
        student,
        objective,
        valid_objective=valid_objective,
        model_path=student_path or Path(f"models/{round_index}"),
        curve_path=curve_path or Path(f"curves/{round_index}.csv"),
        state_path=student_state_path or Path(f"states/{round_index}"),
        data_seed=derive_seed(params.seed, "distill", round_index),
        files=files,
        carried_over=carried_over,
        teacher_path=teacher_path,
    )


if __name__ == "__main__":
    console.run(main)
