"""What a run writes to disk."""

from dataclasses import dataclass, fields

from halfstep.settings import Params

FLOAT = 4
STATE = 4
"""Numbers in a training state for each parameter: the weight, its average, and both moments."""
NUM_KEPT = 2
"""Checkpoints kept of a run, as in `halfstep.training.checkpoint`; one more is there while it is written."""
TEXT_BYTES_PER_TOKEN = 4.5
"""English under GPT-2's tokenizer, about; in a table of samples the text stands beside its tokens."""


@dataclass(frozen=True)
class Disk:
    """Bytes, by what they are.

    Attributes:
        tokens: the packed corpus; None where its size is not known.
        models: weights of all models.
        states: of every student the training state that the next round goes on from.
        samples: before compression.
        checkpoints: of the stage under way, gone when it ends.
        cache: DVC's second copy of all that stages write, where the file system has no reflinks and cache.type is not
            set to links.
        tracking: models in MLflow.
    """

    tokens: float | None
    models: float
    states: float
    samples: float
    checkpoints: float
    cache: float
    tracking: float

    @property
    def total(self) -> float:
        """Of all that is known."""
        return sum(getattr(self, field.name) or 0 for field in fields(self))


def disk_of(params: Params, *, denoiser: int, baseline: int, vocab_size: int, num_tokens: int | None) -> Disk:
    """What a run of the whole pipeline writes.

    Args:
        params: all parameters.
        denoiser, baseline: their parameters.
        vocab_size: tokens, the mask token included.
        num_tokens: of the corpus; None where it is not known.
    """
    length = params.data.context_length
    # Every row has BOS and EOS around its tokens.
    id_bytes = 2 if vocab_size <= 2**16 else 4
    tokens = None if num_tokens is None else num_tokens * length / (length - 2) * id_bytes
    models = FLOAT * (denoiser * (params.rounds + 1) + baseline)
    states = FLOAT * STATE * denoiser * params.rounds
    sample = params.sample
    drawn = sample.num_samples * length
    drawn += sample.num_prefixes * sample.continuations_per_prefix * sample.continuation_length
    # An id in four bytes, its step in two, its text; the baseline's are drawn once.
    num_sets = len(sample.num_steps) * (params.rounds + 1) + 1
    samples = num_sets * drawn * (4 + 2 + TEXT_BYTES_PER_TOKEN)
    return Disk(
        tokens=tokens,
        models=models,
        states=states,
        samples=samples,
        checkpoints=(NUM_KEPT + 1) * FLOAT * STATE * max(denoiser, baseline),
        cache=(tokens or 0) + models + states + samples,
        tracking=models if params.tracking.log_models else 0,
    )
