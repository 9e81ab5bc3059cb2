"""The autoregressive baseline: GPT-2 as transformers has it."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from halfstep.run.errors import UserError, first_of, one_line
from halfstep.run.faults import storage_fault
from halfstep.run.files import is_there
from halfstep.run.retries import with_retries
from halfstep.settings.base import MAX_BLOCKS

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedConfig, PreTrainedModel


def new_gpt2(
    *,
    vocab_size: int,
    length: int,
    hidden_size: int,
    num_blocks: int,
    num_heads: int,
    dropout: float,
    fills_in: bool = False,
) -> "GPT2LMHeadModel":
    """A GPT-2 with new weights, of the denoiser's width, depth and heads.

    Args:
        vocab_size: tokens; the mask token is counted, so that ids agree with the denoiser's, and never occurs.
        length: longest sequence.
        hidden_size, num_blocks, num_heads, dropout: as the denoiser's.
        fills_in: see the function of that name.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    _hide_progress_bars()
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=2 * length if fills_in else length,
        n_embd=hidden_size,
        n_layer=num_blocks,
        n_head=num_heads,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=None,
        eos_token_id=None,
        **({FILLS_IN: True} if fills_in else {}),
    )
    return GPT2LMHeadModel(config)


FILLS_IN = "fills_in"
"""Entry of config.json."""


def fills_in(model: "PreTrainedModel") -> bool:
    """Whether a model is made to read a sequence with masks and then to write it whole, from left to right."""
    return bool(getattr(model.config, FILLS_IN, False))


def length_of(model: "PreTrainedModel") -> int:
    """Tokens of the longest sequence that a model writes."""
    return model.config.max_position_embeddings // (2 if fills_in(model) else 1)


def load_autoregressive(source: str | Path, revision: str | None = None) -> "PreTrainedModel":
    """Load a causal language model from a local folder or the hub, from safetensors only.

    Args:
        source: local folder or hub id.
        revision: branch, tag or commit of a hub id.
    Returns:
        the model in evaluation mode, on the CPU, float32.
    Raises:
        UserError: it is neither a model's folder nor to be had from the hub, brings code that it needs, or
            lacks weights.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    def config() -> "PreTrainedConfig":
        return AutoConfig.from_pretrained(str(source), revision=revision or "main", trust_remote_code=False)

    # Left over may be buffers, which versions of transformers store or not.
    return load_pretrained(AutoModelForCausalLM, source, revision, config=config, what="causal language model")


def load_pretrained(
    auto_class: Any,
    source: str | Path,
    revision: str | None,
    *,
    config: "Callable[[], PreTrainedConfig]",
    what: str,
    key_mapping: Mapping[str, str] | None = None,
    may_be_left: str = "",
) -> "PreTrainedModel":
    """Load a network of transformers from a local folder or the hub, from safetensors only, without code of its own.

    Args:
        auto_class: of transformers, whose `from_pretrained` makes the network.
        source, revision: as of `load_autoregressive`.
        config: makes the configuration.
        what: it should be, for the message.
        key_mapping: names of tensors, as regular expressions, and what they are called in the network.
        may_be_left: regular expression of the tensors that may have no place in it; empty: all may.
    Returns, Raises: as `load_autoregressive`.
    """
    import torch

    def load() -> tuple["PreTrainedModel", dict[str, Any]]:
        made = config()
        # Layers are made before their weights are looked for: a broken number takes for ever.
        if getattr(made, "num_hidden_layers", 0) > MAX_BLOCKS:
            raise ValueError(f"its config.json asks for {made.num_hidden_layers} layers")
        return auto_class.from_pretrained(
            str(source),
            config=made,
            revision=revision or "main",
            use_safetensors=True,
            dtype=torch.float32,
            trust_remote_code=False,
            # DistributedDataParallel and torch.compile leave something before the names.
            key_mapping={r"^(module\.|_orig_mod\.)+": "", **(key_mapping or {})},
            output_loading_info=True,
        )

    # A folder that may not be entered is to transformers a model of an unknown kind.
    is_there(Path(source) / "config.json")
    _hide_progress_bars()
    try:
        model, found = with_retries(f"model {source}", load)
    # The readers of the many kinds of models may raise anything on files that are not theirs.
    except Exception as error:
        if storage_fault(error):
            raise
        raise UserError(
            f"{one_line(source)} is not a {what}'s folder, nor to be had from the hub"
            f" ({one_line(error)}); without network give a local folder"
        ) from None
    # transformers would go on with random weights in place of those that are missing.
    if missing := sorted(found["missing_keys"]) + sorted(map(str, found["mismatched_keys"])):
        raise UserError(
            f"{source} lacks weights that its config.json asks for, or has them in another shape: {first_of(missing)};"
            f" left over are {first_of(sorted(found['unexpected_keys']))}; give another model, or make this one again"
        )
    left = [name for name in sorted(found["unexpected_keys"]) if may_be_left and not re.search(may_be_left, name)]
    if left:
        raise UserError(f"{source} holds {first_of(left)}, for which a {what} has no place; give another model")
    return model.eval()


def _hide_progress_bars() -> None:
    """Reading and writing weights takes an instant here; transformers shows a bar for each."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def next_logits(model: "PreTrainedModel", tokens: Tensor, cache: Any) -> tuple[Tensor, Any]:
    """(Logits float [batch, vocab] of the token after `tokens` int64 [batch, n], the cache with these).

    Args:
        cache: of the tokens before them, as the previous call returned it, or None.
    """
    output = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return output.logits[:, -1], output.past_key_values
