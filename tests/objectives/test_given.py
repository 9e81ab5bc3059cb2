"""Tokens that are given: never masked, never asked for, and no part of any loss."""

from collections.abc import Callable

import pytest
import torch
from tests.objectives.test_joint import MASK, SCHEDULE, VOCAB
from torch import Tensor, nn

from halfstep.diffusion.divergences import kl_teacher_student
from halfstep.diffusion.nelbo import nelbo_weight
from halfstep.diffusion.subs import masked_log_probs
from halfstep.model.config import DenoiserConfig
from halfstep.model.denoiser import Denoiser
from halfstep.model.gpt2 import new_gpt2
from halfstep.model.joint import JointHeadConfig, JointModel
from halfstep.objectives.autoregressive import autoregressive_objective
from halfstep.objectives.base import Objective
from halfstep.objectives.di4c import di4c_objective
from halfstep.objectives.gumbel import noise_of_texts
from halfstep.objectives.idlm import idlm_objective
from halfstep.objectives.joint import joint_objective
from halfstep.objectives.joint_sdtt import joint_sdtt_objective
from halfstep.objectives.mmd import mmd_objective
from halfstep.objectives.nelbo import nelbo_objective
from halfstep.objectives.sdtt import sdtt_objective
from halfstep.objectives.teacher import TeacherSteps

LENGTH, NUM_ROWS = 6, 9
COMMON = {"min_time": 1e-3, "mask_token_id": MASK}
STEPS = TeacherSteps(0.25, 2, SCHEDULE)


def denoiser(seed: int) -> Denoiser:
    torch.manual_seed(seed)
    model = Denoiser(DenoiserConfig(VOCAB, MASK, LENGTH, 16, 1, 2, 8, 0.0, 1e-3, absolute_positions=True))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def headed(seed: int) -> JointModel:
    return JointModel.untrained(denoiser(seed), JointHeadConfig(16, 1, 2, "sampler")).eval()


def autoregressive() -> nn.Module:
    return new_gpt2(vocab_size=VOCAB, length=LENGTH, hidden_size=8, num_blocks=1, num_heads=2, dropout=0.0).eval()


Made = tuple[Objective, nn.Module]


def sdtt(teacher: Denoiser, **more: int) -> Objective:
    return sdtt_objective(teacher, STEPS, divergence=kl_teacher_student, **COMMON, **more)


OBJECTIVES: dict[str, Callable[[Denoiser], Made]] = {
    "nelbo": lambda teacher: (nelbo_objective(schedule=SCHEDULE, **COMMON), denoiser(1)),
    "sdtt": lambda teacher: (sdtt(teacher), denoiser(1)),
    "sdtt of own states": lambda teacher: (sdtt(teacher, num_own_steps=2), denoiser(1)),
    "joint": lambda teacher: (
        joint_objective(schedule=SCHEDULE, train_trunk=True, order="both", **COMMON),
        headed(1),
    ),
    "joint_sdtt": lambda teacher: (
        joint_sdtt_objective(teacher, STEPS, divergence=kl_teacher_student, train_trunk=True, **COMMON),
        headed(1),
    ),
    "mmd": lambda teacher: (
        mmd_objective(lambda x: teacher.features(x, 1), num_pairs=2, bandwidth=0.3, schedule=SCHEDULE, **COMMON),
        denoiser(1),
    ),
    "di4c": lambda teacher: (
        di4c_objective(teacher, dt=0.25, num_latents=2, correlation_weight=1.0, schedule=SCHEDULE, **COMMON),
        denoiser(1).with_latent(),
    ),
    "gumbel": lambda teacher: (
        nelbo_objective(schedule=SCHEDULE, latent_of=noise_of_texts(autoregressive(), 0.5, MASK), **COMMON),
        denoiser(1).with_noise(),
    ),
}


