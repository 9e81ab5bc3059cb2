"""Stage `sample@m`: text from one model, unconditional and continuing prefixes."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halfstep.run import console

if TYPE_CHECKING:
    from halfstep.samples.draw import Batch


def main(
    model_name: Annotated[str, typer.Argument(metavar="MODEL", help="ar, 0, 1, ...")],
    model_path: Annotated[Path | None, typer.Option("--model", help="Model, read (models/MODEL).")] = None,
    samples_path: Annotated[Path | None, typer.Option("--samples", help="Written (samples/MODEL).")] = None,
    params_path: Annotated[Path, typer.Option("--params", help="Composed parameters, read.")] = Path("params.yaml"),
    tokens_path: Annotated[Path, typer.Option("--tokens", help="Packed tokens, read.")] = Path("data/tokens"),
) -> None:
    """Draw samples from a model at every number of denoising steps, each decided by its seed and index alone.

    Reads the parameters, the model and the validation tokens (whose first tokens are the prefixes); writes
    unconditional.parquet and continuations.parquet: token ids, text, network evaluations, when each token unmasked.
    Killed, it goes on after the last batch.
    """
    import torch

    from halfstep.data.fits import check_prefixes
    from halfstep.data.manifest import MANIFEST_FILE
    from halfstep.data.seeds import derive_seed
    from halfstep.data.tokenizer import check_vocabulary, load_tokenizer
    from halfstep.data.tokens import load_tokens
    from halfstep.model.denoiser import Denoiser
    from halfstep.model.gpt2 import load_autoregressive
    from halfstep.run.device import autocast, select_device, select_precision, set_num_threads
    from halfstep.run.errors import nan_as_user_error
    from halfstep.run.files import written_by_main
    from halfstep.run.launch import enter
    from halfstep.run.stage_times import record_stage
    from halfstep.run.work import open_work
    from halfstep.samples.draw import autoregressive_sampler, denoiser_sampler, draw_batches
    from halfstep.samples.table import write_samples
    from halfstep.settings import load_params
    from halfstep.settings.graph import BASELINE, check_model_name

    params = load_params(params_path)
    settings = params.sample
    check_model_name(model_name)
    enter(params.launch, params.runtime)
    model_path = model_path or Path("models") / model_name
    samples_path = samples_path or Path("samples") / model_name
    set_num_threads(params.runtime.num_threads)
    device = select_device(params.runtime.device)
    tokenizer = load_tokenizer(model_path)
    valid_tokens = load_tokens(tokens_path, "valid")
    check_prefixes(params, len(valid_tokens))
    rows = [row for row in range(settings.num_prefixes) for _ in range(settings.continuations_per_prefix)]
    context_length = params.data.context_length
    # kind: (prefixes, the validation row each comes from, tokens per sample)
    requests = {
        "unconditional": (
            torch.empty(settings.num_samples, 0, dtype=torch.int64),
            [-1] * settings.num_samples,
            context_length,
        ),
        "continuations": (
            torch.from_numpy(valid_tokens[rows][:, : settings.prefix_length].astype("int64")),
            rows,
            settings.continuation_length,
        ),
    }
    is_baseline = model_name == BASELINE
    model = load_autoregressive(model_path) if is_baseline else Denoiser.from_pretrained(model_path)
    check_vocabulary(
        tokenizer,
        model_path,
        vocab_size=model.config.vocab_size,
        mask_token_id=None if is_baseline else model.config.mask_token_id,
    )
    model.to(device)
    precision = select_precision(params.runtime.precision, device)
    inputs = [model_path, tokens_path / MANIFEST_FILE]
    with (
        open_work(f"sample-{model_name}", params.deciding("seed", "runtime", "sample"), inputs) as work,
        work.journal() as journal,
    ):
        with (
            written_by_main(samples_path) as folder,
            autocast(device, precision),
            nan_as_user_error(model_path),
        ):
            folder.mkdir()
            for kind, (prefixes, prefix_rows, length) in requests.items():
                seed = derive_seed(params.seed, kind)
                if is_baseline:
                    sampler = autoregressive_sampler(
                        model,
                        mask_token_id=tokenizer.mask_token_id,
                        bos_token_id=tokenizer.bos_token_id,
                        seed=seed,
                        device=device,
                    )
                    num_steps = [length - max(prefixes.shape[1], 1)]
                else:
                    sampler = denoiser_sampler(model, seed=seed, device=device)
                    num_steps = sorted(settings.num_steps)
                total = len(num_steps) * len(prefixes)
                with console.progress(f"sample {model_name}, {kind}", total, unit="sample") as show:
                    batches = draw_batches(
                        sampler,
                        prefixes,
                        prefix_rows,
                        length=length,
                        num_steps=num_steps,
                        batch_size=settings.batch_size,
                        remember=journal.memory_of(kind),
                    )
                    write_samples(
                        folder / f"{kind}.parquet",
                        _shown(batches, show),
                        decode=tokenizer.decode,
                        metadata={
                            "model": model_name,
                            "seed": params.seed,
                            "prefix_length": prefixes.shape[1],
                            "length": length,
                        },
                    )
        record_stage(f"sample@{model_name}", samples_path / "unconditional.parquet", device)
        work.finish()


def _shown(batches: "Iterable[Batch]", show: Callable[[int, str], None]) -> "Iterator[Batch]":
    """The same batches, each shown as done when the next one is asked for."""
    done = 0
    for batch in batches:
        yield batch
        done += len(batch.indices)
        show(done, f"{batch.num_steps} steps")


if __name__ == "__main__":
    console.run(main)
