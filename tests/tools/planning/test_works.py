"""What the stages compute, against what torch counts when their code runs, and against closed forms."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.hub_folders import published
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.model.config import DenoiserConfig
from halfstep.model.denoiser import Denoiser
from halfstep.model.gpt2 import new_gpt2
from halfstep.objectives.heads import HeadSettings, with_head
from halfstep.objectives.joint import joint_objective
from halfstep.samplers.base import Uniforms
from halfstep.samplers.sampler import Sampler
from halfstep.samples.draw import AUTOREGRESSIVE, draw
from halfstep.settings import Params
from halfstep.tools.planning.compose import composed_params
from halfstep.tools.planning.networks import Network, count_parameters, forward_flops
from halfstep.tools.planning.scorer import scorer_network
from halfstep.tools.planning.works import (
    BOUND,
    CHOOSE,
    DENOISE,
    DRAW,
    READ,
    SCORE,
    Networks,
    Work,
    denoising,
    training_flops,
    works_of,
    writing,
)

ROOT = Path(__file__).parents[3]
SIZES = {"vocab_size": 512, "hidden_size": 64, "num_blocks": 3, "num_heads": 2, "length": 16}
VOCAB_SIZE = 203


def composed(*overrides: str) -> Params:
    return composed_params(["preset=smoke", *overrides], ROOT)


def works(params: Params) -> dict[str, Work]:
    return {work.stage: work for work in works_of(params, Networks.of(params, VOCAB_SIZE))}


def counted(run: Callable[[], Any]) -> int:
    """The floating-point operations of a call, as torch counts them."""
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}
    # What the other kernels of attention compute is not counted on the CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("ancestral", {"num_steps": 3}),
        ("ordered", {"num_steps": 4, "score": "entropy", "noise": 1.0, "counts": "cosine"}),
    ],
)
def test_a_denoiser_that_writes_computes_what_is_planned(name: str, values: dict[str, Any]) -> None:
    """Conditioning, a tenth of a percent here, is not planned."""
    torch.manual_seed(0)
    config = DenoiserConfig(**SIZES, cond_dim=2, mask_token_id=511, dropout=0.0, noise_epsilon=1e-3)
    model, sampler = Denoiser(config).eval(), Sampler(name, values)
    x_init = torch.full((32, 16), 511)
    x_init[:, :2] = 0
    options = {"mask_token_id": 511, "uniforms": Uniforms(0, range(32), 16)}
    parts = denoising(Network(**SIZES, cond_dim=2), sampler, 32, 16, 14)
    assert sum(parts.values()) == pytest.approx(counted(lambda: sampler.sample(model, x_init, **options)), rel=0.03)


def test_an_autoregressive_model_that_writes_computes_what_is_planned() -> None:
    """It attends to the tokens before and itself, which is half a token more than half the text."""
    model = new_gpt2(**SIZES, dropout=0.0).eval()
    x_init = torch.full((4, 16), 511)
    x_init[:, 0] = 0
    options = {"mask_token_id": 511, "uniforms": Uniforms(0, range(4), 16)}
    parts = writing(Network(**SIZES, cond_dim=None), "ar", 4, 16, 15)
    assert parts == {
        "write@ar": pytest.approx(counted(lambda: draw(model, AUTOREGRESSIVE, x_init, **options)), rel=0.01)
    }


def test_a_trunk_that_stays_under_its_head_saves_what_is_planned() -> None:
    """The head's layers, which are not planned, are left out of the difference; 530 of 1024 tokens are masked."""
    config = DenoiserConfig(**SIZES, cond_dim=2, mask_token_id=511, dropout=0.0, noise_epsilon=1e-3)
    x0 = torch.randint(511, (64, 16), generator=torch.Generator().manual_seed(0))

    def step(train_trunk: bool) -> tuple[int, float]:
        settings = HeadSettings(hidden_size=64, num_layers=1, num_heads=2, order="random", train_trunk=train_trunk)
        student = with_head(Denoiser(config), settings)
        objective = joint_objective(
            schedule=LogLinearSchedule(1e-3), min_time=1e-5, mask_token_id=511, train_trunk=train_trunk, order="random"
        )
        drawn = objective.draw(x0.shape, torch.Generator().manual_seed(1))
        params = composed(
            "objective=joint", f"distill.joint.train_trunk={train_trunk}", "distill.batch_size=64",
            "data.context_length=16", "sample.prefix_length=8", "sample.continuation_length=16",
        )  # fmt: skip
        return (
            counted(lambda: objective.loss(student, x0, *drawn)[0].backward()),
            training_flops(params, Network(**SIZES, cond_dim=2), "distill"),
        )

    (both, both_planned), (head, head_planned) = step(True), step(False)
    assert both_planned - head_planned == pytest.approx(both - head, rel=0.05)


