"""What is known of a corpus before it is prepared: its vocabulary and how many tokens it has, and from where."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfstep.run.errors import UserError
from halfstep.run.files import read_json, resolve_user_path
from halfstep.settings import Params, load_params

HUB_TOKENIZERS = dict.fromkeys(
    [name for size in ("", "-medium", "-large", "-xl") for name in (f"gpt2{size}", f"openai-community/gpt2{size}")],
    50257,
)
"""Entries of public tokenizers, by hub id."""

HUB_CORPORA = {"Skylion007/openwebtext": 9_000_000_000}
"""Tokens of public corpora under GPT-2's tokenizer, by hub id: OpenWebText has about nine billion."""


@dataclass(frozen=True)
class Known:
    """A number, and where it is from."""

    value: int
    source: str


def prepared_manifest(params: Params, root: Path) -> dict[str, Any] | None:
    """What `prepare` counted in the project, if that was this corpus: the one that params.yaml names there."""
    path = root / "data" / "tokens" / "manifest.json"
    if not path.is_file():
        return None
    try:
        there = load_params(root / "params.yaml")
        manifest = read_json(path)
        counted = [manifest["vocab_size"], manifest["train"]["num_tokens"], manifest["valid"]["num_tokens"]]
    except PermissionError:
        raise
    except (UserError, OSError, ValueError, KeyError, TypeError):
        return None
    is_same = (there.seed, there.data) == (params.seed, params.data)
    return manifest if is_same and all(isinstance(number, int) for number in counted) else None


def known_vocab_size(params: Params, manifest: dict[str, Any] | None, given: int | None) -> Known:
    """Tokens of the vocabulary, the mask token included.

    Args:
        params: all parameters.
        manifest: of `prepared_manifest`.
        given: what the user says, which goes before all else.
    Raises:
        UserError: nothing says it.
    """
    tokenizer = params.data.tokenizer
    if given is not None:
        return Known(given, "--vocab-size")
    if manifest is not None:
        return Known(manifest["vocab_size"], "data/tokens/manifest.json")
    if tokenizer.source.startswith("train-") and tokenizer.vocab_size is not None:
        return Known(tokenizer.vocab_size, "data.tokenizer.vocab_size, at most")
    folder = resolve_user_path(tokenizer.source)
    if folder.is_dir():
        from halfstep.data.tokenizer import load_tokenizer

        loaded = load_tokenizer(folder)
        return Known(len(loaded) + (loaded.mask_token is None), f"{tokenizer.source} and a mask token")
    if tokenizer.source in HUB_TOKENIZERS:
        return Known(HUB_TOKENIZERS[tokenizer.source] + 1, f"{tokenizer.source}'s tokenizer and a mask token")
    raise UserError(
        f"how many tokens the tokenizer {tokenizer.source} has is known when it is loaded: give --vocab-size, the mask"
        " token included, or a local folder in data.tokenizer.source"
    )


def known_num_tokens(params: Params, manifest: dict[str, Any] | None, given: int | None) -> Known | None:
    """Tokens of the training and the validation documents together; None where nothing says it.

    Args:
        params, manifest, given: as in `known_vocab_size`.
    """
    if given is not None:
        return Known(given, "--num-tokens")
    if manifest is not None:
        total = manifest["train"]["num_tokens"] + manifest["valid"]["num_tokens"]
        return Known(total, "data/tokens/manifest.json")
    hub_id = getattr(params.data, "hub_id", None)
    if hub_id in HUB_CORPORA and params.data.max_documents is None:
        return Known(HUB_CORPORA[hub_id], f"about, {hub_id} under GPT-2's tokenizer")
    return None
