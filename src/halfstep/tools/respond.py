"""A model's own answers to prompts: what its students are trained on."""

import json
from pathlib import Path

import torch

from halfstep.data.corpora.chat import prompt_of, read_conversations
from halfstep.data.texts.chat_template import Message, answer_text, prompt_ids
from halfstep.model.opening import as_masked
from halfstep.run.console import progress
from halfstep.run.errors import UserError, nan_as_user_error
from halfstep.run.files import atomic_path
from halfstep.run.work import Arrays, batched, cached, open_work
from halfstep.samplers.adjust import at_temperature
from halfstep.samplers.base import Uniforms
from halfstep.samplers.sampler import Sampler
from halfstep.samples.draw import draw
from halfstep.tools.generate import Opened


def respond(
    opened: Opened,
    sampler: Sampler,
    prompts_path: Path,
    answers_path: Path,
    *,
    temperature: float,
    length: int | None,
    seed: int,
    batch_size: int,
) -> tuple[int, int]:
    """Write conversations with a model's answers, as JSONL that the corpus `chat` reads, in the order of the prompts.

    An answer that a conversation has already is left out. Cut off, the same call goes on after the last batch.

    Args:
        opened: a denoiser.
        sampler, temperature: how it writes.
        prompts_path: JSONL, see `halfstep.data.corpora.chat`.
        length: tokens of prompt and answer, None the model's; a prompt that leaves none is left out.
        seed: decides the answers, each by its number.
    Returns:
        (answers written, prompts left out).
    Raises:
        UserError: the model is a causal one, has not so many positions, a line is no conversation, or no prompt leaves
            room.
    """
    model, tokenizer = as_masked(opened.model, opened.path), opened.tokenizer
    length = opened.length(length)
    asked: list[tuple[list[Message], list[int]]] = []
    num_left_out = 0
    for _, messages in read_conversations(prompts_path):
        prompt = prompt_of(messages)
        ids = prompt_ids(prompt, tokenizer)
        if len(ids) < length:
            asked.append((prompt, ids))
        else:
            num_left_out += 1
    if not asked:
        raise UserError(f"{prompts_path} has no prompt of fewer than {length} tokens: give a larger --length")
    options = at_temperature(temperature)

    def compute(numbers: list[int]) -> Arrays:
        x_init = torch.full((len(numbers), length), tokenizer.mask_token_id)
        for row, number in enumerate(numbers):
            ids = asked[number][1]
            x_init[row, : len(ids)] = torch.tensor(ids)
        uniforms = Uniforms(seed, numbers, length)
        drawn = draw(
            model,
            sampler,
            x_init.to(opened.device),
            mask_token_id=tokenizer.mask_token_id,
            uniforms=uniforms,
            **options,
        )
        return {"tokens": drawn.tokens.cpu().numpy()}

    values = {
        "sampler": sampler.name,
        "setting": sampler.setting,
        "temperature": temperature,
        "length": length,
        "seed": seed,
        "batch_size": batch_size,
    }
    with (
        nan_as_user_error(opened.path),
        open_work("respond", values, [opened.path, prompts_path]) as work,
        work.batches() as folder,
        progress("respond", len(asked), unit="answer") as show,
        atomic_path(answers_path) as path,
        path.open("w", encoding="utf-8") as lines,
    ):
        done = 0
        for numbers, kept in cached(folder, batched(range(len(asked)), batch_size), compute):
            for number, row in zip(numbers, kept["tokens"].tolist(), strict=True):
                messages, ids = asked[number]
                answer = {"role": "assistant", "content": answer_text(row[len(ids) :], tokenizer)}
                lines.write(json.dumps({"messages": [*messages, answer]}, ensure_ascii=False) + "\n")
            show(done := done + len(numbers), f"{sampler.name} {sampler.setting}")
        work.finish()
    return len(asked), num_left_out
