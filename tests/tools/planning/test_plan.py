"""A plan as a whole: composed, with what is known of a corpus, printed, and in agreement with what is written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.model.hub_folders import MASK, VOCAB, published
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from halfstep.data.tokenizer import train_word_tokenizer, with_mask_token
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.model.config import DenoiserConfig
from halfstep.model.denoiser import Denoiser
from halfstep.model.gpt2 import new_gpt2
from halfstep.model.hub import open_hub
from halfstep.objectives import nelbo
from halfstep.objectives.distillation import Costs, Distillation, distillation_objective, student_of
from halfstep.run.errors import UserError
from halfstep.settings import load_params
from halfstep.tools.cli import app
from halfstep.tools.planning.compose import composed_params
from halfstep.tools.planning.corpus import Known, known_num_tokens, known_vocab_size, prepared_manifest
from halfstep.tools.planning.gpus import GPUS
from halfstep.tools.planning.memory import FLOAT, Lora
from halfstep.tools.planning.networks import Network, forward_flops
from halfstep.tools.planning.plan import STATE, Plan, make_plan
from halfstep.tools.planning.works import training_flops
from halfstep.training.ema import EMA
from halfstep.training.optimizer import build_optimizer
from halfstep.training.state import Trained, TrainState

ROOT = Path(__file__).parents[3]


def plan_of(*overrides: str, num_tokens: int | None = None) -> Plan:
    tokens = None if num_tokens is None else Known(num_tokens, "a test")
    return make_plan(composed_params(overrides, ROOT), Known(50258, "a test"), tokens)


@pytest.fixture(scope="module")
def paper() -> Plan:
    return plan_of("preset=paper", num_tokens=9_000_000_000)


def test_the_papers_run_in_round_numbers(paper: Plan) -> None:
    """Six FLOPs a parameter and token, of the projection half and of the last block some; and attention on top."""
    pretrain = paper.works[0]
    assert pretrain.num_tokens == 512 * 1024 * 1_000_000
    used = paper.denoiser.blocks * 0.95 + paper.denoiser.projection / 2
    attention = 6 * 2 * 12 * 768 * 1024
    assert pretrain.flops_per_step == pytest.approx((6 * used + attention) * 512 * 1024, rel=0.05)
    assert pretrain.seconds(GPUS[0], 0.5, 2) == pytest.approx(pretrain.flops / (0.5 * 312e12) / 2)
    assert [work.stage for work in paper.works][:3] == ["pretrain", "baseline", "distill@1"]


def test_devices_share_the_batch_and_no_step_changes(paper: Plan) -> None:
    spread = plan_of("preset=paper", "launch.num_nodes=2", "launch.processes_per_node=8")
    assert [work.flops for work in spread.works] == [work.flops for work in paper.works]
    assert spread.loads[0].num_sequences == 32
    # 12 parts or 16 devices: 48 parts, three for each device one after the other.
    with pytest.raises(UserError, match=r"batch_size is 516, which 16 processes .* in 48 equal parts"):
        plan_of(
            "preset=paper",
            "launch.processes_per_node=16",
            "pretrain.num_accumulation_steps=12",
            "pretrain.batch_size=516",
        )


def test_what_is_said_to_fit_does(paper: Plan) -> None:
    pretrain = paper.loads[0]
    answer = pretrain.fits["A100-80GB"]
    assert answer == 4
    again = plan_of("preset=paper", "pretrain.num_accumulation_steps=4").loads[0]
    assert again.fits["A100-80GB"] == again.num_accumulation_steps
    assert pretrain.memory.total > 80e9


def test_a_run_is_planned_by_the_teacher_that_is_opened_and_needs_nothing_to_train_it(tmp_path: Path) -> None:
    model = published(tmp_path, "modernbert", max_position_embeddings=2048)
    teacher = ["pretrain.num_train_steps=0", f"pretrain.init_from={tmp_path}", "data.tokenizer.source=a/b"]
    params = composed_params(["preset=paper", *teacher], ROOT)
    vocab_size = known_vocab_size(params, None, None)
    assert vocab_size.value == model.config.vocab_size
    plan = make_plan(params, vocab_size, None)
    assert plan.denoiser.total == sum(parameter.numel() for parameter in model.parameters())
    assert plan.autoregressive.blocks == 12 * (12 * 768**2 + 13 * 768), "as `model` says"
    assert plan.works[0].flops == 0
    assert plan.loads[0].stage == "baseline"
    assert plan.disk["states"] == 7 * FLOAT * STATE * plan.denoiser.total
    Denoiser(DenoiserConfig(9, 8, 1024, 8, 1, 2, 8, 0.0, 1e-3)).save_pretrained(tmp_path)
    assert make_plan(params, Known(9, "a test"), None).denoiser.embedding == 9 * 8


def test_an_objective_says_in_its_file_what_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    params = composed_params(
        ["preset=paper", "objective=nelbo", "distill.min_time=0.25", "pretrain.min_time=0.25"], ROOT
    )
    network = Network(512, 64, 4, 4, params.data.context_length, 16)
    pretrain, distill = (
        training_flops(params, network, stage) / getattr(params, stage).batch_size for stage in ("pretrain", "distill")
    )
    assert distill == pytest.approx(pretrain, rel=1e-12)
    monkeypatch.setattr(nelbo, "costs", lambda *arguments: Costs([(0.5, 0.25)]), raising=False)
    length = params.data.context_length
    asked = training_flops(params, network, "distill") / params.distill.batch_size - distill
    assert asked == pytest.approx(forward_flops(network, length / 2, length / 4, length))


@pytest.mark.parametrize(
    ("objective", "tolerance"), [("sdtt", 0.08), ("idlm", 0.08), ("di4c", 0.08), ("mmd", 0.15), ("gumbel", 0.08)]
)  # fmt: skip
def test_flops_of_a_step_are_those_that_torch_counts(objective: str, tolerance: float) -> None:
    """Times are spread evenly over a batch, so that 64 sequences are their mean to a few percent. Conditioning is not
    planned, nor are the kernels of mmd, and of its features' last block only the attention is."""
    sizes = {"vocab_size": 512, "hidden_size": 64, "num_blocks": 4, "num_heads": 4, "length": 32, "cond_dim": 8}
    model = [f"model.{name}={sizes[name]}" for name in ("hidden_size", "num_blocks", "num_heads", "cond_dim")]
    overrides = ["preset=paper", f"objective={objective}", "data.context_length=32", "distill.batch_size=64"]
    params = composed_params([*overrides, *model, "sample.prefix_length=1", "sample.continuation_length=8"], ROOT)
    torch.manual_seed(0)
    teacher = Denoiser(DenoiserConfig(**sizes, mask_token_id=511, dropout=0.0, noise_epsilon=1e-3)).eval()
    teacher.requires_grad_(False)
    student = student_of(teacher, params.distill).requires_grad_(True)
    autoregressive = new_gpt2(vocab_size=512, length=32, **params.model.of_baseline).eval()
    given = Distillation(1, teacher, student, LogLinearSchedule(1e-3), params.distill, autoregressive=autoregressive)
    built = distillation_objective(given)
    drawn = built.draw((64, 32), torch.Generator().manual_seed(0))
    x0 = torch.randint(511, (64, 32))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for name, loss in built.losses.items():
            loss(built.networks.get(name, student), x0, *drawn)[0].backward()
    planned = training_flops(params, Network(**sizes), "distill")
    assert planned == pytest.approx(counter.get_total_flops(), rel=tolerance)