def test_validations_come_every_so_many_steps_and_after_the_last() -> None:
    params = composed("pretrain.num_train_steps=30", "pretrain.validate_every_steps=8", "pretrain.min_time=0.5")
    pretrain = works(params)["pretrain"]
    network = Networks.of(params, VOCAB_SIZE).denoiser
    num_tokens = 16 * params.data.context_length
    validation = forward_flops(network, num_tokens, num_tokens * (1 - 1e-3) * 0.75, params.data.context_length)
    assert pretrain.flops_per_step == training_flops(params, network, "pretrain")
    assert pretrain.parts == {"pretrain": pytest.approx(30 * pretrain.flops_per_step + 4 * validation)}


def test_a_rival_is_a_baseline_of_another_depth() -> None:
    found = works(composed("rivals=[1,5]"))
    deeper = works(composed("model.num_blocks=5"))
    assert found["rival@5"].parts == {"rival@5": deeper["baseline"].flops}
    assert found["rival@1"].flops < found["baseline"].flops < found["rival@5"].flops
    assert found["frontier@ar-5"].parts["write@ar-5"] == deeper["frontier@ar"].parts["write@ar"]


SAMPLERS = (
    "frontier.samplers=[{name: ancestral, num_steps: [2], counts: [even]},"
    " {name: ordered, num_steps: [2, 4], score: [entropy], noise: [1.0], counts: [even]}]"
)


def test_a_frontier_draws_in_every_way_at_every_temperature_and_has_all_of_it_read() -> None:
    """62 of 64 tokens are written."""
    found = works(composed(SAMPLERS, "frontier.temperatures=[0.5,1.0,1.5]", "frontier.num_samples=10"))
    first, last = found["frontier@0"].parts, found["frontier@ar"].parts
    head = 10 * 3 * 2 * 32 * VOCAB_SIZE
    assert first[DRAW] == pytest.approx(head * 3 * 62)
    assert first[CHOOSE] == pytest.approx(head * ((62 + 31) + (62 + 46 + 31 + 15)))
    network = Networks.of(composed(), VOCAB_SIZE).autoregressive
    assert first[READ] == pytest.approx((1 + 3 * 3) * forward_flops(network, 640, 640, 64))
    assert last[READ] == pytest.approx((1 + 3) * forward_flops(network, 640, 640, 64))
    assert set(first) == {DENOISE, CHOOSE, DRAW, READ}
    assert found["frontier@0"].num_tokens == 10 * (3 * 3 * 62 + (1 + 3 * 3) * 64)
    assert found["frontier@1"].num_models == 1
    assert works(composed("rounds=0")).keys() & {"frontier@1", "distill@1"} == set()


def test_puzzles_are_written_and_not_read() -> None:
    """4x4 cells; a cell that is not given is drawn once."""
    puzzles = ["data=sudoku", "data.size=4", "data.context_length=19", "sample.prefix_length=2"]
    more = ["sample.continuation_length=19", "frontier.num_givens=[6,4]", "frontier.temperatures=[0]", SAMPLERS]
    parts = works(composed(*puzzles, *more, "frontier.num_samples=10"))["frontier@0"].parts
    assert parts[DRAW] == pytest.approx(10 * 2 * 32 * VOCAB_SIZE * 3 * (10 + 12))
    assert READ not in parts


def test_evaluation_reads_each_text_once() -> None:
    params = composed("sample.num_samples=10", "evaluate.num_valid_sequences=7", "evaluate.num_nelbo_draws=3")
    parts = works(params)["evaluate@0..1"].parts
    network = Networks.of(params, VOCAB_SIZE).autoregressive
    # Held-out text and samples of 64 tokens; as long are continuations and what begins like them: 16, and twice as many
    # of each of two ways.
    num_texts = 7 + 2 * 10 + 16 * (1 + 2 * 2)
    assert parts.keys() == {BOUND, READ}
    assert parts[READ] == pytest.approx(forward_flops(network, num_texts * 64, num_texts * 64, 64))


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_a_scorer_of_any_class_is_counted_from_its_configuration(tmp_path: Path, kind: str) -> None:
    """Short texts, so that what is counted at 16 and 32 tokens must hold at another length."""
    model = published(tmp_path, kind)
    # Weights are not asked for.
    (tmp_path / "model.safetensors").unlink()
    params = composed(f"evaluate.scorer={tmp_path}")
    networks = Networks.of(params, VOCAB_SIZE)
    assert networks.scorer is not None
    assert count_parameters(networks.scorer).total == sum(parameter.numel() for parameter in model.parameters())
    tokens = torch.zeros(3, 24, dtype=torch.int64)
    assert forward_flops(networks.scorer, 72, 72, 24) == counted(lambda: model(tokens))
    assert SCORE in works(params)["frontier@0"].parts


def test_what_is_no_causal_model_is_of_unknown_size(tmp_path: Path) -> None:
    autoregressive = Network(**SIZES, cond_dim=None)
    for written in (None, "{}", '{"model_type": "llama", "hidden_size": "wide"}'):
        if written is not None:
            (tmp_path / "config.json").write_text(written)
        assert scorer_network(composed(f"evaluate.scorer={tmp_path}"), autoregressive) is None
    assert SCORE not in works(composed(f"evaluate.scorer={tmp_path}"))["frontier@0"].parts
