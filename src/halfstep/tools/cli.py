"""The command `halfstep`: for a person at a prompt."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
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
    help="Train, distill and measure fast diffusion language models. The pipeline itself is `dvc repro`.",
)

MASK_GLYPH = " ░░"


@app.command()
def generate(
    model: Annotated[Path, typer.Option(help="A model's folder, such as models/3.")],
    num_steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 8,
    prompt: Annotated[str, typer.Option(help="Text to continue; empty starts from nothing.")] = "",
    num_samples: Annotated[int, typer.Option(min=1, help="How many texts.")] = 1,
    length: Annotated[int | None, typer.Option(min=2, help="Tokens, prompt included (the model's length).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides the texts.")] = 0,
    temperature: Annotated[float | None, typer.Option(help="Below 1: likelier, less diverse texts (exact).")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw among the k likeliest tokens (all).")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw among the likeliest of this probability (all).")] = None,
    confidence: Annotated[
        float | None,
        typer.Option(min=0.0, help="Unmask what is this probable, in as many steps as it takes, not --num-steps."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    show: Annotated[bool, typer.Option("--show", help="Show the tokens appear, step by step.")] = False,
    pause_seconds: Annotated[float, typer.Option(min=0.0, help="With --show: time between steps.")] = 0.4,
) -> None:
    """Print text from a denoiser, optionally continuing a prompt."""
    import torch

    from halfstep.data.tokenizer import check_vocabulary, load_tokenizer
    from halfstep.model.denoiser import Denoiser
    from halfstep.run.device import select_device
    from halfstep.run.errors import nan_as_user_error
    from halfstep.samplers.adjust import keep_top_k, keep_top_p, with_temperature
    from halfstep.samplers.ancestral import sample
    from halfstep.samplers.base import sample_uniforms
    from halfstep.samplers.confidence import sample_by_confidence

    if temperature is not None and not temperature > 0:
        raise UserError(f"--temperature is {temperature}: give more than 0; the likeliest token alone is --top-k 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"--top-p is {top_p}: give a probability above 0")
    denoiser = Denoiser.from_pretrained(model)
    tokenizer = load_tokenizer(model)
    target = select_device(device)
    denoiser.to(target)
    mask_token_id = denoiser.config.mask_token_id
    check_vocabulary(tokenizer, model, vocab_size=denoiser.config.vocab_size, mask_token_id=mask_token_id)
    length = length or denoiser.config.length
    given = [tokenizer.bos_token_id, *tokenizer.encode(prompt, add_special_tokens=False, split_special_tokens=True)]
    if len(given) >= length:
        raise UserError(
            f"--prompt has {len(given)} tokens with BOS, which leaves nothing of the {length} tokens to write:"
            " shorten it, or give a larger --length"
        )
    x_init = torch.full((num_samples, length), mask_token_id, device=target)
    x_init[:, : len(given)] = torch.tensor(given, device=target)
    u_time, u_token = sample_uniforms(seed, range(num_samples), length)

    def adjust(logits: "Tensor") -> "Tensor":
        if temperature is not None:
            logits = with_temperature(logits, temperature)
        if top_k is not None:
            logits = keep_top_k(logits, top_k)
        return logits if top_p is None else keep_top_p(logits, top_p)

    def draw(on_step: "Callable[[int, Tensor], None] | None") -> "Tensor":
        with nan_as_user_error(model):
            if confidence is not None:
                return sample_by_confidence(
                    denoiser,
                    x_init,
                    threshold=confidence,
                    mask_token_id=mask_token_id,
                    u_token=u_token,
                    adjust=adjust,
                    on_step=on_step,
                ).tokens
            return sample(
                denoiser,
                x_init,
                num_steps=num_steps,
                mask_token_id=mask_token_id,
                u_time=u_time,
                u_token=u_token,
                adjust=adjust,
                on_step=on_step,
            ).tokens

    if show:
        most = num_steps if confidence is None else length - len(given)
        tokens = _draw_shown(draw, x_init, tokenizer.decode, mask_token_id, most, pause_seconds)
    else:
        tokens = draw(None)
        for row in tokens.tolist():
            print(tokenizer.decode(row, skip_special_tokens=True).strip())


def _draw_shown(
    draw: "Callable[[Callable[[int, Tensor], None]], Tensor]",
    x_init: "Tensor",
    decode: Callable[[list[int]], str],
    mask_token_id: int,
    num_steps: int,
    pause_seconds: float,
) -> "Tensor":
    """Draw samples while their tokens appear in the terminal; tokens new in a step stand out."""
    from halfstep.report.samples import token_pieces

    before = x_init.clone()

    def frame(step: int, tokens: "Tensor") -> Panel:
        text = Text()
        for row, (ids, old_ids, first_ids) in enumerate(
            zip(tokens.tolist(), before.tolist(), x_init.tolist(), strict=True)
        ):
            text.append("\n\n" if row else "")
            for token_id, old, first, piece in zip(ids, old_ids, first_ids, token_pieces(ids, decode), strict=True):
                if token_id == mask_token_id:
                    text.append(MASK_GLYPH, style="dim")
                elif first != mask_token_id:
                    text.append(piece, style="cyan")
                else:
                    text.append(piece, style="bold green" if old == mask_token_id else "")
        left = int((tokens == mask_token_id).sum())
        return Panel(text, title=f"denoising step {step} of {num_steps}", subtitle=f"{left} tokens masked")

    with Live(frame(0, x_init), console=Console(highlight=False), auto_refresh=False) as live:

        def on_step(step: int, tokens: "Tensor") -> None:
            time.sleep(pause_seconds)
            live.update(frame(step, tokens), refresh=True)
            before.copy_(tokens)

        tokens = draw(on_step)
        live.update(frame(num_steps, tokens), refresh=True)
    return tokens


@app.command()
def export(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="A denoiser: folder, file of weights, or hub id.")],
    target: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to create.")],
    layout: Annotated[str, typer.Option(help="mdlm or sdtt, as those are published, or plain, as ours.")] = "mdlm",
    revision: Annotated[str | None, typer.Option(help="Of a hub id: branch, tag or commit.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Of a training checkpoint: the raw, not the averaged weights.")] = (
        False
    ),
) -> None:
    """Write a model in the layout of the published checkpoints; `pretrain.init_from` and this read them all."""
    from halfstep.model.layouts import LAYOUTS
    from halfstep.tools.export import export_denoiser

    if layout not in LAYOUTS:
        raise UserError(f"--layout is {layout!r}: {', '.join(LAYOUTS)} are known")
    export_denoiser(source, target, layout, revision=revision, use_ema=not raw)
    print(f"{target}: {layout} layout")


@app.command()
def plan(
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set-param", "-S", metavar="OVERRIDE", help="Of Hydra, as dvc exp run takes them (params.yaml)."
        ),
    ] = None,
    mfu: Annotated[float, typer.Option(help="Share of a GPU's peak that is reached, such as 0.4.")] = 0.4,
    vocab_size: Annotated[
        int | None, typer.Option(min=3, help="Tokens, the mask included (of the tokenizer, if it is known).")
    ] = None,
    num_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of the corpus (if it is known).")] = None,
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
    from halfstep.tools.planning.plan import make_plan
    from halfstep.tools.planning.tables import tables

    if not 0 < mfu <= 1:
        raise UserError(f"--mfu is {mfu}: give a share of the peak above 0, such as 0.4")
    root = Path.cwd()
    params = composed_params(overrides, root) if overrides else load_params(root / "params.yaml")
    manifest = prepared_manifest(params, root)
    planned = make_plan(
        params, known_vocab_size(params, manifest, vocab_size), known_num_tokens(params, manifest, num_tokens)
    )
    shown = Console(highlight=False)
    for table in tables(planned, mfu):
        shown.print(table)
    if json_path is not None:
        write_json(json_path, planned.as_dict(mfu))


@app.command()
def summary(
    metrics: Annotated[Path, typer.Option(help="Folder of metrics files.")] = Path("metrics"),
    params_path: Annotated[Path, typer.Option("--params", help="Composed parameters.")] = Path("params.yaml"),
    report: Annotated[Path, typer.Option(help="Where the report is.")] = Path("reports/index.html"),
) -> None:
    """Print the table of the rounds and say where the report is."""
    from halfstep.report.results import load_metrics
    from halfstep.report.table import rounds_table
    from halfstep.settings import load_params
    from halfstep.tracking.complete import RUNS_FILE, read_runs

    params = load_params(params_path)
    Console().print(rounds_table(load_metrics(metrics, params.models)))
    if report.is_file():
        print(f"report: {report.resolve()}")
    runs = read_runs(Path(RUNS_FILE))
    print(runs.missing if runs and runs.missing else "MLflow: make ui (or halfstep ui)")


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
    tokens_path: Annotated[Path, typer.Option("--tokens", help="Packed tokens: their vocabulary.")] = Path(
        "data/tokens"
    ),
    limit: Annotated[
        float | None, typer.Option(min=0.0, metavar="GIB", help="Memory a process may have (nine tenths of the free).")
    ] = None,
) -> None:
    """Find the batch that memory holds: each trial runs the stage's own loop in a process of its own."""
    from rich.table import Table

    from halfstep.settings import load_params
    from halfstep.tools.fit_batch import STAGES, memory_limit, vocab_size_for
    from halfstep.tools.fit_batch import fit_batch as search

    if stage not in STAGES:
        raise UserError(f"--stage is {stage!r}: {', '.join(STAGES)} are known")
    params = load_params(params_path)
    limit_bytes = memory_limit(params, limit)
    found = search(params, params_path, stage, limit_bytes=limit_bytes, vocab_size=vocab_size_for(params, tokens_path))
    shown = "all of the accelerator" if limit_bytes is None else f"{limit_bytes / 2**30:.2f} GiB"
    table = Table("batch", "accumulation steps", "sequences at once", "peak", "fits", title=f"{stage} in {shown}")
    for trial in found.trials:
        peak = "more" if trial.peak_bytes is None else f"{trial.peak_bytes / 2**30:.2f} GiB"
        parts = trial.num_accumulation_steps
        sizes = (str(trial.batch_size), str(parts), str(trial.batch_size // parts))
        table.add_row(*sizes, peak, "yes" if trial.fits else "no")
    Console().print(table)
    if not found.overrides:
        raise UserError(
            f"{stage} does not fit into {shown} with one sequence: take a smaller data.context_length or model"
            " (dvc exp run -S model=tiny), or a larger --limit"
        )
    print("dvc exp run " + " ".join(f"-S {override}" for override in found.overrides))


@app.command("verify-tokens")
def verify_tokens(
    tokens_path: Annotated[Path, typer.Argument(help="What `prepare` wrote.")] = Path("data/tokens"),
) -> None:
    """Read all shards of packed tokens, and compare them with the hashes in their manifest."""
    from halfstep.data.tokens import verify_tokens as verify

    print(f"{tokens_path}: {verify(tokens_path)} shards are as they were written")


NUM_COMPARED_SAMPLES = 2


@app.command()
def compare(
    experiments: Annotated[
        list[str], typer.Argument(metavar="EXP...", help="DVC experiments, Git revisions, or workspace; two or more.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page, written.")] = Path("compare.html"),
) -> None:
    """Write one page that compares DVC experiments: what differs in them, and what came of it."""
    from dataclasses import replace

    from halfstep.data.tokenizer import load_tokenizer
    from halfstep.report.comparison import last_student, write_comparison
    from halfstep.report.experiments import checked_out, load_experiment
    from halfstep.report.samples import load_samples

    if len(set(experiments)) < 2:
        raise UserError(
            f"compare was given {' '.join(experiments)}: it needs two experiments or more; dvc exp show lists them"
        )
    loaded = []
    for name in dict.fromkeys(experiments):
        with checked_out(name, Path.cwd()) as folder:
            experiment = load_experiment(name, folder)
            model = last_student(experiment.metrics)
            if (folder / "samples" / model).is_dir() and (folder / "data" / "tokenizer").is_dir():
                samples = load_samples(
                    folder / "samples",
                    [model],
                    num_unconditional=NUM_COMPARED_SAMPLES,
                    num_continuations=NUM_COMPARED_SAMPLES,
                    decode=load_tokenizer(folder / "data" / "tokenizer").decode,
                )
                experiment = replace(experiment, samples=samples)
            else:
                print(f"{name}: its samples are not at hand (dvc fetch), the page shows none of them")
            loaded.append(experiment)
    write_comparison(output, loaded)
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
            f"MLflow cannot read {without_credentials(uri)} ({error}): mend it, or move it away and a new one is made"
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
