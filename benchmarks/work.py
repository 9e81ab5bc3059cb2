"""What is measured: the same piece of work, as it was published and as halfstep does it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks import plain
from benchmarks.sizes import Size
from halfstep.diffusion.divergences import kl_student_teacher
from halfstep.diffusion.noise import antithetic_times, mask_tokens
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.objectives.base import Objective
from halfstep.objectives.nelbo import nelbo_objective
from halfstep.objectives.sdtt import sdtt_objective
from halfstep.objectives.teacher import TeacherSteps
from halfstep.samplers.ancestral import sample, unmask_steps
from halfstep.samplers.base import Samples, Uniforms, ask
from halfstep.samplers.sampler import Sampler
from halfstep.tools.planning.networks import forward_flops
from halfstep.training.parallel import compile_blocks

SCHEDULE = LogLinearSchedule(1e-3)
MIN_TIME = 1e-5
NUM_TEACHER_STEPS = 2


@dataclass(frozen=True)
class Work:
    """One piece of work, done in two ways.

    Attributes:
        plain: as published.
        ours: as halfstep does it.
        flops: floating-point operations of the matrix products in ours, as many as the method needs.
    """

    plain: Callable[[], object]
    ours: Callable[[], object]
    flops: float


def build(name: str, size: Size, *, num_steps: int, dt: float, device: torch.device, is_compiled: bool = False) -> Work:
    """The work `train`, `distill`, `sample` or `choose` at some size.

    Args:
        name: train is MDLM's loss with its gradients, distill that of SDTT with two teacher steps and the reverse KL,
            sample a batch from nothing but masks, choose the same with the surest positions first.
        size: of network and batch.
        num_steps: denoising steps, for sample and choose.
        dt: time of a teacher step, for distill.
        device: where to compute.
        is_compiled: our networks' blocks go through `torch.compile`, as `runtime.compile` has it in training.
    """
    return WORKS[name](size, num_steps, dt, device, is_compiled)


def _clean_tokens(size: Size, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(size.mask_token_id, (size.batch_size, size.length), generator=generator).to(device)


def _noised(x0: Tensor, size: Size, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(xt, t); the objectives draw the same numbers from the same generator."""
    t = antithetic_times(size.batch_size, MIN_TIME, generator=generator, device=x0.device)
    return mask_tokens(x0, SCHEDULE.alpha(t), size.mask_token_id, generator=generator), t


def _generator(device: torch.device) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(1)


def _backward(model: nn.Module, loss: Tensor) -> None:
    loss.backward()
    model.zero_grad(set_to_none=True)


def _compiled(model: nn.Module, is_compiled: bool) -> nn.Module:
    """The network itself, or a compiled copy, so that the plain side keeps what it had."""
    if is_compiled:
        model = copy.deepcopy(model)
        compile_blocks(model)
    return model


def _ours(model: nn.Module, objective: Objective, x0: Tensor) -> Callable[[], None]:
    def step() -> None:
        total, count = objective(model, x0, _generator(x0.device))
        _backward(model, total / count)

    return step


def _train(size: Size, num_steps: int, dt: float, device: torch.device, is_compiled: bool) -> Work:
    model, x0 = size.denoiser().to(device), _clean_tokens(size, device)

    def published() -> None:
        xt, t = _noised(x0, size, _generator(device))
        _backward(model, plain.nelbo(model, x0, xt, t, mask_token_id=size.mask_token_id))

    objective = nelbo_objective(schedule=SCHEDULE, min_time=MIN_TIME, mask_token_id=size.mask_token_id)
    xt, _ = _noised(x0, size, _generator(device))
    num_masked = int((xt == size.mask_token_id).sum())
    flops = 3 * forward_flops(size, x0.numel(), num_masked, size.length)
    return Work(published, _ours(_compiled(model, is_compiled), objective, x0), flops)


