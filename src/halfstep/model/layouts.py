"""The ways in which a denoiser's sizes are written down, read and written.

`config.json` comes in three layouts: `plain`, our own, flat and complete; `mdlm`, that of `kuleshov-group/mdlm-owt`,
under the names of its remote code; and `sdtt`, that of `jdeschena/sdtt`, which holds a whole training configuration.
"""

from typing import Any, Literal, get_args

from halfstep.model.config import DenoiserConfig
from halfstep.run.errors import UserError

Layout = Literal["plain", "mdlm", "sdtt"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

MODEL_TYPE = "mdlm"
"""What `config.json` names a denoiser, where it names it."""

WEIGHT_PREFIX: dict[Layout, str] = {"plain": "", "mdlm": "backbone.", "sdtt": "backbone."}
"""The prefix of the tensors' names: the published weights are those of a wrapper around the network."""

OTHER_KINDS = {
    "time_conditioning": "a denoiser does not know the time",
    "causal": "a denoiser looks at both sides",
    "causal_attention": "a denoiser looks at both sides",
    "cross_attn": "a denoiser sees no clean copy beside its input",
}
"""Entries of these layouts that say, when they hold, that a network is of another kind."""

REFERENCE_NOISE_EPSILON = 1e-3
"""The schedule of the published models, whose configuration does not always state it."""

GPT2_VOCAB_SIZE = 50258
"""GPT-2's tokens and one mask token: what an `sdtt` configuration means, which does not state it."""


def config_from(values: dict[str, Any]) -> DenoiserConfig:
    """Sizes from any of the layouts.

    Args:
        values: of a `config.json`, or of the configuration in a training checkpoint.
    Raises:
        KeyError: names a size that is not there.
        TypeError, ValueError, OverflowError, AttributeError: a size is not a whole number, or the network is of
            another kind.
    """
    sizes = values.get("model", values)
    for name, reason in OTHER_KINDS.items():
        if values.get(name) or sizes.get(name):
            raise ValueError(f"{name} is {values.get(name) or sizes.get(name)}, and {reason}")
    if not sizes.get("adaln", True):
        raise ValueError("adaln is False, and a denoiser's norms are modulated")
    # An `sdtt` configuration may give the vocabulary at its top; in the flat layouts this is the same place.
    vocab_size = values.get("vocab_size", sizes.get("vocab_size"))
    if vocab_size is None:
        if (values.get("tokenizer") or {}).get("name") != "gpt2":
            raise KeyError("vocab_size")
        vocab_size = GPT2_VOCAB_SIZE

    def first(*names: str) -> int:
        for name in names:
            if name in sizes:
                return _integer(sizes[name])
        raise KeyError(names[0])

    length = first("length", "model_length")
    block_size = values.get("block_size", sizes.get("block_size"))
    if block_size not in (None, length):
        raise ValueError(f"block_size is {block_size}, and a denoiser writes no blocks one after the other")
    mask_token_id = values.get("mask_index", sizes.get("mask_index"))
    return DenoiserConfig(
        vocab_size=_integer(vocab_size),
        mask_token_id=_integer(vocab_size) - 1 if mask_token_id is None else _integer(mask_token_id),
        length=length,
        hidden_size=first("hidden_size", "hidden_dim"),
        num_blocks=first("n_blocks"),
        num_heads=first("n_heads"),
        cond_dim=first("cond_dim"),
        dropout=float(sizes.get("dropout", 0.0)),
        noise_epsilon=float((values.get("noise") or {}).get("eps", REFERENCE_NOISE_EPSILON)),
        absolute_positions=bool(sizes.get("absolute_positions", False)),
        takes_latent=bool(sizes.get("takes_latent", False)),
        takes_noise=bool(sizes.get("takes_noise", False)),
    )


def _integer(value: Any) -> int:
    number = int(value)
    if isinstance(value, bool) or number != float(value):
        raise ValueError(f"{value!r} is not a whole number")
    return number


def config_values(config: DenoiserConfig, layout: Layout) -> dict[str, Any]:
    """The values of a `config.json`, from which `config_from` gives back the same sizes.

    Raises:
        UserError: the layout has no place for absolute positions, a latent or noise.
    """
    own = [name for name in ("absolute_positions", "takes_latent", "takes_noise") if getattr(config, name)]
    if own and layout != "plain":
        raise UserError(
            f"the layout {layout} has no {own[0].replace('_', ' ')}, which this model has: give --layout plain"
        )
    length, hidden_size = ("model_length", "hidden_dim") if layout == "mdlm" else ("length", "hidden_size")
    sizes = {
        length: config.length,
        hidden_size: config.hidden_size,
        "n_blocks": config.num_blocks,
        "n_heads": config.num_heads,
        "cond_dim": config.cond_dim,
        "dropout": config.dropout,
    }
    tokens = {"vocab_size": config.vocab_size, "mask_index": config.mask_token_id}
    noise = {"time_conditioning": False, "noise": {"type": "loglinear", "eps": config.noise_epsilon}}
    if layout == "sdtt":
        return {"model": {"type": "ddit", **sizes}, **tokens, **noise}
    # Not stated where there are none: the file is then as that of a model made before.
    return {"model_type": MODEL_TYPE, **tokens, **sizes, **dict.fromkeys(own, True), **noise}
