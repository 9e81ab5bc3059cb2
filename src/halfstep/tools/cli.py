"""The command `halfstep`: for a person at a prompt."""

import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from halfstep.run import console
from halfstep.run.errors import UserError
from halfstep.run.files import project_root

if TYPE_CHECKING:
    from torch import Tensor

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Train, distill and measure fast diffusion language models. The pipeline itself is `dvc repro`.",
)

MASK_GLYPH = " ░░"

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set-param", "-S", metavar="OVERRIDE", help="Of Hydra, as dvc exp run takes them (params.yaml)."),
]
VocabSize = Annotated[
    int | None, typer.Option(min=3, help="Tokens, the mask included (of the tokenizer, if it is known).")
]


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def generate(
    context: typer.Context,
    model: Annotated[Path, typer.Option(help="A model's folder, such as models/3.")],
    evaluations: Annotated[
        int, typer.Option(min=1, help="Of a denoiser, at most: the best sampler for so many is taken.")
    ] = 16,
    sampler: Annotated[
        str | None,
        typer.Option(help="Another, with its settings: ancestral --num-steps 8, or confidence --threshold 0.9."),
    ] = None,
    prompt: Annotated[str, typer.Option(help="Text to continue; empty starts from nothing.")] = "",
    chat: Annotated[
        bool, typer.Option("--chat", help="--prompt is a message, which the model answers by its chat template.")
    ] = False,
    puzzle: Annotated[
        str,
        typer.Option(
            help="Sudoku to fill in, row by row, a dot for each empty cell; by entropy_bound, likeliest digit."
        ),
    ] = "",
    num_samples: Annotated[int, typer.Option(min=1, help="How many texts.")] = 1,
    length: Annotated[int | None, typer.Option(min=2, help="Tokens, prompt included (the model's length).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides the texts.")] = 0,
    temperature: Annotated[
        float | None, typer.Option(help="Below 1: likelier, less diverse texts (exact); 0: likeliest tokens.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw among the k likeliest tokens (all).")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw among the likeliest of this probability (all).")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    show: Annotated[bool, typer.Option("--show", help="Show the tokens appear, step by step.")] = False,
    pause_seconds: Annotated[float, typer.Option(min=0.0, help="With --show: time between steps.")] = 0.4,
) -> None:
    """Print text from a model, optionally continuing a prompt."""
    from halfstep.data.corpora import sudoku
    from halfstep.samplers.sampler import sampler_of
    from halfstep.tools.generate import open_on, prepare, settings_in

    if temperature is not None and not temperature >= 0:
        raise UserError(f"--temperature is {temperature}: give 0, which is the likeliest token, or more")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"--top-p is {top_p}: give a probability above 0")
    cells = sudoku.read_puzzle(puzzle, "--puzzle") if puzzle else []
    if cells and (prompt or length):
        raise UserError("--puzzle is all that is given, and says how long it is: leave out --prompt and --length")
    values = settings_in(context.args)
    if cells:
        sampler, values = sampler or "entropy_bound", values or ({} if sampler else {"gamma": 0.05})
        temperature = 0 if temperature is None else temperature
    chosen = sampler_of(sampler or "ancestral", values, "--sampler") if values or sampler else None
    opened = open_on(model, device)
    writing = prepare(
        opened,
        chosen,
        evaluations=evaluations,
        prompt=prompt,
        chat=chat,
        cells=cells,
        num_samples=num_samples,
        length=length,
        seed=seed,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )
    if show:
        drawn = _draw_shown(
            lambda on_step: writing.draw(on_step).tokens,
            writing.x_init,
            opened.tokenizer.decode,
            opened.tokenizer.mask_token_id,
            writing.sampler.num_steps,
            pause_seconds,
            math.isqrt(len(cells)),
        )
    else:
        drawn = writing.draw(None).tokens
    for row in drawn.tolist():
        text = writing.text(row)
        if not show:
            print(sudoku.as_lines(text) if cells else text)
        if cells:
            print("solved" if sudoku.is_solved(text, sudoku.as_prompt(cells)) else "not solved")


@app.command("try")
def try_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model's folder, such as models/3.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 is any free one.")] = 5001,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Open a page on 127.0.0.1 on which this model and those beside it in models/ write what you ask for."""
    from halfstep.tools.try_page import serve

    serve(model, port, device)