def _distill(size: Size, num_steps: int, dt: float, device: torch.device, is_compiled: bool) -> Work:
    student, x0 = size.denoiser().to(device), _clean_tokens(size, device)
    teacher = copy.deepcopy(student).eval().requires_grad_(False)

    def published() -> None:
        generator = _generator(device)
        xt, t = _noised(x0, size, generator)
        targets = plain.sdtt_targets(
            teacher,
            xt,
            t,
            dt=dt,
            num_teacher_steps=NUM_TEACHER_STEPS,
            mask_token_id=size.mask_token_id,
            schedule=SCHEDULE,
            generator=generator,
        )
        _backward(student, plain.sdtt_loss(student, xt, targets, mask_token_id=size.mask_token_id))

    steps = TeacherSteps(dt, NUM_TEACHER_STEPS, SCHEDULE)
    objective = sdtt_objective(
        _compiled(teacher, is_compiled),
        steps,
        divergence=kl_student_teacher,
        min_time=MIN_TIME,
        mask_token_id=size.mask_token_id,
    )
    generator = _generator(device)
    xt, t = _noised(x0, size, generator)
    is_masked = xt == size.mask_token_id
    u_time, _ = torch.rand(2, *x0.shape, generator=generator, device=device, dtype=torch.float64)
    step = steps.unmask_steps(u_time, t)
    num_masked = int(is_masked.sum())
    flops = 3 * forward_flops(size, x0.numel(), num_masked, size.length)
    for unmasks in (is_masked & (step == 1), is_masked & (step > 1)):
        num_tokens = int(unmasks.any(dim=1).sum()) * size.length
        flops += forward_flops(size, num_tokens, int(unmasks.sum()), size.length)
    return Work(published, _ours(_compiled(student, is_compiled), objective, x0), flops)


def _sample(size: Size, num_steps: int, dt: float, device: torch.device, is_compiled: bool) -> Work:
    denoiser = size.denoiser().eval().to(device)
    faster = _compiled(denoiser, is_compiled)
    x_init = torch.full((size.batch_size, size.length), size.mask_token_id, device=device)
    u_time, u_token = Uniforms(0, range(size.batch_size), size.length).first

    def published() -> None:
        plain.sample(
            denoiser,
            x_init,
            num_steps=num_steps,
            mask_token_id=size.mask_token_id,
            schedule=SCHEDULE,
            generator=_generator(device),
        )

    def ours() -> None:
        sample(
            faster,
            x_init,
            num_steps=num_steps,
            mask_token_id=size.mask_token_id,
            u_time=u_time,
            u_token=u_token,
        )

    num_evaluations = sum(len(set(row)) for row in unmask_steps(u_time, num_steps).tolist())
    flops = forward_flops(size, num_evaluations * size.length, x_init.numel(), size.length)
    return Work(published, ours, flops)


def _choose(size: Size, num_steps: int, dt: float, device: torch.device, is_compiled: bool) -> Work:
    """Here the plain side is the network alone, body and one projection, at every step's masked positions."""
    denoiser = size.denoiser().eval().to(device)
    faster = _compiled(denoiser, is_compiled)
    x_init = torch.full((size.batch_size, size.length), size.mask_token_id, device=device)
    uniforms = Uniforms(0, range(size.batch_size), size.length)
    values = {"num_steps": num_steps, "score": "entropy", "noise": 0.5, "counts": "cosine"}
    sampler = Sampler("ordered", values)

    def ours() -> Samples:
        return sampler.sample(faster, x_init, mask_token_id=size.mask_token_id, uniforms=uniforms)

    drawn = ours()

    @torch.inference_mode()
    def network() -> None:
        for step in range(1, num_steps + 1):
            xt = torch.where(drawn.unmask_step < step, drawn.tokens, size.mask_token_id)
            for _ in ask(faster, xt, xt == size.mask_token_id, size.mask_token_id)():
                pass

    num_asked = int(drawn.unmask_step.sum())
    return Work(network, ours, forward_flops(size, num_steps * x_init.numel(), num_asked, size.length))


WORKS = {"train": _train, "distill": _distill, "sample": _sample, "choose": _choose}
