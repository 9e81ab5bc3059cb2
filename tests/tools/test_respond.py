"""`halfstep respond` and `halfstep generate --chat`: answers, the same however often the command is cut off."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from halfstep.data.corpora.chat import read_conversations, rows
from halfstep.data.texts.chat_template import answer_text, prompt_ids
from halfstep.data.tokenizer import load_tokenizer, train_word_tokenizer
from halfstep.model.config import DenoiserConfig
from halfstep.model.denoiser import Denoiser
from halfstep.samplers.base import Uniforms
from halfstep.samplers.sampler import Sampler, sampler_of
from halfstep.tools.cli import app

pytestmark = pytest.mark.stage
LENGTH = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = train_word_tokenizer([" user assistant the cat saw a red bird and ran"], 40)
    tokenizer.chat_template = (
        "{% for m in messages %}<|bos|> {{ m.role }} {{ m.content }}<|eos|>{% endfor %}"
        "{% if add_generation_prompt %}<|bos|> assistant{% endif %}"
    )
    torch.manual_seed(0)
    denoiser = Denoiser(DenoiserConfig(len(tokenizer), tokenizer.mask_token_id, LENGTH, 16, 1, 2, 8, 0.0, 1e-3))
    with torch.no_grad():
        for weight in denoiser.parameters():
            weight.normal_(std=0.5)
    folder = tmp_path_factory.mktemp("model")
    denoiser.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    path = tmp_path / "prompts.jsonl"
    turns = [
        ("the cat", "ran"),
        ("a red bird", None),
        ("the bird saw a cat and a bird " * 3, None),
        ("a cat ran", None),
    ]
    path.write_text("\n".join(json.dumps({"prompt": prompt, "response": response}) for prompt, response in turns))
    return path


def respond(*arguments: object):
    return CliRunner().invoke(app, ["respond", *map(str, arguments)])


def test_answers_are_the_models_and_data_for_its_students(model: Path, prompts: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    result = respond(prompts, answers, "--model", model, "--batch-size", 2, "--seed", 3)
    assert result.exit_code == 0, result.output
    assert "3 answers; prompts left out as too long: 1" in result.output
    denoiser, tokenizer = Denoiser.from_pretrained(model), load_tokenizer(model)
    found = [messages for _, messages in read_conversations(answers)]
    assert [messages[:-1] for messages in found] == [
        [{"role": "user", "content": content}] for content in ("the cat", "a red bird", "a cat ran")
    ]
    values = {"num_steps": 32, "score": "confidence", "noise": 0.0, "counts": "even", "block_length": 32}
    sampler = sampler_of("ordered", values, "")
    for number, messages in enumerate(found):
        ids = prompt_ids(messages[:-1], tokenizer)
        x_init = torch.tensor([ids + [tokenizer.mask_token_id] * (LENGTH - len(ids))])
        drawn = sampler.sample(
            denoiser, x_init, mask_token_id=tokenizer.mask_token_id, uniforms=Uniforms(3, [number], LENGTH)
        )
        assert messages[-1] == {
            "role": "assistant",
            "content": answer_text(drawn.tokens[0, len(ids) :].tolist(), tokenizer),
        }
    assert len(rows([json.dumps(messages) for messages in found], tokenizer, 2 * LENGTH)) == 3


def test_a_command_that_was_cut_off_draws_no_answer_twice(
    model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = prompts, tmp_path / "answers.jsonl", "--model", model, "--batch-size", 1
    assert respond(*arguments).exit_code == 0
    expected = (tmp_path / "answers.jsonl").read_text()
    calls: list[int] = []
    sample = Sampler.sample

    def failing(self: Sampler, network, x_init, **options):
        calls.append(len(x_init))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sample(self, network, x_init, **options)

    (tmp_path / "answers.jsonl").unlink()
    monkeypatch.setattr(Sampler, "sample", failing)
    assert respond(*arguments, "--seed", 1).exit_code != 0
    assert not (tmp_path / "answers.jsonl").exists()
    assert respond(*arguments, "--seed", 1).exit_code == 0
    # The second of three was begun twice.
    assert len(calls) == 4
    assert (tmp_path / "answers.jsonl").read_text() != expected


def test_a_message_is_answered(model: Path) -> None:
    result = CliRunner().invoke(
        app, ["generate", "--model", str(model), "--prompt", "the cat", "--chat", "--num-steps", "4"]
    )
    assert result.exit_code == 0, result.output
    tokenizer = load_tokenizer(model)
    ids = prompt_ids([{"role": "user", "content": "the cat"}], tokenizer)
    x_init = torch.tensor([ids + [tokenizer.mask_token_id] * (LENGTH - len(ids))])
    drawn = Sampler("ancestral", {"num_steps": 4, "counts": "binomial"}).sample(
        Denoiser.from_pretrained(model), x_init, mask_token_id=tokenizer.mask_token_id,
        uniforms=Uniforms(0, range(1), LENGTH),
    )  # fmt: skip
    assert result.output == answer_text(drawn.tokens[0, len(ids) :].tolist(), tokenizer) + "\n"


def test_prompts_that_leave_no_room_are_one_line(model: Path, prompts: Path, tmp_path: Path) -> None:
    result = respond(prompts, tmp_path / "answers.jsonl", "--model", model, "--length", 4)
    assert "has no prompt of fewer than 4 tokens: give a larger --length" in str(result.exception)


def test_a_causal_model_and_one_of_another_tokenizer_are_one_line(
    folders: dict[str, Path], model: Path, prompts: Path, tmp_path: Path
) -> None:
    result = respond(prompts, tmp_path / "answers.jsonl", "--model", folders["causal"])
    assert "causal is a causal language model, but a masked one is needed" in str(result.exception)
    shutil.copytree(folders["denoiser"], tmp_path / "mixed")
    shutil.copy(model / "tokenizer.json", tmp_path / "mixed")
    result = respond(prompts, tmp_path / "answers.jsonl", "--model", tmp_path / "mixed")
    assert "put the tokenizer there that it was trained with" in str(result.exception)
