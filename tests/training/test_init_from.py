"""A first teacher or a baseline that starts from another model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from stages import baseline, distill, inputs, pretrain
from tests.model.hub_folders import llada, published

from halfstep.data.tokenizer import train_word_tokenizer
from halfstep.model.config import DenoiserConfig
from halfstep.model.denoiser import Denoiser
from halfstep.model.gpt2 import load_autoregressive, new_gpt2
from halfstep.model.hub import HubModel, open_hub
from halfstep.model.joint import JointModel
from halfstep.model.opening import open_denoiser
from halfstep.objectives.base import PRODUCT, Objective
from halfstep.run.errors import UserError
from halfstep.samplers.base import Uniforms
from halfstep.samplers.sampler import Sampler
from halfstep.settings.graph import frontiers_of
from halfstep.tools.planning.compose import composed_params
from halfstep.training.ema import EMA
from halfstep.training.first import check_bound

ROOT = Path(__file__).parents[2]
PATHS = tuple(Path(name) for name in ("params.yaml", "data/tokens", "data/tokenizer"))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_tokens: Callable[..., None]) -> Path:
    """Tokens with a context of 16, and models of others to start from."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.chdir(tmp_path)
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values["data"].update(context_length=16)
    values["sample"].update(num_prefixes=8, prefix_length=4, continuation_length=16)
    values["runtime"].update(device="cpu", num_threads=1)
    for section in ("pretrain", "baseline"):
        values[section].update(num_train_steps=1, num_warmup_steps=0, batch_size=4, init_from=f"my/{section}")
    values["noise"].update(epsilon=0.01)
    Path("params.yaml").write_text(yaml.safe_dump(values))
    tokenizer = train_word_tokenizer(["a b c d e f g h"], 12)
    tokenizer.save_pretrained("data/tokenizer")
    rows = np.ones((8, 16), np.uint16)
    write_tokens(Path("data/tokens"), {"train": rows, "valid": rows}, vocab_size=len(tokenizer))
    return tmp_path


@pytest.mark.parametrize(("length", "num_train_steps", "epsilon"), [(8, 1, 0.01), (64, 1, 0.01), (16, 0, 1e-3)])
def test_a_teacher_gets_the_length_and_keeps_its_noise_if_it_is_not_trained(
    project: Path, length: int, num_train_steps: int, epsilon: float
) -> None:
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["pretrain"].update(num_train_steps=num_train_steps)
    Path("params.yaml").write_text(yaml.safe_dump(values))
    Path("my/pretrain").mkdir(parents=True)
    Denoiser(DenoiserConfig(12, 11, length, 8, 1, 2, 8, 0.0, 1e-3)).save_pretrained(Path("my/pretrain"))
    pretrain.main(*PATHS, Path("models/0"), Path("curves/0.csv"))
    config = Denoiser.from_pretrained(Path("models/0")).config
    assert (config.length, config.noise_epsilon) == (16, epsilon)


@pytest.mark.parametrize("kind", ["bert", "llada", "gpt2"])
def test_a_teacher_of_the_hub_is_trained_distilled_and_drawn_from(project: Path, kind: str) -> None:
    """From what lies there to samples of its student, which has its class and its tokens."""
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["pretrain"].update(num_train_steps=1, init_shift=True if kind == "gpt2" else None)
    values["distill"].update(num_train_steps=1, num_warmup_steps=0, batch_size=4, num_valid_sequences=4)
    values["pretrain"].update(num_valid_sequences=4)
    values.update(rounds=1)
    Path("params.yaml").write_text(yaml.safe_dump(values))
    if kind == "llada":
        llada(Path("my/pretrain"), 14, mask_token_id=11)
    else:
        # A row is added to GPT-2 for the token that masks.
        published(Path("my/pretrain"), kind, vocab_size=11 if kind == "gpt2" else 14)
    pretrain.main(*PATHS, Path("models/0"), Path("curves/0.csv"))
    distill.main(1, params_path=PATHS[0], tokens_path=PATHS[1], tokenizer_path=PATHS[2])
    teacher, student = open_denoiser(Path("models/0")), open_denoiser(Path("models/1"))
    assert isinstance(student, JointModel)
    assert isinstance(student.trunk, HubModel)
    assert student.config == teacher.config
    assert (student.config.num_tokens, student.config.mask_token_id, student.config.length) == (12, 11, 16)
    assert json.loads(Path("models/1/config.json").read_text())["model_type"] == {"llada": "llama"}.get(kind, kind)
    changed = [not torch.equal(a, b) for a, b in zip(teacher.parameters(), student.trunk.parameters(), strict=True)]
    assert any(changed)
    x_init = torch.full((4, 16), 11)
    sampler = Sampler("ancestral", {"num_steps": 2, "drawing": "parallel"})
    texts = sampler.sample(student, x_init, mask_token_id=11, uniforms=Uniforms(0, range(4), 16)).tokens
    assert not bool((texts >= 11).any())