def chat_rows(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(rows some of whose tokens are given, which those are): two that are no other row's, further ones, all."""
    tokens = torch.randint(VOCAB - 1, (NUM_ROWS, LENGTH), generator=generator)
    tokens[:, :2] = torch.cartesian_prod(*[torch.arange(VOCAB - 1)] * 2)[:NUM_ROWS]
    is_given = torch.rand(tokens.shape, generator=generator) < 0.3
    is_given[:, :2] = True
    is_given[0, 2:] = False
    is_given[-1] = True
    return torch.where(is_given, ~tokens, tokens), is_given


def watch(network: nn.Module, tokens: Tensor, is_given: Tensor, seen: list[Tensor]) -> None:
    """Check what a network is asked: given tokens stand where they are, and no position of theirs is asked for."""
    plain = torch.where(is_given, ~tokens, tokens)
    original = network.hidden_at

    def hidden_at(xt: Tensor, at: Tensor, **more: Tensor) -> Tensor:
        # Evaluations are of some rows only, or of each row several times: their first two tokens say which.
        row = (xt[:, None, :2] == plain[None, :, :2]).all(dim=2).int()
        assert (row.sum(dim=1) == 1).all()
        row = row.argmax(dim=1)
        assert torch.equal(xt[is_given[row]], plain[row][is_given[row]])
        assert not (at & is_given[row]).any()
        seen.append(at)
        return original(xt, at, **more)

    network.hidden_at = hidden_at  # type: ignore[method-assign]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_given_tokens_are_never_masked_nor_asked_for(name: str, generator: torch.Generator) -> None:
    teacher = denoiser(0).requires_grad_(False)
    objective, student = OBJECTIVES[name](teacher)
    tokens, is_given = chat_rows(generator)
    seen: list[Tensor] = []
    watch(student.trunk if isinstance(student, JointModel) else student, tokens, is_given, seen)
    watch(teacher, tokens, is_given, seen)
    for seed in range(5):
        total, count = objective(student, tokens, torch.Generator().manual_seed(seed))
        assert torch.isfinite(total)
        assert 0 < count <= int((~is_given).sum())
    assert seen


@pytest.mark.parametrize("name", [*OBJECTIVES, "idlm"])
def test_a_row_that_is_given_whole_has_no_loss(name: str, generator: torch.Generator) -> None:
    """With the numbers that the other rows have beside it, they alone give the same sum and count."""
    teacher = denoiser(0).requires_grad_(False)
    if name == "idlm":
        student = denoiser(1)
        objective = idlm_objective(teacher, student, schedule=SCHEDULE, fake_learning_rate=1e-4, **COMMON)
    else:
        objective, student = OBJECTIVES[name](teacher)
    tokens, _ = chat_rows(generator)
    inputs = objective.inputs(tokens, generator)
    for network, loss in objective.losses.items():
        model = student if network == "model" else objective.networks[network]
        whole, fewer = loss(model, *inputs), loss(model, *(tensor[:-1] for tensor in inputs))
        assert whole[1] == fewer[1]
        torch.testing.assert_close(whole[0], fewer[0])


def test_idlm_masks_no_given_token_either_time(generator: torch.Generator) -> None:
    teacher, student = denoiser(0).requires_grad_(False), denoiser(1)
    objective = idlm_objective(teacher, student, schedule=SCHEDULE, fake_learning_rate=1e-4, **COMMON)
    tokens, is_given = chat_rows(generator)
    seen: list[Tensor] = []
    for network in (teacher, student, objective.networks["fake"]):
        watch(network, tokens, is_given, seen)
    inputs = objective.inputs(tokens, generator)
    for network, loss in objective.losses.items():
        total, count = loss(student if network == "model" else objective.networks[network], *inputs)
        assert torch.isfinite(total)
        assert count == int((~is_given).sum())
    assert len(seen) == 5


def test_the_bound_counts_what_is_not_given(generator: torch.Generator) -> None:
    """Against a loop over the positions that are masked."""
    model, objective = denoiser(1), nelbo_objective(schedule=SCHEDULE, **COMMON)
    tokens, is_given = chat_rows(generator)
    x0, t, u_mask = objective.inputs(tokens, generator)
    assert torch.equal(x0, torch.where(is_given, ~tokens, tokens))
    total, count = objective.loss(model, x0, t, u_mask)
    expected = 0.0
    for row in range(len(x0)):
        hidden = ~is_given[row] & (u_mask[row] >= SCHEDULE.alpha(t[row]))
        log_p = masked_log_probs(model(torch.where(hidden, MASK, x0[row])[None])[0], MASK).detach()
        for place in hidden.nonzero()[:, 0]:
            expected -= float(nelbo_weight(t[row], SCHEDULE) * log_p[place, x0[row, place]])
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert count == int((~is_given).sum())


def test_an_autoregressive_model_learns_what_is_not_given(generator: torch.Generator) -> None:
    sizes = {"vocab_size": VOCAB, "length": LENGTH, "hidden_size": 8, "num_blocks": 1, "num_heads": 2, "dropout": 0.0}
    model = new_gpt2(**sizes).eval()
    tokens, is_given = chat_rows(generator)
    total, count = autoregressive_objective()(model, tokens, generator)
    x0 = torch.where(is_given, ~tokens, tokens)
    log_p = model(x0).logits.detach().log_softmax(dim=-1)[:, :-1].gather(2, x0[:, 1:, None])[..., 0]
    counted = ~is_given[:, 1:]
    assert total.item() == pytest.approx(-float(log_p[counted].sum()), rel=1e-5)
    assert count == int(counted.sum())


def test_of_an_answer_own_states_see_nothing(generator: torch.Generator) -> None:
    """Not even its end, which a text has in common with all others."""
    teacher = denoiser(0).requires_grad_(False)
    objective, student = OBJECTIVES["sdtt of own states"](teacher)
    for _ in range(10):
        tokens, is_given = chat_rows(generator)
        inputs = objective.inputs(tokens, generator)
        other = torch.where(is_given, inputs[0], VOCAB - 2 - inputs[0])
        total, count = objective.loss(student, *inputs)
        assert count > 0
        assert objective.loss(student, other, *inputs[1:]) == (total, count)
