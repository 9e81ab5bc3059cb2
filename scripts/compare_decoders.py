"""What the optional decoders cost and do: generative perplexity, entropy, evaluations and seconds of each.

    python scripts/compare_decoders.py models/4 --scorer models/ar --num-steps 8

The same random numbers for all; prints a Markdown table.
"""

import time
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from halfstep.data.tokenizer import load_tokenizer
from halfstep.evaluation.metrics.generative_perplexity import quality
from halfstep.evaluation.scorer import load_scorer, text_nlls
from halfstep.model.denoiser import Denoiser
from halfstep.run import console
from halfstep.samplers.adjust import keep_top_k, keep_top_p, with_temperature
from halfstep.samplers.ancestral import even_unmask_steps, sample
from halfstep.samplers.base import fill, sample_uniforms
from halfstep.samplers.confidence import Confidence

ADJUSTMENTS = {
    "ancestral sampling": None,
    "temperature 0.9": partial(with_temperature, temperature=0.9),
    "top-k 20": partial(keep_top_k, top_k=20),
    "top-p 0.9": partial(keep_top_p, top_p=0.9),
}


def main(
    model_path: Annotated[Path, typer.Argument(help="A denoiser's folder.")],
    scorer: Annotated[str, typer.Option(help="A causal model's folder or hub id.")] = "models/ar",
    num_steps: Annotated[int, typer.Option(min=1)] = 8,
    num_samples: Annotated[int, typer.Option(min=2)] = 256,
    length: Annotated[int | None, typer.Option(help="(the model's)")] = None,
    confidence: Annotated[float, typer.Option(help="Threshold of decoding by confidence.")] = 0.9,
    seed: int = 0,
) -> None:
    """Compare the decoders on one model."""
    denoiser, tokenizer = Denoiser.from_pretrained(model_path), load_tokenizer(model_path)
    judge = load_scorer(scorer, None, torch.device("cpu"))
    mask, length = denoiser.config.mask_token_id, length or denoiser.config.length
    u_time, u_token = sample_uniforms(seed, range(num_samples), length)
    x_init = torch.full((num_samples, length), mask)
    ancestral = partial(
        sample, denoiser, x_init, num_steps=num_steps, mask_token_id=mask, u_time=u_time, u_token=u_token
    )
    decoders = {name: partial(ancestral, adjust=adjust) for name, adjust in ADJUSTMENTS.items()}
    decoders["even counts"] = partial(ancestral, unmask_step=even_unmask_steps(u_time, x_init == mask, num_steps))
    decoders[f"confidence {confidence:g}"] = partial(
        fill, denoiser, x_init, Confidence(confidence, mask), mask_token_id=mask, u_token=u_token
    )
    print("| decoder | generative perplexity | entropy | evaluations | seconds |")
    print("| --- | --- | --- | --- | --- |")
    for name, decode in decoders.items():
        started = time.perf_counter()
        drawn = decode()
        seconds = time.perf_counter() - started
        samples = drawn.tokens.tolist()
        scored = text_nlls(samples, tokenizer, judge, batch_size=32)
        perplexity, entropy = quality(samples, scored, num_resamples=0, seed=seed)
        print(
            f"| {name} | {perplexity.value:.1f} ± {perplexity.standard_error:.1f} | {entropy.value:.3f}"
            f" | {drawn.nfe.double().mean():.1f} | {seconds:.1f} |"
        )


if __name__ == "__main__":
    console.run(main)
