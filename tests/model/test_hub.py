"""Masked language models of transformers as the house asks them, each against transformers' own logits."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model.hub_folders import DECODERS, MASK, NUM_TOKENS, OWN, VOCAB, diffugpt, llada, of_authors, published
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from halfstep.data.tokenizer import train_bpe_tokenizer
from halfstep.model.base import MaskedModel
from halfstep.model.families import family_of
from halfstep.model.hub import HubModel, open_hub, read_hub
from halfstep.model.opening import config_of, new_as
from halfstep.objectives.mmd import HasFeatures
from halfstep.run.errors import UserError


def opened(folder: Path, **given: Any) -> HubModel:
    values = {"mask_token_id": MASK, "num_tokens": NUM_TOKENS, "length": 24, "noise_epsilon": 1e-3, **given}
    return open_hub(folder, None, **values)


def asked(model: HubModel, xt: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return F.linear(model.hidden_at(xt, at), *model.projection())


def some_tokens() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    xt = torch.randint(3, NUM_TOKENS, (3, 24), generator=generator)
    return xt, torch.rand(xt.shape, generator=generator) < 0.4


@pytest.mark.parametrize(
    ("model_type", "is_shifted"), [*((kind, False) for kind in OWN), *((kind, True) for kind in DECODERS)]
)
def test_what_is_asked_is_the_networks_own_logits(model_type: str, is_shifted: bool, tmp_path: Path) -> None:
    network = published(tmp_path / "hub", model_type)
    model = opened(tmp_path / "hub", **({"is_shifted": is_shifted} if model_type in DECODERS else {}))
    assert isinstance(model, MaskedModel)
    xt, at = some_tokens()
    # Both sides without trusting a flag: nothing is hidden from anything.
    sees_all = {"attention_mask": torch.zeros(3, 1, 24, 24)} if model_type in DECODERS else {}
    with torch.no_grad():
        exactly = {name: mask.double() for name, mask in sees_all.items()}
        expected = copy.deepcopy(network).double()(input_ids=xt, **exactly).logits
    if is_shifted:
        expected = torch.cat([expected[:, :1], expected[:, :-1]], dim=1)
    exact = asked(copy.deepcopy(model).double(), xt, at)
    assert torch.allclose(exact[:, :NUM_TOKENS], expected[at][:, :NUM_TOKENS], rtol=0, atol=1e-6)
    found = asked(model, xt, at)
    assert torch.allclose(found.double()[:, :NUM_TOKENS], expected[at][:, :NUM_TOKENS], atol=1e-5)
    assert bool((found[:, NUM_TOKENS:] == -torch.inf).all())

    # Written and read again, here and by transformers alone.
    (tmp_path / "own").mkdir()
    model.save_pretrained(tmp_path / "own")
    assert torch.equal(asked(model, xt, at), found)
    again = read_hub(tmp_path / "own")
    assert again.config == config_of(tmp_path / "own") == model.config
    sizes = [
        {name: weight.shape for name, weight in each.named_parameters()} for each in (model, new_as(tmp_path / "own"))
    ]
    assert sizes[0] == sizes[1]
    assert torch.equal(asked(again, xt, at), found)
    auto_class = AutoModelForCausalLM if model_type in DECODERS else AutoModelForMaskedLM
    with torch.no_grad():
        alone = auto_class.from_pretrained(tmp_path / "own").eval()(input_ids=xt).logits
    assert torch.allclose(alone, network(input_ids=xt, **sees_all).logits, atol=1e-5)


@pytest.mark.parametrize("model_type", OWN)
def test_features_are_the_states_within(model_type: str, tmp_path: Path) -> None:
    """Before all blocks a state knows its own token alone, after one all tokens; a decoder's last are projected."""
    published(tmp_path, model_type)
    model = opened(tmp_path, **({"is_shifted": False} if model_type in DECODERS else {}))
    assert isinstance(model, HasFeatures)
    xt, _ = some_tokens()
    other = xt.clone()
    other[:, 3] = xt[:, 4]
    with torch.no_grad():
        same = [(model.features(xt, n) - model.features(other, n)).abs().amax(dim=2) < 1e-6 for n in range(3)]
        assert torch.equal(same[0], xt == other)
        assert not same[2].any()
        if model_type in DECODERS:
            everywhere = torch.ones_like(xt, dtype=torch.bool)
            assert torch.equal(model.features(xt, 2).flatten(0, 1), model.hidden_at(xt, everywhere))