def test_rounds_that_learn_adapters_are_planned_by_them(tmp_path: Path) -> None:
    """Against an adapter that was made."""
    published(tmp_path, "llama", max_position_embeddings=1024)
    overrides = ["preset=paper", f"pretrain.init_from={tmp_path}", "pretrain.init_shift=false"]
    whole, adapted = (
        make_plan(composed_params([*overrides, *more], ROOT), Known(VOCAB, "a test"), None)
        for more in ((), ("distill.lora.rank=4", "distill.lora.targets=[q_proj]"))
    )
    model = open_hub(
        tmp_path, None, mask_token_id=MASK, num_tokens=VOCAB, length=1024, noise_epsilon=1e-3, is_shifted=False
    )
    model.adapt(tmp_path, rank=4, alpha=4, targets=["q_proj"])
    lora = Lora.of(model)
    assert (lora.base, lora.adapter) == (whole.denoiser.total, 2 * 2 * 4 * 32)
    by_stage = {load.stage: load.memory for load in adapted.loads}
    assert by_stage["distill"].optimizer == 2 * FLOAT * lora.adapter
    assert by_stage["pretrain"] == next(load.memory for load in whole.loads if load.stage == "pretrain")
    assert adapted.disk["states"] == 7 * FLOAT * STATE * lora.adapter
    assert whole.disk["models"] - adapted.disk["models"] == 7 * FLOAT * (lora.base - lora.adapter)
    assert any("frozen" in line for line in adapted.left_out)


