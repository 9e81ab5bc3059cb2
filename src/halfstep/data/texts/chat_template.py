"""Messages as tokens, by the chat template of a tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from halfstep.run.errors import UserError, one_line, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]


def prompt_ids(messages: list[Message], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What is given when the next message is to be written. Without a template: BOS and the one message there is.

    Raises:
        UserError: the tokenizer has no template, and there are more messages.
    """
    if tokenizer.chat_template is not None:
        return _rendered_ids(messages, tokenizer, add_generation_prompt=True)
    if len(messages) > 1:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path} has no chat template, by which a conversation of {len(messages)}"
            " messages before its answer is written: set data.tokenizer.source to one that has it"
        )
    return [tokenizer.bos_token_id, *text_ids(messages[0]["content"], tokenizer)]


def answer_ids(messages: list[Message], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """(what is given, the last message up to the special token that ends it) of a conversation.

    Raises:
        UserError: the template does not write what is given in the same way when the answer follows.
    """
    prompt = prompt_ids(messages[:-1], tokenizer)
    if tokenizer.chat_template is None:
        return prompt, text_ids(messages[-1]["content"], tokenizer)
    whole = _rendered_ids(messages, tokenizer)
    if whole[: len(prompt)] != prompt:
        raise UserError(
            f"the chat template of tokenizer {tokenizer.name_or_path} writes a prompt otherwise when its answer"
            " follows: set data.tokenizer.source to one that does not"
        )
    answer = whole[len(prompt) :]
    return prompt, answer[: answer_length(answer, tokenizer) + 1]


def answer_text(answer: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of an answer, which a special token ends."""
    return tokenizer.decode(answer[: answer_length(answer, tokenizer)]).strip()


def answer_length(answer: list[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of an answer before the special token that ends it."""
    added = tokenizer.added_tokens_decoder
    return next(
        (at for at, token_id in enumerate(answer) if token_id in added and added[token_id].special), len(answer)
    )


def _rendered_ids(messages: list[Message], tokenizer: PreTrainedTokenizerBase, **options: bool) -> list[int]:
    text = rendered(messages, tokenizer, **options)
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=False)


def rendered(messages: list[Message], tokenizer: PreTrainedTokenizerBase, **options: bool) -> str:
    """Messages as the tokenizer's chat template writes them.

    Raises:
        UserError: the template refuses them.
    """
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except TemplateError as error:
        raise UserError(
            f"the chat template of tokenizer {tokenizer.name_or_path} refuses {shown(messages)}: {one_line(error)}"
        ) from None


def text_ids(content: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of a text, none of them special whatever it says."""
    return tokenizer.encode(content, add_special_tokens=False, split_special_tokens=True)