def test_what_ends_a_text_is_not_taken_for_padding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = published(tmp_path, "gpt2", pad_token_id=2)
    warned: list[str] = []
    monkeypatch.setattr("transformers.modeling_utils.logger.warning_once", warned.append)
    ends = torch.tensor([[1, MASK, 2]])
    network(input_ids=ends)
    assert len(warned) == 1
    asked(opened(tmp_path, is_shifted=True), ends, ends == MASK)
    assert len(warned) == 1


@pytest.mark.parametrize("num_named", [VOCAB, VOCAB - 1])
def test_diffugpt_is_a_gpt2_in_a_wrapper_and_may_have_a_token_more_than_it_says(num_named: int, tmp_path: Path) -> None:
    network = diffugpt(tmp_path / "diffugpt", num_named)
    model = opened(tmp_path / "diffugpt", is_shifted=True, num_tokens=VOCAB, mask_token_id=VOCAB - 1)
    xt, at = some_tokens()
    with torch.no_grad():
        expected = network(input_ids=xt, attention_mask=torch.zeros(3, 1, 24, 24)).logits
    expected = torch.cat([expected[:, :1], expected[:, :-1]], dim=1)[at]
    assert torch.allclose(asked(model, xt, at), expected, atol=1e-5)
    (tmp_path / "own").mkdir()
    model.save_pretrained(tmp_path / "own")
    assert torch.equal(asked(read_hub(tmp_path / "own"), xt, at), asked(model, xt, at))
    assert AutoConfig.from_pretrained(tmp_path / "own").vocab_size == VOCAB


def test_llada_is_a_llama_under_other_names(tmp_path: Path) -> None:
    network = llada(tmp_path / "llada")
    model = opened(tmp_path / "llada")
    xt, at = some_tokens()
    with torch.no_grad():
        expected = network(input_ids=xt, attention_mask=torch.zeros(3, 1, 24, 24)).logits[at]
    assert torch.allclose(asked(model, xt, at)[:, :NUM_TOKENS], expected[:, :NUM_TOKENS], atol=1e-5)
    llada(tmp_path / "alibi", alibi=True)
    with pytest.raises(UserError, match=r"alibi is True, and only False can be read"):
        opened(tmp_path / "alibi")


@pytest.mark.parametrize(
    ("model_type", "native", "is_shifted"), [("Dream", "qwen2", True), ("a2d-qwen3", "qwen3", False)]
)
def test_a_type_of_its_own_is_read_by_a_class_of_transformers(
    model_type: str, native: str, is_shifted: bool, tmp_path: Path
) -> None:
    of_authors(tmp_path, model_type)
    path = tmp_path / "config.json"
    xt, at = some_tokens()
    found = opened(tmp_path)
    assert found.config.is_shifted is is_shifted
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": native}))
    assert torch.equal(asked(found, xt, at), asked(opened(tmp_path, is_shifted=is_shifted), xt, at))


def test_a_model_that_cannot_be_a_teacher_is_refused_in_a_line(tmp_path: Path) -> None:
    published(tmp_path / "qwen2", "qwen2")
    with pytest.raises(UserError, match=r"qwen2 is a qwen2: say whether .* pretrain.init_shift=true or false"):
        opened(tmp_path / "qwen2")
    published(tmp_path / "bert", "bert")
    with pytest.raises(UserError, match=r"init_shift is True, but models of the kind of .* have it otherwise"):
        opened(tmp_path / "bert", is_shifted=True)
    with pytest.raises(UserError, match=r"has 97 tokens, but its tokenizer 98"):
        opened(tmp_path / "bert", num_tokens=98)
    published(tmp_path / "roberta", "roberta", max_position_embeddings=18, pad_token_id=1)
    with pytest.raises(UserError, match=r"has 16 positions: dvc exp run -S data\.context_length=16"):
        opened(tmp_path / "roberta", length=17)
    masks = torch.full((1, 16), MASK)
    assert asked(opened(tmp_path / "roberta", length=16), masks, masks == MASK).shape == (16, 97)
    published(tmp_path / "eurobert", "eurobert")
    with pytest.raises(UserError, match=r"masks with token 5, but the tokenizer with 6"):
        opened(tmp_path / "eurobert", mask_token_id=6)
    with pytest.raises(UserError, match=r"of the type bd3lm, .* its attention goes by blocks"):
        family_of({"model_type": "bd3lm"}, "a/b")


