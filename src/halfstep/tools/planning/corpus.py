"""What is known of a corpus before it is prepared: its vocabulary and how many tokens it has, and from where."""

from dataclasses import dataclass
from pathlib import Path

from halfstep.data.tokens.manifest import Manifest, read_manifest
from halfstep.run.errors import UserError
from halfstep.run.files import resolve_user_path
from halfstep.settings import Params, load_params
from halfstep.tools.planning.networks import GPT2_SIZES, GPT2_VOCAB_SIZE
from halfstep.tools.planning.teacher import teacher_vocab_size

HUB_CORPORA = {"Skylion007/openwebtext": 9_000_000_000}
"""Tokens of public corpora under GPT-2's tokenizer, by hub id: OpenWebText has about nine billion."""


@dataclass(frozen=True)
class Known:
    """A number, and where it is from."""

    value: int
    source: str


def prepared_manifest(params: Params, root: Path) -> Manifest | None:
    """The manifest that `prepare` wrote in the project, if of this corpus: the one that params.yaml names there."""
    try:
        there = load_params(root / "params.yaml")
        if (there.seed, there.data) == (params.seed, params.data):
            return read_manifest(root / "data" / "tokens")
    except PermissionError:
        raise
    except (UserError, OSError):
        pass
    return None


def known_vocab_size(params: Params, manifest: Manifest | None, given: int | None) -> Known:
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
        return Known(manifest.vocab_size, "data/tokens/manifest.json")
    if tokenizer.source.startswith("train-") and tokenizer.vocab_size is not None:
        return Known(tokenizer.vocab_size, "data.tokenizer.vocab_size, at most")
    folder = resolve_user_path(tokenizer.source)
    if folder.is_dir():
        from halfstep.data.tokenizer import load_tokenizer

        loaded = load_tokenizer(folder)
        return Known(len(loaded) + (loaded.mask_token is None), f"{tokenizer.source} and a mask token")
    if tokenizer.source.removeprefix("openai-community/") in GPT2_SIZES:
        return Known(GPT2_VOCAB_SIZE + 1, f"{tokenizer.source}'s tokenizer and a mask token")
    if params.pretrain.init_from is not None:
        return Known(teacher_vocab_size(params), "rows of pretrain.init_from's projection")
    raise UserError(
        f"how many tokens the tokenizer {tokenizer.source} has is known when it is loaded: give --vocab-size, the mask"
        " token included, or a local folder in data.tokenizer.source"
    )


def known_num_tokens(params: Params, manifest: Manifest | None, given: int | None) -> Known | None:
    """Tokens of the training and the validation documents together; None where nothing says it."""
    if given is not None:
        return Known(given, "--num-tokens")
    if manifest is not None:
        num_sequences = manifest.train.num_sequences + manifest.valid.num_sequences
        return Known(num_sequences * (manifest.context_length - 2), "data/tokens/manifest.json")
    hub_id = getattr(params.data, "hub_id", None)
    if hub_id in HUB_CORPORA and params.data.max_documents is None:
        return Known(HUB_CORPORA[hub_id], f"about, {hub_id} under GPT-2's tokenizer")
    return None