def test_a_round_of_a_hubs_model_that_is_cut_off_goes_on_bit_for_bit(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its projection is its embedding, too."""
    values = composed_params(["objective=sdtt"], ROOT).model_dump(mode="json")
    given = yaml.safe_load(Path("params.yaml").read_text())
    values |= {name: given[name] for name in ("data", "sample", "runtime", "pretrain", "baseline")}
    values["pretrain"].update(init_shift=True, num_valid_sequences=4)
    values["distill"].update(
        num_train_steps=6, num_warmup_steps=0, batch_size=4, num_valid_sequences=4, checkpoint_every_steps=2
    )
    Path("params.yaml").write_text(yaml.safe_dump(values))
    published(Path("my/pretrain"), "qwen2", vocab_size=14)
    pretrain.main(*PATHS, Path("models/0"), Path("curves/0.csv"))
    update, calls = EMA.update, []

    def dies(ema: EMA, model: torch.nn.Module) -> None:
        calls.append(0)
        if len(calls) == 4:
            raise KeyboardInterrupt
        update(ema, model)

    with monkeypatch.context() as patch:
        patch.setattr(EMA, "update", dies)
        with pytest.raises(KeyboardInterrupt):
            distill.main(1, params_path=PATHS[0], tokens_path=PATHS[1], tokenizer_path=PATHS[2])
    assert not Path("models/1").exists()
    distill.main(1, params_path=PATHS[0], tokens_path=PATHS[1], tokenizer_path=PATHS[2])
    files = [*Path("models/1").iterdir(), *Path("states/1").iterdir()]
    gone_on = {path: path.read_bytes() for path in files}
    assert Path("models/1/model.safetensors").read_bytes() != Path("models/0/model.safetensors").read_bytes()
    for folder in ("models/1", "states/1", ".halfstep"):
        shutil.rmtree(folder)
    distill.main(1, params_path=PATHS[0], tokens_path=PATHS[1], tokenizer_path=PATHS[2])
    assert {path: path.read_bytes() for path in files} == gone_on


def test_a_teacher_that_does_not_know_its_text_is_refused_untrained(project: Path) -> None:
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["pretrain"].update(num_train_steps=0)
    Path("params.yaml").write_text(yaml.safe_dump(values))
    published(Path("my/pretrain"), "bert", vocab_size=14)
    # One token alone has no entropy.
    with pytest.raises(UserError, match=r"nats per token, more than the 0\.00 of single tokens"):
        pretrain.main(*PATHS, Path("models/0"), Path("curves/0.csv"))


@pytest.mark.parametrize(
    ("kind", "entries", "line"),
    [
        ("bert", {"max_position_embeddings": 8}, r"my/pretrain has 8 positions: .* -S data\.context_length=8$"),
        ("bert", {"vocab_size": 11}, r"my/pretrain has 11 tokens, but its tokenizer 12"),
        ("qwen2", {}, r"is a qwen2: say whether .* pretrain\.init_shift=true or false"),
        ("llada", {"mask_token_id": 3}, r"masks with token 3, but the tokenizer with 11"),
        ("llada", {"alibi": True}, r"config\.json that is not one of a llama \(alibi is True"),
        ("llada", {"model_type": "mystery"}, r"of the type mystery, which cannot be a teacher: known are"),
        ("llada", {"shard": None}, r"pretrain lacks model-00002-of-00002\.safetensors, which its model.*json names"),
    ],
)
def test_a_teacher_that_will_not_do_is_refused_before_anything_is_made(
    project: Path, kind: str, entries: dict[str, object], line: str
) -> None:
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["data"]["tokenizer"].update(source="data/tokenizer", vocab_size=None)
    values["pretrain"].update(num_train_steps=0)
    Path("params.yaml").write_text(yaml.safe_dump(values))
    if kind == "llada":
        llada(Path("my/pretrain"), 14, **{"mask_token_id": 11, **entries})
    else:
        published(Path("my/pretrain"), kind, **{"vocab_size": 14, **entries})
    if "shard" in entries:
        Path("my/pretrain/model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=line):
        inputs.main("pretrain", Path("params.yaml"), Path("inputs/pretrain.json"))
    with pytest.raises(UserError):
        pretrain.main(*PATHS, Path("models/0"), Path("curves/0.csv"))


def test_a_teacher_that_will_do_is_not(project: Path) -> None:
    published(Path("my/pretrain"), "bert", vocab_size=14)
    inputs.main("pretrain", Path("params.yaml"), Path("inputs/pretrain.json"))
    assert Path("inputs/pretrain.json").is_file()


@pytest.mark.parametrize("is_shifted", [False, True])
def test_a_shift_is_refuted_by_the_bound(tmp_path: Path, is_shifted: bool) -> None:
    """Told by a loss that is lower where states predict the next token."""
    published(tmp_path, "qwen2", vocab_size=14)
    model = open_hub(
        tmp_path, None, mask_token_id=11, num_tokens=12, length=16, noise_epsilon=1e-3, is_shifted=is_shifted
    )

    def loss(network: HubModel, x0: torch.Tensor, *drawn: torch.Tensor) -> tuple[torch.Tensor, int]:
        return torch.tensor(0.5 if network.config.is_shifted else 0.75) * x0.numel(), x0.numel()

    objective = Objective(lambda shape, generator: (), {PRODUCT: loss})
    x0 = torch.arange(10).expand(4, 10)
    if is_shifted:
        check_bound(model, x0, objective, seed=0)
        assert model.config.is_shifted
        return
    with pytest.raises(
        UserError, match=r"0\.75 nats per token, but 0\.50 .* the next token: pretrain\.init_shift=true"
    ):
        check_bound(model, x0, objective, seed=0)


def test_a_teacher_with_absolute_positions_of_another_length_is_refused(project: Path) -> None:
    Path("my/pretrain").mkdir(parents=True)
    Denoiser(DenoiserConfig(12, 11, 64, 8, 1, 2, 8, 0.0, 1e-3, True)).save_pretrained(Path("my/pretrain"))
    with pytest.raises(UserError, match=r"64 absolute positions, .* is 16: dvc exp run -S data.context_length=64"):
        pretrain.main(*PATHS, Path("models/0"), Path("curves/0.csv"))


@pytest.mark.parametrize(("length", "is_able"), [(8, False), (16, True), (64, True)])
def test_a_baseline_reads_the_context_or_is_refused(project: Path, length: int, is_able: bool) -> None:
    torch.manual_seed(0)
    new_gpt2(vocab_size=12, length=length, hidden_size=8, num_blocks=1, num_heads=2, dropout=0.0).save_pretrained(
        "my/baseline"
    )
    if is_able:
        baseline.main("ar", *PATHS, Path("models/ar"), Path("curves/ar.csv"))
        assert Path("models/ar/config.json").is_file()
        return
    with pytest.raises(UserError, match=r"my/baseline reads 8 tokens at most, fewer than data\.context_length 16"):
        baseline.main("ar", *PATHS, Path("models/ar"), Path("curves/ar.csv"))


def test_a_rival_is_trained_anew_at_its_own_depth(project: Path) -> None:
    values = yaml.safe_load(Path("params.yaml").read_text())
    values.update(rivals=[3], frontiers=frontiers_of(values["rounds"], [3]))
    Path("params.yaml").write_text(yaml.safe_dump(values))
    # What the baseline starts from, which is not there, is not asked for.
    baseline.main("ar-3", *PATHS)
    rival = load_autoregressive(Path("models/ar-3"))
    assert (rival.config.n_layer, rival.config.n_embd) == (3, values["model"]["hidden_size"])
    assert Path("curves/ar-3.csv").is_file()
    with pytest.raises(UserError, match=r"^params\.yaml: rivals are ar-3, not 'ar-1'$"):
        baseline.main("ar-1", *PATHS)