def test_a_training_state_has_the_size_that_is_planned(tmp_path: Path) -> None:
    """The header, which names the tensors, and each one's count of steps take the rest."""
    model = torch.nn.Linear(100, 300)
    optimizer = build_optimizer(model, betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.0)
    model(torch.ones(1, 100)).sum().backward()
    optimizer.step()
    TrainState({"model": Trained(model, optimizer, EMA(model, 0.9))}).save(tmp_path)
    size = (tmp_path / "train_state.safetensors").stat().st_size
    assert size == pytest.approx(FLOAT * STATE * (100 * 300 + 300), rel=0.01)


def test_what_is_known_of_a_corpus_and_from_where(tmp_path: Path) -> None:
    paper = composed_params(["preset=paper"], ROOT)
    assert known_vocab_size(paper, None, None).value == 50258
    assert known_vocab_size(paper, None, 77).value == 77
    tokens = known_num_tokens(paper, None, None)
    assert tokens is not None
    assert tokens.value == 9_000_000_000
    assert known_num_tokens(composed_params(["preset=paper", "data.max_documents=9"], ROOT), None, None) is None
    other = composed_params(["preset=paper", "data.tokenizer.source=some/tokenizer"], ROOT)
    with pytest.raises(UserError, match=r"tokenizer some/tokenizer .* give --vocab-size"):
        known_vocab_size(other, None, None)

    folder = tmp_path / "tokenizer"
    tokenizer = train_word_tokenizer(["a b"], vocab_size=5)
    tokenizer.save_pretrained(folder)
    local = composed_params(["preset=paper", f"data.tokenizer.source={folder}"], ROOT)
    assert known_vocab_size(local, None, None).value == len(tokenizer) + (tokenizer.mask_token is None)
    with_mask_token(tokenizer).save_pretrained(folder)
    assert known_vocab_size(local, None, None).value == len(tokenizer)
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be loaded"):
        known_vocab_size(local, None, None)


def test_a_manifest_counts_for_the_corpus_that_it_counted_only(write_tokens, tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    rows = {"train": np.zeros((9, 10), dtype=np.uint16), "valid": np.ones((2, 10), dtype=np.uint16)}
    write_tokens(tmp_path / "data" / "tokens", rows, vocab_size=321)
    here = load_params(ROOT / "params.yaml")
    manifest = prepared_manifest(here, tmp_path)
    assert manifest is not None
    assert known_vocab_size(here, manifest, None) == Known(321, "data/tokens/manifest.json")
    tokens = known_num_tokens(here, manifest, None)
    assert tokens is not None
    assert tokens.value == 11 * (10 - 2), "each sequence has its two ends"
    assert prepared_manifest(composed_params(["preset=paper"], ROOT), tmp_path) is None


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["preset=none-such"], "-S preset=none-such cannot be composed: .*preset/none-such"),
        (["pretrain.batch=3"], "pretrain.batch"),
        (["rounds=1,3"], "is a sweep of 2 runs"),
        (["rounds=99"], "rounds is 99"),
        (["pretrain.batch_size=abc"], "the composed parameters: pretrain.batch_size is 'abc'"),
        (["="], "cannot be composed"),
    ],
)
def test_overrides_that_do_not_compose_are_told_in_one_line(overrides: list[str], problem: str) -> None:
    with pytest.raises(UserError, match=problem) as error:
        composed_params(overrides, ROOT)
    assert "\n" not in str(error.value)


def test_the_command_prints_80_columns_and_writes_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "80")
    file = tmp_path / "plan.json"
    before = (ROOT / "params.yaml").read_bytes()
    result = CliRunner().invoke(
        app,
        ["plan", "-S", "preset=paper-large", "-S", "launch.processes_per_node=8", "--mfu", "0.5", "--json", str(file)],
    )
    assert result.exit_code == 0, result.output
    # A terminal's table is never wider, but would be cut.
    assert max(map(len, result.output.splitlines())) <= 80
    assert "…" not in result.output
    assert (ROOT / "params.yaml").read_bytes() == before
    written = json.loads(file.read_text())
    assert written["denoiser"]["total"] == 863_158_098
    assert "863.2M" in result.output
    assert f"{written['works'][0]['flops']:.2e}" in result.output
    assert written["works"][0]["seconds"]["H100-SXM"] == pytest.approx(
        written["works"][0]["flops"] / (0.5 * 989e12) / 8
    )
    assert written["mfu"] == 0.5
    for refused in (["--mfu", "2"], ["--mfu", "0"]):
        assert isinstance(CliRunner().invoke(app, ["plan", *refused]).exception, UserError)
