"""On a GPU: losses, gradients and texts are those of the CPU, in float32."""

import copy
from pathlib import Path

import pytest
import torch

from halfstep.diffusion.divergences import kl_student_teacher
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.model.denoiser import Denoiser
from halfstep.objectives.base import PRODUCT, Objective
from halfstep.objectives.nelbo import nelbo_objective
from halfstep.objectives.sdtt import sdtt_objective
from halfstep.objectives.teacher import TeacherSteps
from halfstep.samplers.base import Uniforms
from halfstep.samplers.sampler import Sampler
from tests.samplers.test_policies import SETTINGS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
SCHEDULE = LogLinearSchedule(1e-3)


@pytest.fixture
def denoisers(published: Path) -> dict[str, Denoiser]:
    return {device: Denoiser.from_pretrained(published).eval().to(device) for device in ("cpu", "cuda")}


def objective_of(name: str, teacher: Denoiser) -> Objective:
    mask = teacher.config.mask_token_id
    if name == "nelbo":
        return nelbo_objective(schedule=SCHEDULE, min_time=1e-5, mask_token_id=mask)
    steps = TeacherSteps(1 / 8, 2, SCHEDULE)
    return sdtt_objective(teacher, steps, mask_token_id=mask, min_time=1e-5, divergence=kl_student_teacher)


@pytest.mark.parametrize("name", ["nelbo", "sdtt"])
def test_loss_and_gradients_are_those_of_the_cpu(denoisers: dict[str, Denoiser], name: str) -> None:
    """The same noise on both; a teacher's token that rounding decides differently is one of 512."""
    x0 = torch.randint(90, (32, 16), generator=torch.Generator().manual_seed(1))
    noise, losses, gradients = None, {}, {}
    for device, teacher in denoisers.items():
        student = copy.deepcopy(teacher)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.mul_(0.9)
        objective = objective_of(name, teacher)
        noise = noise or objective.draw(x0.shape, torch.Generator().manual_seed(3))
        total, count = objective.losses[PRODUCT](student, x0.to(device), *(u.to(device) for u in noise))
        losses[device] = float(total.detach()) / int(count)
        (total / count).backward()
        gradients[device] = torch.cat([p.grad.cpu().flatten() for p in student.parameters() if p.grad is not None])
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-3)
    difference = gradients["cuda"] - gradients["cpu"]
    assert float(difference.norm() / gradients["cpu"].norm()) < 0.02


@pytest.mark.parametrize("name", SETTINGS)
def test_texts_are_those_of_the_cpu(denoisers: dict[str, Denoiser], name: str) -> None:
    """One text's numbers are the same on both; rounding may tip one of 32 texts in ten."""
    texts = {}
    for device, model in denoisers.items():
        mask, length = model.config.mask_token_id, model.config.length
        x_init = torch.full((32, length), mask, device=device)
        x_init[:, 0] = 5
        drawn = Sampler(name, SETTINGS[name]).sample(
            model, x_init, mask_token_id=mask, uniforms=Uniforms(0, range(32), length)
        )
        texts[device] = drawn.tokens.cpu()
    assert (texts["cpu"] != denoisers["cpu"].config.mask_token_id).all()
    assert float((texts["cuda"] == texts["cpu"]).all(1).double().mean()) >= 0.9