def test_faults_of_a_folder_are_a_line_each(tmp_path: Path) -> None:
    published(tmp_path / "bert", "bert")
    path = tmp_path / "bert" / "model.safetensors"
    tensors = load_file(path)
    pooler = {"bert.pooler.dense.weight": torch.zeros(32, 32)}
    save_file({**tensors, **pooler}, path, metadata={"format": "pt"})
    opened(tmp_path / "bert")
    save_file({**tensors, "bert.extra": torch.zeros(3)}, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"holds bert.extra, for which a masked language model has no place"):
        opened(tmp_path / "bert")
    lacking = next(name for name in tensors if "layer.1" in name)
    save_file({name: t for name, t in tensors.items() if name != lacking}, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights that its config.json asks for"):
        opened(tmp_path / "bert")


def test_a_network_that_is_causal_or_bends_its_logits_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = published(tmp_path, "llama")
    with monkeypatch.context() as patch:
        patch.setattr("halfstep.model.hub.load_pretrained", lambda *arguments, **options: network)
        with pytest.raises(UserError, match=r"is causal: its first position does not see the last token"):
            opened(tmp_path, is_shifted=False)
    forward = type(network).forward

    def capped(self: Any, **inputs: Any) -> Any:
        output = forward(self, **inputs)
        output.logits = 3 * torch.tanh(output.logits / 3)
        return output

    monkeypatch.setattr(type(network), "forward", capped)
    with pytest.raises(UserError, match=r"changes its logits after the projection"):
        opened(tmp_path, is_shifted=False)


def test_the_token_that_pads_learns_too(tmp_path: Path) -> None:
    """In LLaDA and Dream it is EOS."""
    published(tmp_path, "llama", pad_token_id=2)
    model = opened(tmp_path, is_shifted=False)
    xt = torch.tensor([[2, 7, 8, 2]])
    asked_for = model.hidden_at(xt, xt == 7)
    asked_for.sum().backward()
    assert bool(model.network.get_input_embeddings().weight.grad[2].any())


@pytest.mark.parametrize("model_type", [*OWN, "llada", "Dream", "a2d-qwen3"])
def test_plain_transformers_knows_the_token_that_masks(model_type: str, tmp_path: Path) -> None:
    tokenizer = train_bpe_tokenizer(["a b c d e f g h"], 270)
    tokenizer.save_pretrained(tmp_path / "own")
    mask, sizes = tokenizer.mask_token_id, {"vocab_size": 280}
    if model_type == "llada":
        llada(tmp_path / "hub", 280, mask_token_id=mask)
    elif model_type in OWN:
        published(
            tmp_path / "hub", model_type, **sizes, **({"mask_token_id": mask} if model_type == "eurobert" else {})
        )
    else:
        of_authors(tmp_path / "hub", model_type, **sizes, mask_token_id=mask)
    is_shifted = False if model_type in DECODERS else None
    model = opened(tmp_path / "hub", mask_token_id=mask, num_tokens=len(tokenizer), is_shifted=is_shifted)
    model.save_pretrained(tmp_path / "own")
    again = AutoTokenizer.from_pretrained(tmp_path / "own")
    assert (again.mask_token, again.mask_token_id) == (tokenizer.mask_token, mask)
    assert again.encode("a b<|mask|> c") == tokenizer.encode("a b<|mask|> c")
    assert AutoConfig.from_pretrained(tmp_path / "own").mask_token_id == mask
