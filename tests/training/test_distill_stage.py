"""The stage `distill`: its objectives, its teacher's noise schedule, the states of its rounds, and its errors."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from stages import distill, pretrain
from tests.model.hub_folders import published

from halfstep.data.tokenizer import train_word_tokenizer
from halfstep.data.tokens.packed import load_tokens
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.model.config import DenoiserConfig
from halfstep.model.denoiser import Denoiser
from halfstep.model.gpt2 import new_gpt2
from halfstep.model.hub import HubModel, open_hub
from halfstep.model.joint import JointModel, trunk_of
from halfstep.model.lora import ADAPTER_FILES, matrices_of
from halfstep.model.opening import open_denoiser, open_model, open_with_tokenizer
from halfstep.objectives import idlm, nelbo
from halfstep.objectives.base import Objective
from halfstep.objectives.distillation import Distillation, adapt
from halfstep.run.errors import UserError
from halfstep.settings import load_params
from halfstep.settings.graph import frontiers_of, schedule_of
from halfstep.settings.training import LoraSettings
from halfstep.tools.planning.compose import composed_params
from halfstep.tools.signal import first_gradients
from halfstep.training import parallel
from halfstep.training.ema import EMA

ROOT = Path(__file__).parents[2]
EPSILON = 0.25
"""Of the teacher; params.yaml has another one."""


def write_params(**changes: object) -> None:
    values = composed_params(["objective=sdtt"], ROOT).model_dump(mode="json")
    values["distill"] = {
        **values["distill"], "num_train_steps": 3, "batch_size": 4, "num_warmup_steps": 0, "log_every_steps": 1,
        **changes,
    }  # fmt: skip
    values["runtime"].update(device="cpu", num_threads=1)
    values["sample"].update(num_prefixes=8)
    names = ["ar", "0", "1", "2"]
    values.update(rounds=2, models=names, frontiers=frontiers_of(2, []), rivals=[])
    values.update(schedule={k: dict(v) for k, v in schedule_of(2).items()})
    Path("params.yaml").write_text(yaml.safe_dump(values))


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_tokens: Callable[..., None]) -> Denoiser:
    """The current folder holds all that round 1 reads."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.chdir(tmp_path)
    write_params()
    train_word_tokenizer(["a b c d e f g h"], 12).save_pretrained("data/tokenizer")
    rows = np.random.default_rng(0).integers(0, 11, (8, 16), np.uint16)
    write_tokens(Path("data/tokens"), {"train": rows, "valid": rows}, vocab_size=12)
    torch.manual_seed(0)
    teacher = Denoiser(DenoiserConfig(12, 11, 16, 8, 1, 2, 8, 0.0, EPSILON))
    torch.nn.init.normal_(teacher.output_layer.linear.weight)
    Path("models/0").mkdir(parents=True)
    teacher.save_pretrained(Path("models/0"))
    return teacher


def run_round(round_index: int) -> None:
    paths = Path("params.yaml"), Path("data/tokens"), Path("data/tokenizer")
    distill.main(round_index, None, None, None, None, *paths, None)


def weights_of(name: str) -> dict[str, torch.Tensor]:
    return load_file(Path(name) / "model.safetensors")


