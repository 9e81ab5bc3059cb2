"""What a person asks a model to write: the options of `halfstep generate`, and what comes of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from halfstep.data.corpora import sudoku
from halfstep.data.texts.chat_template import answer_text, prompt_ids, text_ids
from halfstep.model.base import MaskedModel
from halfstep.model.gpt2 import length_of
from halfstep.model.opening import num_positions, open_with_tokenizer
from halfstep.run.device import select_device
from halfstep.run.errors import UserError, nan_as_user_error, one_line
from halfstep.samplers.adjust import at_temperature
from halfstep.samplers.base import Samples, Uniforms
from halfstep.samplers.sampler import Sampler
from halfstep.samples.draw import AUTOREGRESSIVE, draw, from_prompts
from halfstep.tools.best import best_sampler


@dataclass(frozen=True)
class Opened:
    """A model of either kind, in evaluation mode on its device, with its tokenizer and the folder they are from."""

    path: Path
    model: Any
    tokenizer: Any
    device: torch.device

    @property
    def usual_length(self) -> int:
        """Tokens of the texts that it was trained on."""
        return self.model.config.length if isinstance(self.model, MaskedModel) else length_of(self.model)

    def length(self, asked: int | None) -> int:
        """Tokens that are to be written, prompt included; a `UserError` if the model cannot read so many."""
        most = num_positions(self.model)
        if asked and most is not None and asked > most:
            raise UserError(f"--length is {asked}, but {self.path} has {most} positions: give {most} or less")
        return asked or self.usual_length


def open_on(path: Path, device: str) -> Opened:
    """Open a model on a device.

    Raises:
        UserError: see `open_with_tokenizer` and `select_device`.
    """
    opened: tuple[Any, Any] = open_with_tokenizer(path)
    model, tokenizer = opened
    target = select_device(device)
    return Opened(path, model.to(target), tokenizer, target)


@dataclass(frozen=True)
class Writing:
    """Texts that are about to be written.

    Attributes:
        sampler, temperature: how.
        x_init: what they begin as, on the model's device, int64 [num_samples, length].
        draw: writes them; its argument is `on_step` of `fill`, or None.
        text: of a row of tokens, as it is printed.
    """

    sampler: Sampler
    temperature: float
    x_init: Tensor
    draw: Callable[[Callable[[int, Tensor], None] | None], Samples]
    text: Callable[[list[int]], str]


def prepare(
    opened: Opened,
    sampler: Sampler | None,
    *,
    evaluations: int,
    prompt: str,
    chat: bool,
    num_samples: int,
    length: int | None,
    seed: int,
    temperature: float | None,
    cells: Sequence[int] = (),
    top_k: int | None = None,
    top_p: float | None = None,
) -> Writing:
    """What a model is to write, and how.

    Args:
        sampler: None is the best that was measured for `evaluations`, at its temperature unless another is given; a
            causal model has a way of its own.
        cells: of a puzzle, in place of the prompt.
        length: tokens, prompt included; None is the model's.
    Raises:
        UserError: the prompt, the puzzle or the length does not fit the model.
    """
    model, tokenizer = opened.model, opened.tokenizer
    is_masked = isinstance(model, MaskedModel)
    chosen = sampler if sampler and is_masked else AUTOREGRESSIVE
    if is_masked and sampler is None:
        chosen, usual_temperature = best_sampler(opened.path, evaluations)
        temperature = usual_temperature if temperature is None else temperature
    temperature = 1.0 if temperature is None else temperature
    mask_token_id = tokenizer.mask_token_id
    whole = opened.usual_length
    if cells:
        _check_writes_grids(tokenizer, opened.path, size=math.isqrt(len(cells)), length=whole)
        x_init = from_prompts([sudoku.as_prompt(cells)] * num_samples, tokenizer)
    else:
        x_init = _begun_with(prompt, num_samples, opened.length(length), tokenizer, chat=chat)
        if is_masked and x_init.shape[1] == whole and not chat:
            # Every sequence that the model knows ends so.
            x_init[:, -1] = tokenizer.eos_token_id
    x_init = x_init.to(opened.device)
    num_given = int((x_init[0] != mask_token_id).sum())

    def write(on_step: Callable[[int, Tensor], None] | None) -> Samples:
        uniforms = Uniforms(seed, range(num_samples), x_init.shape[1])
        options = {"mask_token_id": mask_token_id, "uniforms": uniforms, "on_step": on_step}
        with nan_as_user_error(opened.path):
            return draw(model, chosen, x_init, **options, **at_temperature(temperature, top_k=top_k, top_p=top_p))

    def text(row: list[int]) -> str:
        if chat:
            return answer_text(row[num_given:], tokenizer)
        return tokenizer.decode(row, skip_special_tokens=True).strip()

    return Writing(chosen, temperature, x_init, write, text)


def _begun_with(prompt: str, num_samples: int, length: int, tokenizer: Any, *, chat: bool) -> Tensor:
    """A text's BOS and beginning, or a conversation's, and masks after it, int64 [num_samples, length]."""
    if chat:
        ids = prompt_ids([{"role": "user", "content": prompt}], tokenizer)
    else:
        ids = [tokenizer.bos_token_id, *text_ids(prompt, tokenizer)]
    if len(ids) >= length:
        raise UserError(
            f"--prompt has {len(ids)} tokens with BOS, which leaves nothing of the {length} tokens to write:"
            " shorten it, or give a larger --length"
        )
    x_init = torch.full((num_samples, length), tokenizer.mask_token_id)
    x_init[:, : len(ids)] = torch.tensor(ids)
    return x_init


def _check_writes_grids(tokenizer: Any, model: Path, *, size: int, length: int) -> None:
    """Refuse a model that was not trained on grids of a puzzle's size."""
    needed = sudoku.num_tokens(size)
    if length != needed or not {f" {digit}" for digit in range(1, size + 1)} <= tokenizer.get_vocab().keys():
        raise UserError(
            f"--puzzle is of {size}x{size} cells, but {model} was not trained on such grids: give one that was: dvc exp"
            f" run -S data=sudoku -S data.size={size} -S data.context_length={needed}"
        )


def settings_in(arguments: list[str]) -> dict[str, Any]:
    """The settings of a sampler in `--num-steps 8 --threshold=0.9`."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    try:
        pairs = {option: yaml.safe_load(value) for option, value in zip(words[::2], words[1::2], strict=True)}
    except (ValueError, yaml.YAMLError):
        pairs = {}
    if len(pairs) != len(words) / 2 or not all(option.startswith("--") for option in pairs):
        raise UserError(f"{one_line(' '.join(arguments))} is not understood: see halfstep generate --help")
    return {option[2:].replace("-", "_"): value for option, value in pairs.items()}
