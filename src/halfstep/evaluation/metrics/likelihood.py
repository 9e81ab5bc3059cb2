"""How likely a model finds held-out text."""

from collections.abc import Iterator

from halfstep.evaluation.evaluated import Evaluated, rows_of
from halfstep.evaluation.likelihood import decoded_bytes
from halfstep.metrics.record import Row


def measure(evaluated: Evaluated) -> Iterator[Row]:
    """nll_per_token, validation_perplexity and bits_per_byte; of a denoiser they are upper bounds."""
    likelihood = evaluated.held_out_likelihood
    text = decoded_bytes(evaluated.tokenizer, evaluated.held_out)
    yield from rows_of(
        None,
        nll_per_token=likelihood.nll_per_token,
        validation_perplexity=likelihood.perplexity,
        bits_per_byte=likelihood.bits_per_byte(text.num_bytes),
        num_unknown_tokens=text.num_unknown_tokens,
    )