def test_a_teacher_is_distilled_with_its_own_noise(teacher: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so is the student validated; what `noise.epsilon` says is for pretraining."""
    seen: set[float] = set()

    class Recorded(LogLinearSchedule):
        def __init__(self, epsilon: float) -> None:
            seen.add(epsilon)
            super().__init__(epsilon)

    monkeypatch.setattr("halfstep.diffusion.schedule.LogLinearSchedule", Recorded)
    run_round(1)
    assert seen == {EPSILON}
    assert Denoiser.from_pretrained("models/1").config.noise_epsilon == EPSILON


def test_a_round_goes_on_from_the_state_and_a_model_holds_none(teacher: Denoiser) -> None:
    run_round(1)
    assert not list(Path("models/1").glob("train_state*"))
    assert {path.name for path in Path("states/1").iterdir()} == {"train_state.safetensors", "train_state.json"}
    write_params(num_train_steps=0)
    run_round(2)
    # Without a step, weights, moments and averages are those of the round before.
    first, second = (load_file(f"states/{k}/train_state.safetensors") for k in (1, 2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(
        first["model.output_layer.linear.weight"], weights_of("models/1")["output_layer.linear.weight"]
    )


def test_a_state_that_is_missing_is_one_line(teacher: Denoiser) -> None:
    run_round(1)
    Path("states/1").rename("elsewhere")
    with pytest.raises(UserError, match=r"^states/1 is not there.*dvc repro distill@1"):
        run_round(2)


def test_the_control_is_a_student_trained_on_by_the_nelbo(teacher: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks its teacher for nothing."""
    run_round(1)
    by_sdtt = weights_of("models/1")
    write_params(objective="nelbo", nelbo={}, sdtt=None)
    with pytest.raises(UserError, match=r"unknown parameter distill\.sdtt"):
        load_params(Path("params.yaml"))
    values = yaml.safe_load(Path("params.yaml").read_text())
    del values["distill"]["sdtt"]
    Path("params.yaml").write_text(yaml.safe_dump(values))
    seen: list[object] = []
    built = nelbo.build
    monkeypatch.setattr(nelbo, "build", lambda given: seen.append(given.teacher) or built(given))
    run_round(1)
    assert len(seen) == 1
    assert any(not torch.equal(by_sdtt[name], tensor) for name, tensor in weights_of("models/1").items())


def choose(objective: str, **own: object) -> None:
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["distill"] = {
        key: value for key, value in values["distill"].items() if key != values["distill"]["objective"]
    }
    values["distill"] |= {"objective": objective, objective: own}
    Path("params.yaml").write_text(yaml.safe_dump(values))


HEAD = {"hidden_size": 4, "num_layers": 1, "num_heads": 1}
STEPS = {"clock": "cosine", "positions": "surest"}
OF_SDTT = {**STEPS, "num_own_steps": 2}


def test_a_head_on_a_frozen_trunk_leaves_it_bit_for_bit(teacher: Denoiser) -> None:
    choose("joint", **HEAD, order="both", train_trunk=False)
    for round_index in (1, 2):
        run_round(round_index)
        for name in ("model.safetensors", "config.json"):
            assert Path(f"models/{round_index}/{name}").read_bytes() == Path(f"models/0/{name}").read_bytes()
    first, second = (load_file(f"models/{k}/joint_head.safetensors") for k in (1, 2))
    assert first.keys() == second.keys()
    assert not torch.equal(first["out.weight"], second["out.weight"])


def test_rounds_of_joint_sdtt_have_teachers_without_and_with_a_head_and_sdtt_drops_it(teacher: Denoiser) -> None:
    choose("joint_sdtt", **HEAD, order="random", train_trunk=True, divergence="kl_teacher_student", **STEPS)
    run_round(1)
    run_round(2)
    student = open_model("models/2")
    assert isinstance(student, JointModel)
    assert student.joint_head.out.weight.abs().max() > 0
    choose("sdtt", divergence="mse", **OF_SDTT)
    stage = distill.main
    paths = Path("params.yaml"), Path("data/tokens"), Path("data/tokenizer")
    stage(1, Path("models/2"), None, Path("models/dropped"), Path("states/dropped"), *paths, Path("dropped.csv"))
    assert isinstance(open_model("models/dropped"), Denoiser)


@pytest.mark.parametrize(
    ("objective", "own"),
    [
        ("joint", {**HEAD, "order": "left_to_right", "train_trunk": True}),
        ("idlm", {"fake_learning_rate": 1e-3}),
        ("mmd", {"num_pairs": 2, "num_feature_blocks": None, "bandwidth": 0.1}),
        ("di4c", {"num_latents": 2, "correlation_weight": 0.1}),
        ("gumbel", {"noise_share": 0.5}),
    ],
)
def test_a_round_that_is_cut_off_goes_on_bit_for_bit(
    teacher: Denoiser, monkeypatch: pytest.MonkeyPatch, objective: str, own: dict[str, object]
) -> None:
    """One with a head, one with two networks, one that draws, one with a latent, one with noise."""
    write_autoregressive()
    choose(objective, **own)
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["distill"].update(num_train_steps=6, checkpoint_every_steps=2)
    Path("params.yaml").write_text(yaml.safe_dump(values))
    update, calls = EMA.update, []

    def dies(ema: EMA, model: torch.nn.Module) -> None:
        calls.append(0)
        if len(calls) == 4:
            raise KeyboardInterrupt
        update(ema, model)

    monkeypatch.setattr(EMA, "update", dies)
    with pytest.raises(KeyboardInterrupt):
        run_round(1)
    assert not Path("models/1").exists()
    monkeypatch.setattr(EMA, "update", update)
    run_round(1)
    files = [*Path("models/1").iterdir(), *Path("states/1").iterdir()]
    gone_on = {path: path.read_bytes() for path in files}
    for folder in ("models/1", "states/1", ".halfstep"):
        shutil.rmtree(folder)
    run_round(1)
    assert {path: path.read_bytes() for path in files} == gone_on


@pytest.mark.parametrize(
    ("objective", "own", "its_input"),
    [
        ("di4c", {"num_latents": 2, "correlation_weight": 0.1}, "takes_latent"),
        ("gumbel", {"noise_share": 0.5}, "takes_noise"),
    ],
)
def test_rounds_keep_the_input_that_their_objective_adds_and_another_drops_it(
    teacher: Denoiser, objective: str, own: dict[str, object], its_input: str
) -> None:
    write_autoregressive()
    choose(objective, **own)
    run_round(1)
    run_round(2)
    both = {"takes_latent", "takes_noise"}
    for name in ("models/1", "models/2"):
        assert {one for one in both if getattr(Denoiser.from_pretrained(name).config, one)} == {its_input}
    assert weights_of("models/1").keys() == weights_of("models/2").keys()
    (other,) = both - {its_input}
    with_other = getattr(Denoiser.from_pretrained("models/2"), other.replace("takes", "with"))()
    assert {one for one in both if getattr(with_other.config, one)} == {other}


def write_autoregressive() -> None:
    sizes = {"hidden_size": 8, "num_blocks": 1, "num_heads": 2, "dropout": 0.0}
    new_gpt2(vocab_size=12, length=16, **sizes).save_pretrained("models/ar")


LORA = {"rank": 2, "alpha": 4, "targets": None}


@pytest.fixture
def hub_teacher(teacher: Denoiser) -> HubModel:
    """In place of the other one, a network of transformers."""
    published(Path("hub"), "llama", vocab_size=12, pad_token_id=None)
    model = open_hub("hub", None, mask_token_id=11, num_tokens=12, length=16, noise_epsilon=EPSILON, is_shifted=False)
    shutil.rmtree("models/0")
    Path("models/0").mkdir()
    model.save_pretrained(Path("models/0"))
    choose_lora()
    return model


def choose_lora(**changes: object) -> None:
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["pretrain"].update(init_from="hub")
    values["distill"].update(lora={**LORA, **changes}, learning_rate=1e-2)
    Path("params.yaml").write_text(yaml.safe_dump(values))


@pytest.mark.parametrize(
    ("objective", "own"),
    [
        ("sdtt", {"divergence": "mse", **OF_SDTT}),
        ("idlm", {"fake_learning_rate": 1e-3}),
        ("joint", {**HEAD, "order": "both", "train_trunk": True}),
        ("joint", {**HEAD, "order": "both", "train_trunk": False}),
        ("joint_sdtt", {**HEAD, "order": "random", "train_trunk": True, "divergence": "kl_teacher_student", **STEPS}),
    ],
)
def test_rounds_learn_adapters_and_hold_nothing_else(
    hub_teacher: HubModel, monkeypatch: pytest.MonkeyPatch, objective: str, own: dict[str, object]
) -> None:
    """Cut off at any step they end in the same bytes; the next one's teacher is what the one before learned."""
    choose(objective, **own)
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["distill"].update(num_train_steps=4, checkpoint_every_steps=2)
    Path("params.yaml").write_text(yaml.safe_dump(values))
    teachers: list[dict[str, torch.Tensor]] = []
    parallelize_teacher = parallel.parallelize_teacher

    def seen(teacher: torch.nn.Module, devices: parallel.Devices) -> None:
        tensors = {f"model.{name}": tensor.clone() for name, tensor in parallel.trained(teacher).items()}
        teachers.append(tensors)
        parallelize_teacher(teacher, devices)

    monkeypatch.setattr(parallel, "parallelize_teacher", seen)
    for round_index in (1, 2):
        run_round(round_index)
    files = [path for k in (1, 2) for name in ("models", "states") for path in Path(f"{name}/{k}").iterdir()]
    whole = {path: path.read_bytes() for path in files}

    # 1. What lies where: nothing of the base, but in models/0.
    state = load_file("states/1/train_state.safetensors")
    is_trunk_trained = own.get("train_trunk", True)
    assert any(".lora_" in name for name in state) is is_trunk_trained
    assert all(".lora_" in name or ".joint_head." in name for name in state)
    heads = {"joint_head.json", "joint_head.safetensors"} if "train_trunk" in own else set()
    tokenizer = {path.name for path in Path("data/tokenizer").iterdir()}
    assert {path.name for path in Path("models/1").iterdir()} == {*ADAPTER_FILES, *tokenizer, *heads}

    # 2. The first teacher is the base; the second has the raw weights of the first round's student.
    assert all(not tensor.any() for name, tensor in teachers[0].items() if ".lora_B." in name)
    raw = {name: tensor for name, tensor in state.items() if name.startswith("model.")}
    assert raw
    assert all(torch.equal(teachers[1][name], raw[name]) for name in raw)
    x0 = torch.arange(16).view(1, 16) % 11
    at = torch.ones_like(x0, dtype=torch.bool)
    # As stages after this one open them.
    models = [open_denoiser("models/0"), *(open_with_tokenizer(Path(f"models/{k}"))[0] for k in (1, 2))]
    hidden = [trunk_of(model).hidden_at(x0, at) for model in models]
    assert torch.equal(hidden[0], hub_teacher.hidden_at(x0, at))
    assert all(torch.equal(a, b) is not is_trunk_trained for a, b in pairwise(hidden))

    # 3. The same, cut off twice.
    for name in ("models/1", "models/2", "states/1", "states/2", ".halfstep"):
        shutil.rmtree(name)
    update, calls = EMA.update, []

    def dies(ema: EMA, model: torch.nn.Module) -> None:
        calls.append(0)
        if len(calls) in (4, 9):
            raise KeyboardInterrupt
        update(ema, model)

    monkeypatch.setattr(EMA, "update", dies)
    for round_index in (1, 2):
        while not Path(f"models/{round_index}").exists():
            with suppress(KeyboardInterrupt):
                run_round(round_index)
    assert len(calls) > 9
    assert {path: path.read_bytes() for path in files} == whole


def test_the_frozen_weights_are_there_once(hub_teacher: HubModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of teacher, student and the network that learns beside it."""
    choose("idlm", fake_learning_rate=1e-3)
    seen: list[torch.nn.Module] = []
    built = idlm.build

    def build(given: Distillation) -> Objective:
        objective = built(given)
        seen.extend((given.teacher, given.student, *objective.networks.values()))
        return objective

    monkeypatch.setattr(idlm, "build", build)
    run_round(1)
    frozen, *others = (
        {name: p.data_ptr() for name, p in network.named_parameters() if ".lora_" not in name} for network in seen
    )
    assert len(others) == 2
    assert len(set(frozen.values())) == len(frozen) > 10
    assert others == [frozen, frozen]
    base = open_denoiser("models/0").state_dict()
    now = {name.replace(".base_layer", ""): tensor for name, tensor in seen[1].state_dict().items()}
    assert all(torch.equal(now[name], tensor) for name, tensor in base.items())
    learned = [{name: p for name, p in network.named_parameters() if ".lora_B" in name} for network in seen]
    assert not any(p.any() for p in learned[0].values())
    assert all(p.any() for network in learned[1:] for p in network.values())


def test_the_signal_is_that_of_what_is_learned(hub_teacher: HubModel) -> None:
    """Before a step that is one of a pair: the other is multiplied by zero."""
    tokens = load_tokens(Path("data/tokens"), "train")
    path = Path("models/0")
    gradients = first_gradients(load_params(Path("params.yaml")), open_denoiser(path), path, tokens, 3)
    hub_teacher.adapt(path, **LORA)
    sizes = {name: p.numel() for name, p in matrices_of(hub_teacher.network).items()}
    assert gradients.shape == (3, sum(sizes.values()))
    parts = dict(zip(sizes, gradients.split(list(sizes.values()), dim=1), strict=True))
    assert all(part.any() == (".lora_B." in name) for name, part in parts.items())


def test_peft_is_missed_before_anything_is_trained(hub_teacher: HubModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halfstep.run.fits.find_spec", lambda name: None)
    paths = Path("params.yaml"), Path("data/tokens"), Path("data/tokenizer")
    with pytest.raises(UserError, match=r"need peft, which is not installed: pip install 'halfstep\[lora\]'$"):
        pretrain.main(*paths, Path("models/0"), Path("curves/0.csv"))


def test_what_has_no_adapter_is_one_line(hub_teacher: HubModel) -> None:
    run_round(1)
    choose_lora(rank=3)
    with pytest.raises(UserError, match=r"^models/1 has an adapter of other sizes or layers than distill\.lora's"):
        run_round(2)
    teacher = Denoiser(DenoiserConfig(12, 11, 16, 8, 1, 2, 8, 0.0, EPSILON))
    with pytest.raises(UserError, match=r"rank is 2, but models/0 is no network of transformers: -S distill\.lora"):
        adapt(teacher, Path("models/0"), LoraSettings(**LORA))


def test_features_that_the_teacher_has_not_are_one_line(teacher: Denoiser) -> None:
    choose("mmd", num_pairs=2, num_feature_blocks=2, bandwidth=0.1)
    with pytest.raises(UserError, match=r"num_feature_blocks is 2, but the teacher has 1 blocks: .*_blocks=1$"):
        run_round(1)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"objective": "nelbo"}, r"is nelbo, whose section distill\.nelbo is missing; .* -S objective=nelbo$"),
        (
            {"objective": "sdt"},
            r"is 'sdt': it should be 'di4c', 'gumbel', 'idlm', .*'nelbo' or 'sdtt'; .* -S objective=sdtt$",
        ),
        (
            {"objective": "base"},
            r"is 'base': it should be 'di4c', 'gumbel', 'idlm', 'joint', 'joint_sdtt', 'mmd', 'nelbo' or 'sdtt'",
        ),
        (
            {"sdtt": {"divergence": "msee", **OF_SDTT}},
            r"distill\.sdtt\.divergence is 'msee'.* -S distill\.sdtt\.divergence=mse$",
        ),
    ],
)
def test_an_objective_that_is_not_known_or_not_chosen_by_its_file_is_one_line(
    teacher: Denoiser, changes: dict[str, object], line: str
) -> None:
    write_params(**changes)
    with pytest.raises(UserError, match=line):
        load_params(Path("params.yaml"))


def test_a_teacher_that_predicts_nan_is_named_in_one_line(teacher: Denoiser) -> None:
    torch.nn.init.constant_(teacher.output_layer.linear.bias, float("nan"))
    teacher.save_pretrained(Path("models/0"))
    with pytest.raises(UserError, match=r"^models/0 predicts NaN: its weights are broken"):
        run_round(1)
    assert not Path("models/1").exists()
