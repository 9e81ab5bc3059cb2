"""How likely a model finds other texts, which `evaluate.likelihood_on` names."""

from collections.abc import Iterator

from halfstep.data.texts.rows import pack_all
from halfstep.evaluation.evaluated import Evaluated, rows_of
from halfstep.evaluation.likelihood import decoded_bytes
from halfstep.metrics.record import Row


def measure(evaluated: Evaluated) -> Iterator[Row]:
    """likelihood_on.NAME.perplexity and likelihood_on.NAME.bits_per_byte; of a denoiser they are upper bounds."""
    texts = pack_all(
        evaluated.settings.likelihood_on,
        evaluated.tokenizer,
        context_length=evaluated.valid_tokens.shape[1],
        num_sequences=evaluated.settings.num_likelihood_sequences,
    )
    for name, tokens in texts.items():
        likelihood = evaluated.likelihood(tokens, f"likelihood_on/{name}")
        text = decoded_bytes(evaluated.tokenizer, tokens)
        measured = {
            f"likelihood_on.{name}.perplexity": likelihood.perplexity,
            f"likelihood_on.{name}.bits_per_byte": likelihood.bits_per_byte(text.num_bytes),
            f"num_unknown_tokens.{name}": text.num_unknown_tokens,
        }
        yield from rows_of(None, **measured)