def _draw_shown(
    draw: "Callable[[Callable[[int, Tensor], None]], Tensor]",
    x_init: "Tensor",
    decode: Callable[[list[int]], str],
    mask_token_id: int,
    num_steps: int | None,
    pause_seconds: float,
    size: int,
) -> "Tensor":
    """Draw samples while their tokens appear in the terminal; tokens new in a step are highlighted.

    Args:
        num_steps: None where it takes as many as it takes.
        size: of the grids that samples are, whose ends are of no interest; 0 if they are texts.
    """
    from halfstep.report.samples import token_pieces

    before, last = x_init.clone(), 0

    def frame(step: int, tokens: "Tensor") -> Panel:
        text = Text()
        inner = slice(1, -2) if size else slice(None)
        for row, (ids, old_ids, first_ids) in enumerate(
            zip(*(some[:, inner].tolist() for some in (tokens, before, x_init)), strict=True)
        ):
            text.append("\n\n" if row else "")
            pieces = zip(ids, old_ids, first_ids, token_pieces(ids, decode), strict=True)
            for place, (token_id, old, first, piece) in enumerate(pieces):
                text.append("\n" if size and place and place % size == 0 else "")
                if token_id == mask_token_id:
                    text.append(MASK_GLYPH[: 2 if size else 3], style="dim")
                elif first != mask_token_id:
                    text.append(piece, style="cyan")
                else:
                    text.append(piece, style="bold green" if old == mask_token_id else "")
        left = int((tokens == mask_token_id).sum())
        of_all = f" of {num_steps}" if num_steps else ""
        return Panel(text, title=f"denoising step {step}{of_all}", subtitle=f"{left} tokens masked")

    with Live(frame(0, x_init), console=Console(highlight=False), auto_refresh=False) as live:

        def on_step(step: int, tokens: "Tensor") -> None:
            nonlocal last
            last = step
            time.sleep(pause_seconds)
            live.update(frame(step, tokens), refresh=True)
            before.copy_(tokens)

        drawn = draw(on_step)
        live.update(frame(last, drawn), refresh=True)
    return drawn


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def respond(
    context: typer.Context,
    prompts: Annotated[
        Path, typer.Argument(metavar="PROMPTS", help="Conversations in JSONL, as data=chat reads them.")
    ],
    answers: Annotated[Path, typer.Argument(metavar="ANSWERS", help="The same with the model's answers, written.")],
    model: Annotated[Path, typer.Option(help="A denoiser's folder.")] = Path("models/0"),
    sampler: Annotated[str, typer.Option(help="With its settings, such as ancestral --num-steps 64.")] = "ordered",
    temperature: Annotated[float, typer.Option(min=0.0, help="0: likeliest tokens.")] = 1.0,
    length: Annotated[int | None, typer.Option(min=2, help="Tokens of prompt and answer (the model's length).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides the answers.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers drawn together.")] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Write a model's own answers to prompts, which its students are trained on; killed, it goes on where it was.

    By default the surest position of the leftmost block of 32 is written, one at a time.
    """
    from halfstep.samplers.sampler import sampler_of
    from halfstep.tools.generate import open_on, settings_in
    from halfstep.tools.respond import respond as write_answers

    values = settings_in(context.args)
    if sampler == "ordered" and not values:
        values = {"num_steps": 32, "score": "confidence", "noise": 0.0, "counts": "even", "block_length": 32}
    chosen = sampler_of(sampler, values, "--sampler")
    num_answers, num_left_out = write_answers(
        open_on(model, device),
        chosen,
        prompts,
        answers,
        temperature=temperature,
        length=length,
        seed=seed,
        batch_size=batch_size,
    )
    print(f"{answers}: {num_answers} answers; prompts left out as too long: {num_left_out}")


@app.command()
def export(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="A denoiser: folder, file of weights, or hub id.")],
    target: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to create.")],
    layout: Annotated[
        str | None,
        typer.Option(
            help="Of our own: mdlm (usual) or sdtt, as those are published, or plain. Of a model of others: llada,"
            " dream or a2d, as their authors have it, or plain (usual), as transformers."
        ),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Of a hub id: branch, tag or commit.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Of a training checkpoint: the raw, not the averaged weights.")] = (
        False
    ),
) -> None:
    """Write a model in the layout of published ones, with a card; `pretrain.init_from` reads them all."""
    from halfstep.model import families
    from halfstep.model.layouts import LAYOUTS
    from halfstep.tools.export import export_denoiser

    if layout not in (None, *LAYOUTS, *families.LAYOUTS):
        raise UserError(f"--layout is {layout!r}: {', '.join((*LAYOUTS, *families.LAYOUTS))} are known")
    written = export_denoiser(source, target, layout, revision=revision, use_ema=not raw)
    print(f"{target}: {written} layout")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A model's, such as models/3 or what export wrote.")],
    repo_id: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="On the hub; created if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="If it is created: for its owner alone.")] = False,
) -> None:
    """Send a model, its tokenizer and its card to the Hugging Face hub (HF_ENDPOINT, HF_TOKEN)."""
    from halfstep.tools.push import push_model

    print(push_model(folder, repo_id, is_private=private))


@app.command()
def plan(
    overrides: Overrides = None,
    mfu: Annotated[float, typer.Option(help="Share of a GPU's peak that is reached, such as 0.4.")] = 0.4,
    vocab_size: VocabSize = None,
    num_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of the corpus (if it is known).")] = None,
    here: Annotated[
        bool, typer.Option("--here", help="Measure this machine, about a minute, and say how long a run takes on it.")
    ] = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the plan there, too.")] = None,
) -> None:
    """Size a run before it is paid for: parameters, FLOPs, tokens, memory per device, time, disk.

    Without -S the parameters are those of params.yaml; with -S they are composed as `dvc exp run` does, and nothing is
    written.
    """
    from halfstep.run.files import write_json
    from halfstep.settings import load_params
    from halfstep.tools.planning.compose import composed_params
    from halfstep.tools.planning.corpus import known_num_tokens, known_vocab_size, prepared_manifest
    from halfstep.tools.planning.here import measure_here
    from halfstep.tools.planning.plan import make_plan
    from halfstep.tools.planning.tables import tables

    if not 0 < mfu <= 1:
        raise UserError(f"--mfu is {mfu}: give a share of the peak above 0, such as 0.4")
    root = Path.cwd()
    params = composed_params(overrides, root) if overrides else load_params(root / "params.yaml")
    manifest = prepared_manifest(params, root)
    vocabulary = known_vocab_size(params, manifest, vocab_size)
    planned = make_plan(params, vocabulary, known_num_tokens(params, manifest, num_tokens))
    if here:
        planned = replace(planned, here=measure_here(params, planned.works, vocabulary.value))
    shown = Console(highlight=False)
    for table in tables(planned, mfu):
        shown.print(table)
    if json_path is not None:
        write_json(json_path, planned.as_dict(mfu))


@app.command("repro")
def repro_command() -> None:
    """Run `dvc repro`, and say before each stage which of how many it is and how long the rest took last time."""
    from halfstep.tools.repro import repro

    raise typer.Exit(repro())


@app.command()
def summary(
    metrics: Annotated[Path, typer.Option(help="Folder of metrics files.")] = Path("metrics"),
    params_path: Annotated[Path, typer.Option("--params", help="Composed parameters.")] = Path("params.yaml"),
    report: Annotated[Path, typer.Option(help="Where the report is.")] = Path("reports/index.html"),
) -> None:
    """Print what few evaluations buy and the table of the rounds, and say where the report is."""
    from halfstep.metrics.record import read_records
    from halfstep.report.experiment import Experiment
    from halfstep.report.table import terminal_frontier, terminal_solved, terminal_tables
    from halfstep.settings import load_reported
    from halfstep.tracking.complete import RUNS_FILE, read_runs

    params = load_reported(params_path)
    records = read_records(metrics, params.models)
    shown = Console()
    experiment = Experiment("", metrics.parent, params, records)
    if experiment.solved:
        shown.print(terminal_solved(experiment.solved))
    else:
        if experiment.frontier:
            shown.print(terminal_frontier(experiment.frontier))
        shown.print(terminal_tables(records))
    if report.is_file():
        print(f"report: {report.resolve()}")
    runs = read_runs(Path(RUNS_FILE))
    print(runs.missing if runs and runs.missing else "MLflow: make ui (or halfstep ui)")
    if params.models:
        print(f"next: . .venv/bin/activate && halfstep try models/{params.models[-1]}; your own text: docs/tutorial.md")


@app.command(
    "lm-eval",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    short_help="lm-eval's own command, where --model halfstep is a denoiser.",
)
def lm_eval(context: typer.Context) -> None:
    """Hand all arguments to lm-eval, which knows our denoisers as --model halfstep."""
    from halfstep.tools.lm_eval import run_lm_eval

    run_lm_eval(context.args)


@app.command("fit-batch")
def fit_batch(
    stage: Annotated[str, typer.Option(help="pretrain, distill, baseline or sample.")] = "pretrain",
    params_path: Annotated[Path, typer.Option("--params", help="Composed parameters.")] = Path("params.yaml"),
    vocab_size: VocabSize = None,
    limit: Annotated[
        float | None, typer.Option(min=0.0, metavar="GIB", help="Memory a process may have (nine tenths of the free).")
    ] = None,
) -> None:
    """Find the batch that memory holds: each trial runs the stage's own loop in a process of its own."""
    from rich.table import Table

    from halfstep.settings import load_params
    from halfstep.tools.fit_batch import STAGES, memory_limit
    from halfstep.tools.fit_batch import fit_batch as search
    from halfstep.tools.planning.corpus import known_vocab_size, prepared_manifest

    if stage not in STAGES:
        raise UserError(f"--stage is {stage!r}: {', '.join(STAGES)} are known")
    params = load_params(params_path)
    limit_bytes = memory_limit(params, limit)
    known = known_vocab_size(params, prepared_manifest(params, Path.cwd()), vocab_size)
    trials, found = search(params, stage, limit_bytes=limit_bytes, vocab_size=known.value)
    shown = "all of the accelerator" if limit_bytes is None else f"{limit_bytes / 2**30:.2f} GiB"
    table = Table("batch", "accumulation steps", "sequences at once", "peak", "fits", title=f"{stage} in {shown}")
    for trial in trials:
        size, parts = trial.batch_size, trial.num_accumulation_steps
        answer = ("more", "no") if trial.peak_bytes is None else (f"{trial.peak_bytes / 2**30:.2f} GiB", "yes")
        table.add_row(str(size), str(parts), str(size // parts), *answer)
    Console().print(table)
    if not found:
        raise UserError(
            f"{stage} does not fit into {shown} with one sequence: take a smaller data.context_length or model"
            " (dvc exp run -S model=tiny), or a larger --limit"
        )
    print("dvc exp run " + " ".join(f"-S {stage}.{key}={value}" for key, value in found.items()))


@app.command()
def signal(
    overrides: Overrides = None,
    model: Annotated[Path, typer.Option(help="The teacher, read.")] = Path("models/0"),
    tokens_path: Annotated[Path, typer.Option("--tokens", help="Packed tokens, read.")] = Path("data/tokens"),
    num_batches: Annotated[int, typer.Option(min=3, help="Batches, each of distill.batch_size.")] = 8,
) -> None:
    """Say how much of an objective's gradient is signal: where it is little, no learning rate helps.

    What counts is the mean cosine of two batches' gradients at the start of the first round. Compare settings of one
    objective by it, such as -S objective=mmd -S distill.mmd.bandwidth=0.3, before a round is paid for.
    """
    from halfstep.data.tokens.packed import load_tokens
    from halfstep.model.opening import open_denoiser
    from halfstep.run.device import set_num_threads
    from halfstep.settings import load_params
    from halfstep.tools.planning.compose import composed_params
    from halfstep.tools.signal import first_gradients, mean_cosine

    params = composed_params(overrides, Path.cwd()) if overrides else load_params(Path("params.yaml"))
    set_num_threads(params.runtime.num_threads)
    gradients = first_gradients(params, open_denoiser(model), model, load_tokens(tokens_path, "train"), num_batches)
    found = mean_cosine(gradients)
    print(
        f"{params.distill.objective}: mean cosine {found.value:.4f} ± {found.standard_error:.4f} of the gradients of"
        f" {num_batches} batches of {params.distill.batch_size}"
    )


@app.command("verify-tokens")
def verify_tokens(
    tokens_path: Annotated[Path, typer.Argument(help="What `prepare` wrote.")] = Path("data/tokens"),
) -> None:
    """Read all shards of packed tokens, and compare them with the hashes in their manifest."""
    from halfstep.data.tokens.packed import verify_tokens as verify

    print(f"{tokens_path}: {verify(tokens_path)} shards are as they were written")


@app.command()
def compare(
    experiments: Annotated[
        list[str], typer.Argument(metavar="EXP...", help="DVC experiments, Git revisions, or workspace; two or more.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page, written.")] = Path("compare.html"),
) -> None:
    """Write one page that compares DVC experiments: what differs in them, and what came of it."""
    from halfstep.report.experiment import checked_out, load_experiment
    from halfstep.report.page import write_page

    names = list(dict.fromkeys(experiments))
    if len(names) < 2:
        raise UserError(f"compare was given {' '.join(experiments)}: it needs two or more; dvc exp show lists them")
    with ExitStack() as stack:
        folders = [stack.enter_context(checked_out(name, Path.cwd())) for name in names]
        for name, folder in zip(names, folders, strict=True):
            if not (folder / "samples").is_dir():
                print(f"{name}: its samples are not at hand (dvc fetch), the page shows none of them")
        write_page(output, list(map(load_experiment, names, folders)))
    print(f"comparison: {output.resolve()}")


@app.command()
def ui(port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000) -> None:
    """Open the MLflow UI on 127.0.0.1, on the runs of this project (or of MLFLOW_TRACKING_URI)."""
    from halfstep.tracking.client import tracking_uri, without_credentials
    from halfstep.tracking.complete import ui_url

    if tracking_uri().startswith(("http:", "https:")):
        print(f"MLFLOW_TRACKING_URI names a server, which has the UI: {ui_url(without_credentials(tracking_uri()))}")
        return
    _check_can_serve(tracking_uri(), "127.0.0.1", port)
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port)]
    # By the environment, not the command line: it may hold a password, and other users can list commands.
    environment = {**os.environ, **dict.fromkeys(("MLFLOW_TRACKING_URI", "MLFLOW_BACKEND_STORE_URI"), tracking_uri())}
    print(f"{ui_url(f'http://127.0.0.1:{port}')} (Ctrl-C stops it)")
    raise typer.Exit(subprocess.run(command, env=environment).returncode)


def _check_can_serve(uri: str, host: str, port: int) -> None:
    """Say in one line what MLflow would say in a page."""
    import sqlite3

    from halfstep.tracking.client import check_database, without_credentials

    try:
        check_database(uri)
    except (OSError, sqlite3.Error) as error:
        raise UserError(
            f"MLflow cannot read {without_credentials(uri)} ({error}): repair it, or move it away and a new one is made"
        ) from None
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        raise UserError(f"MLflow cannot listen on {host}:{port} ({error}): choose another with --port") from None


@app.command()
def server(
    host: Annotated[
        str, typer.Option(envvar="MLFLOW_HOST", help="Address to listen on; 0.0.0.0 is every network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, envvar="MLFLOW_PORT", help="Port to listen on.")] = 5000,
) -> None:
    """Serve MLflow over HTTP to several clients, artifacts included; they set MLFLOW_TRACKING_URI to it.

    Runs go into MLFLOW_BACKEND_STORE_URI [a SQLite database in server/], files into MLFLOW_ARTIFACTS_DESTINATION
    [server/artifacts].
    """
    folder = project_root() / "server"
    defaults = {
        # Not the project's own database: that one sends files to paths of this machine, which other clients lack.
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_ARTIFACTS_DESTINATION": f"{folder}/artifacts",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Half a dozen processes for parts of MLflow that no pipeline uses.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    environment = defaults | os.environ
    if environment["MLFLOW_BACKEND_STORE_URI"].startswith("postgresql:") and not find_spec("psycopg"):
        raise UserError(
            "MLFLOW_BACKEND_STORE_URI names PostgreSQL, whose driver is not installed:"
            " python -m pip install --constraint constraints.txt --editable '.[postgres]'"
        )
    folder.mkdir(exist_ok=True)
    _check_can_serve(environment["MLFLOW_BACKEND_STORE_URI"], host, port)
    print(f"clients: export MLFLOW_TRACKING_URI=http://{host}:{port} (Ctrl-C stops the server)", flush=True)
    # In this process's place: signals and the exit code are the server's own.
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)]
    os.execve(sys.executable, command, environment)


def main() -> None:
    """Entry point of the command `halfstep`."""
    console.run_app(app)
