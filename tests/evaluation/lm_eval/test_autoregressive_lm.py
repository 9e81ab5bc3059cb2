"""Our autoregressive numbers are lm-eval's."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
import yaml
from tokenizers.pre_tokenizers import ByteLevel
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

from halfstep.evaluation.lm_eval.autoregressive_lm import AutoregressiveLM
from halfstep.evaluation.metrics.cloze import load_passages, run_cloze
from halfstep.run.errors import UserError

PASSAGES = [
    "the cat sat on the mat and looked at the other cat",
    "She said \u201cyes\u201d \u2014 and then, at last, na\u00efve",
    "one two three four five six seven",
    "a b",
]


@pytest.fixture
def saved(tmp_path):
    """A GPT-2 of random weights with a byte-level tokenizer, in a folder: (it, model, tokenizer)."""
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ġ", "a"), ("a", "t")]
    pieces = [*sorted(ByteLevel.alphabet()), *("".join(pair) for pair in merges), "<|endoftext|>"]
    tokenizer = GPT2Tokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=96,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        # Strong opinions on two words, so that some passages are told right and others not.
        model.transformer.wte.weight[tokenizer.convert_tokens_to_ids(["Ġthe", "Ġa"])] *= 4
    model.save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2", model, tokenizer


@pytest.mark.system  # lm-eval asks git for its version
def test_cloze_numbers_equal_those_of_lm_evals_own_model(saved, tmp_path, monkeypatch):
    import datasets
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    folder, model, tokenizer = saved
    # One passage ends in the word that the model says of its own accord, so that accuracy is not 0.
    spaced = [i for i in range(len(tokenizer)) if tokenizer.decode([i]) in (" a", " the")]
    starts = [f"<|endoftext|>{letter}{word}" for letter in "bcdfghij" for word in (" a", " the", " the a", " a the")]
    endings = [[*tokenizer.encode(start), token] for start in starts for token in spaced]
    with torch.no_grad():
        hits = [ids for ids in endings if int(model(torch.tensor([ids[:-1]])).logits[0, -1].argmax()) == ids[-1]]
    passages = [*PASSAGES, *(tokenizer.decode(ids[1:]) for ids in hits)]
    assert hits
    path = tmp_path / "cloze.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in passages), encoding="utf-8")
    task = {
        "task": "cloze_local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "output_type": "loglikelihood",
        "test_split": "test",
        "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
        "doc_to_target": "{{' '+text.split(' ')[-1]}}",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        ],
    }
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "cloze_local.yaml").write_text(yaml.safe_dump(task))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    theirs = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder), "add_bos_token": True, "dtype": "float32"},
        tasks=["cloze_local"],
        task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
        device="cpu",
        batch_size=2,
        bootstrap_iters=0,
    )["results"]["cloze_local"]
    lm = AutoregressiveLM(model, tokenizer, batch_size=3)
    ours = run_cloze(lm, load_passages(path, None))
    assert 0 < ours.accuracy.value < 1
    assert ours.accuracy.value == pytest.approx(theirs["acc,none"], abs=1e-4)
    assert ours.perplexity.value == pytest.approx(theirs["perplexity,none"], rel=1e-4)
    assert lm.num_truncated == 0


def test_broken_weights_are_an_error(saved):
    _, model, tokenizer = saved
    with torch.no_grad():
        model.transformer.wte.weight.fill_(math.nan)
    lm = AutoregressiveLM(model, tokenizer, batch_size=2)
    with pytest.raises(UserError, match=r"NaN for ' cat'"):
        lm.loglikelihood([SimpleNamespace(args=("the", " cat"))], disable_tqdm=True)


def test_an_empty_context_is_bos_and_an_empty_continuation_is_refused(saved):
    _, model, tokenizer = saved
    lm = AutoregressiveLM(model, tokenizer, batch_size=2)
    ((value, _),) = lm.loglikelihood([SimpleNamespace(args=("", "the"))], disable_tqdm=True)
    ids = tokenizer.encode("the")
    with torch.no_grad():
        log_p = model(torch.tensor([[tokenizer.bos_token_id, *ids]])).logits.log_softmax(-1)[0]
    assert value == pytest.approx(sum(log_p[i, token].item() for i, token in enumerate(ids)), rel=1e-5)
    with pytest.raises(UserError, match="no tokens of its own"):
        lm.loglikelihood([SimpleNamespace(args=("the", ""))], disable_tqdm=True)
