"""lm-eval's command with a denoiser on a task of local files."""

import json

import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from halfstep.model.config import DenoiserConfig
from halfstep.model.denoiser import Denoiser
from halfstep.run.errors import UserError
from halfstep.tools.cli import app
from halfstep.tools.lm_eval import RegisteredDenoiserLM

WORDS = ["the", "cat", "dog", "saw", "a", "bird", "ran", "red"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A denoiser of random weights with its tokenizer."""
    folder = tmp_path_factory.mktemp("denoiser")
    pieces = ["<bos>", "<eos>", *(f"▁{word}" for word in WORDS)]
    backend = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<eos>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", mask_token="<mask>"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = DenoiserConfig(
        vocab_size=len(tokenizer), mask_token_id=tokenizer.mask_token_id, length=24, hidden_size=16, num_blocks=1,
        num_heads=2, cond_dim=8, dropout=0.0, noise_epsilon=1e-3,
    )  # fmt: skip
    denoiser = Denoiser(config)
    with torch.no_grad():
        for weight in denoiser.parameters():
            weight.normal_(std=0.3)
    denoiser.save_pretrained(folder)
    return folder


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder with a multiple-choice task and a task of whole texts, on files of their own."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"question": "the cat saw", "choices": ["a red dog ran", "the bird"], "gold": i % 2} for i in range(6)]
    texts = [{"text": "the cat saw a red bird"}, {"text": "a dog ran"}]
    common = {"dataset_path": "json", "test_split": "test"}
    definitions = {
        "choices": {
            "output_type": "multiple_choice",
            "doc_to_text": "question",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
        "texts": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "text",
            "metric_list": [{"metric": "bits_per_byte"}],
        },
    }
    for (name, definition), documents in zip(definitions.items(), (rows, texts), strict=True):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(document) + "\n" for document in documents))
        task = {"task": f"local_{name}", "dataset_kwargs": {"data_files": {"test": str(path)}}, **common, **definition}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, ["lm-eval", *map(str, arguments)])


@pytest.mark.system  # lm-eval asks git for its version
def test_tasks_of_choices_and_of_texts(few_tasks, folder, tasks):
    result = run(
        "run", "--model", "halfstep", "--model_args", f"pretrained={folder},num_draws=4,seed=1",
        "--tasks", "local_choices,local_texts", "--include_path", tasks, "--limit", "4", "--batch_size", "3",
        "--device", "cpu", "--output_path", tasks / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (written,) = (tasks / "out").rglob("results_*.json")
    written = json.loads(written.read_text())
    # Labels alternate and the four documents are the same, so any preference is right half of the time.
    assert written["results"]["local_choices"]["acc,none"] == 0.5
    assert written["n-samples"]["local_choices"] == {"original": 6, "effective": 4}
    assert 0 < written["results"]["local_texts"]["bits_per_byte,none"] < 10
    told = written["config"]["monte_carlo"]
    # Two choices of four documents, and two whole texts.
    assert (told["num_draws"], told["seed"], told["num_log_likelihoods"]) == (4, 1, 10)
    assert told["mean_standard_error"] > 0
    assert "from 4 draws each (seed 1); mean Monte Carlo standard error" in result.stderr


def test_arguments_reach_lm_eval_unchanged():
    result = run("--help")
    assert result.exit_code == 0
    assert "Language Model Evaluation Harness" in result.stdout
    from lm_eval.api.registry import get_model

    assert get_model("hf").__name__ == "HFLM"
    assert get_model("halfstep") is RegisteredDenoiserLM


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_drawz": 3}, "--model_args: ancestral has no setting num_drawz"),
        ({"sampler": "confidence", "threshold": 1.5}, "threshold of confidence is 1.5: .* less than or equal to 1"),
        ({"sampler": "surest", "num_steps": 8}, "there is no sampler 'surest'; there are ancestral, confidence"),
        ({"num_steps": 0}, "num_steps of ancestral is 0: Input should be greater than 0"),
        ({"pretrained": None}, "pretrained is missing"),
        ({"num_draws": 0}, "num_draws is 0"),
        ({"num_draws": 2.5}, "num_draws is 2.5"),
        ({"batch_size": "auto"}, "--batch_size is 'auto'"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"device": "tpu"}, "--device is 'tpu'"),
        ({"device": "cuda:99"}, "--device is 'cuda:99'"),
        ({"pretrained": "no/such/folder"}, "no/such/folder"),
    ],
)
def test_wrong_arguments_are_one_line(folder, changes, message):
    arguments = {"pretrained": str(folder), "device": "cpu", **changes}
    arguments = {key: value for key, value in arguments.items() if value is not None}
    with pytest.raises(UserError, match=message):
        RegisteredDenoiserLM.create_from_arg_obj(arguments, {"batch_size": 2, "max_batch_size": None})


def test_a_tokenizer_of_another_model_is_refused(folder, tmp_path):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens(["▁house"])
    tokenizer.mask_token = "▁house"
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="mask token at 11, the model at 10"):
        RegisteredDenoiserLM(str(folder), tokenizer=str(tmp_path), device="cpu")


def test_arguments_as_one_string(folder):
    lm = RegisteredDenoiserLM.create_from_arg_string(f"pretrained={folder},num_draws=5", {"device": "cpu"})
    assert lm.monte_carlo()["num_draws"] == 5
