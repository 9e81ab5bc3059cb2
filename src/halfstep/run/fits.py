"""What a stage asks of the data and of what the parameters name: asked when the run starts, not after its training.

`prepare` asks first. DVC may restore it, and so the stages that train ask again.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from halfstep.run.errors import UserError, one_line
from halfstep.run.files import local_or_hub, resolve_user_path
from halfstep.run.inputs import find_input
from halfstep.settings import Params, named_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

OUTPUTS = "models"
"""A scorer in this folder may be made by the run itself."""


def check_fits(params: Params, *, num_valid_sequences: int, vocab_size: int) -> None:
    """Ask all that is known once the corpus is tokenized.

    Raises:
        UserError: see `check_prefixes`, `check_peft`, `check_baseline` and `check_paths`.
    """
    check_paths(params)
    if params.distill.lora.rank is not None:
        check_peft()
    check_prefixes(params, num_valid_sequences)
    source = params.baseline.init_from
    if source is not None and os.path.isdir(resolve_user_path(source)):
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(local_or_hub(source), trust_remote_code=False)
        # The readers of the many kinds of models may raise anything on files that are not theirs.
        except Exception as error:
            raise UserError(
                f"baseline.init_from {source} is not a causal language model's folder ({one_line(error)}); give another"
            ) from None
        check_baseline(config, source, vocab_size=vocab_size, context_length=params.data.context_length)


def check_paths(params: Params) -> None:
    """Look for the files and folders that a later stage reads; what may be the name of a hub's is left to it.

    Raises:
        UserError: one is not there.
    """
    for stage, named in named_inputs(params).items():
        for key, value in named.items() if stage != "prepare" else ():
            if key != "evaluate.scorer" or Path(os.path.normpath(str(value))).parts[:1] != (OUTPUTS,):
                find_input(key, value)


def check_peft() -> None:
    """Ask for peft, which reads and makes adapters.

    Raises:
        UserError: it is not installed.
    """
    if find_spec("peft") is None:
        raise UserError("adapters (distill.lora) need peft, which is not installed: pip install 'halfstep[lora]'")


def check_prefixes(params: Params, num_valid_sequences: int) -> None:
    """Ask for a sequence of the validation split for each prefix that is continued.

    Raises:
        UserError: there are too few.
    """
    wanted = params.sample.num_prefixes
    if num_valid_sequences < wanted:
        raise UserError(
            f"the validation split has {num_valid_sequences} sequences, fewer than sample.num_prefixes {wanted}:"
            f" dvc exp run -S sample.num_prefixes={num_valid_sequences}, or a larger data.valid_fraction"
        )


def check_baseline(config: PreTrainedConfig, source: str, *, vocab_size: int, context_length: int) -> None:
    """Compare the model of `baseline.init_from` with the tokens it is trained on.

    Raises:
        UserError: it knows fewer tokens, the mask token aside, or reads shorter sequences.
    """
    if config.vocab_size < vocab_size - 1:
        raise UserError(
            f"baseline.init_from {source} knows {config.vocab_size} tokens, fewer than the {vocab_size - 1} of the"
            " tokenizer: set data.tokenizer.source to the one it was trained with"
        )
    length = getattr(config, "max_position_embeddings", None)
    if length is not None and length < context_length:
        raise UserError(
            f"baseline.init_from {source} reads {length} tokens at most, fewer than data.context_length"
            f" {context_length}: dvc exp run -S data.context_length={length}, or another model"
        )
