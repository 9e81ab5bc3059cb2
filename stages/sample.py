"""Stage `sample@m`: text from one model, unconditional and continuing prefixes."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halfstep.run import console

if TYPE_CHECKING:
    from halfstep.samples.table import Batch


def main(
    model_name: Annotated[str, typer.Argument(metavar="MODEL", help="ar, 0, 1, ...")],
    model_path: Annotated[Path | None, typer.Option("--model", help="Model, read (models/MODEL).")] = None,
    samples_path: Annotated[Path | None, typer.Option("--samples", help="Written (samples/MODEL).")] = None,
    params_path: Annotated[Path, typer.Option("--params", help="Composed parameters, read.")] = Path("params.yaml"),
    tokens_path: Annotated[Path, typer.Option("--tokens", help="Packed tokens, read.")] = Path("data/tokens"),
) -> None:
    """Draw samples from a model with every sampler, each decided by its seed and index alone.

    Reads the parameters, the model and the validation tokens (whose first tokens are the prefixes); writes
    unconditional.parquet and continuations.parquet: token ids, text, network evaluations, when each token was written.
    Killed, it goes on after the last batch.
    """
    from halfstep.data.tokens.manifest import MANIFEST_FILE
    from halfstep.data.tokens.packed import load_tokens
    from halfstep.data.tokens.seeds import derive_seed
    from halfstep.model.base import MaskedModel
    from halfstep.model.opening import open_with_tokenizer
    from halfstep.run.device import autocast, select_device, select_precision, set_num_threads
    from halfstep.run.errors import nan_as_user_error
    from halfstep.run.files import written_by_main
    from halfstep.run.fits import check_prefixes
    from halfstep.run.launch import enter
    from halfstep.run.stage_times import record_stage
    from halfstep.run.work import open_work
    from halfstep.samplers.sampler import samplers_of
    from halfstep.samples.draw import AUTOREGRESSIVE, draw_batches, requests_of
    from halfstep.samples.table import write_samples
    from halfstep.settings import load_params
    from halfstep.settings.graph import check_model_name

    params = load_params(params_path)
    settings = params.sample
    check_model_name(model_name)
    enter(params.launch, params.runtime)
    model_path = model_path or Path("models") / model_name
    samples_path = samples_path or Path("samples") / model_name
    set_num_threads(params.runtime.num_threads)
    device = select_device(params.runtime.device)
    valid_tokens = load_tokens(tokens_path, "valid")
    check_prefixes(params, len(valid_tokens))
    model, tokenizer = open_with_tokenizer(model_path)
    model.to(device)
    samplers = samplers_of(settings.samplers) if isinstance(model, MaskedModel) else [AUTOREGRESSIVE]
    precision = select_precision(params.runtime.precision, device)
    inputs = [model_path, tokens_path / MANIFEST_FILE]
    with (
        open_work(f"sample-{model_name}", params.deciding("seed", "runtime", "sample"), inputs) as work,
        work.batches() as batches_path,
    ):
        with written_by_main(samples_path) as folder, autocast(device, precision), nan_as_user_error(model_path):
            folder.mkdir()
            for request in requests_of(settings, valid_tokens, params.data.context_length, tokenizer):
                total = len(samplers) * len(request.x_init)
                with console.progress(f"sample {model_name}, {request.kind}", total, unit="sample") as show:
                    batches = draw_batches(
                        model,
                        samplers,
                        request,
                        tokenizer=tokenizer,
                        seed=derive_seed(params.seed, request.kind),
                        batch_size=settings.batch_size,
                        device=device,
                        folder=batches_path / request.kind,
                    )
                    metadata = {"model": model_name, "seed": params.seed, "prefix_length": request.prefix_length}
                    write_samples(
                        folder / f"{request.kind}.parquet",
                        _shown(batches, show),
                        decode=tokenizer.decode,
                        metadata={**metadata, "length": request.x_init.shape[1]},
                    )
        record_stage(f"sample@{model_name}", samples_path / "unconditional.parquet", device)
        work.finish()


def _shown(batches: "Iterable[Batch]", show: Callable[[int, str], None]) -> "Iterator[Batch]":
    """The same batches, each shown as done when the next one is asked for."""
    done = 0
    for batch in batches:
        yield batch
        done += len(batch.indices)
        show(done, f"{batch.sampler} {batch.setting}".rstrip())


if __name__ == "__main__":
    console.run(main)
