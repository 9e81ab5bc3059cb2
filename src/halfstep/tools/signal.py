"""`halfstep signal`: how much of a gradient of distillation is signal."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from halfstep.data.tokens.packed import PackedTokens, token_batches
from halfstep.data.tokens.seeds import derive_seed
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.metrics.estimate import Estimate
from halfstep.model.base import MaskedModel
from halfstep.model.gpt2 import load_autoregressive
from halfstep.objectives.distillation import Distillation, adapt, distillation_objective, student_of
from halfstep.settings import Params
from halfstep.settings.graph import BASELINE
from halfstep.training.fit import seed_weights
from halfstep.training.parallel import trained


def first_gradients(params: Params, teacher: MaskedModel, path: Path, tokens: PackedTokens, num_batches: int) -> Tensor:
    """Gradients of a first round's student before its first step, each of a batch of its own, [num_batches, n].

    `path` is the folder that the teacher was read from; an autoregressive model is read beside it.
    """
    assert isinstance(teacher, torch.nn.Module)
    settings = params.distill
    seed_weights(params.seed, "distill@1")
    adapt(teacher, path, settings.lora)
    student = student_of(teacher, settings)
    assert isinstance(student, torch.nn.Module)
    teacher.requires_grad_(False)
    schedule = LogLinearSchedule(teacher.config.noise_epsilon)
    autoregressive = None
    if settings.asks_autoregressive:
        autoregressive = load_autoregressive(path.with_name(BASELINE)).requires_grad_(False)
    objective = distillation_objective(
        Distillation(1, teacher, student, schedule, settings, autoregressive=autoregressive)
    )
    batch = token_batches(tokens, settings.batch_size, seed=params.seed)
    found = []
    for number in range(num_batches):
        generator = torch.Generator().manual_seed(derive_seed(params.seed, "signal", number))
        total, count = objective(student, batch(number), generator)
        gradients = torch.autograd.grad(total / count, list(trained(student).values()), allow_unused=True)
        found.append(torch.cat([g.flatten() for g in gradients if g is not None]))
    return torch.stack(found)


def mean_cosine(gradients: Sequence[Tensor] | Tensor) -> Estimate:
    """The mean cosine of two gradients, with the standard error of a jackknife over them.

    With a mean gradient g and noise of variance v in all, it is about |g|^2 / (|g|^2 + v): the mean over n batches
    has as much signal as noise where n is (1 - cosine) / cosine. A gradient of zero counts as nothing but noise.

    Args:
        gradients: three or more, each float [m].
    """
    unit = torch.nn.functional.normalize(torch.stack(list(gradients)).double(), dim=1)
    cosines, n = unit @ unit.T, len(unit)
    off = cosines.sum() - cosines.trace()
    mean = off / (n * (n - 1))
    # Without batch i: the pairs that it is in are left out.
    without = (off - 2 * (cosines.sum(dim=1) - cosines.diagonal())) / ((n - 1) * (n - 2))
    error = ((n - 1) / n * (without - without.mean()).square().sum()).sqrt()
    return Estimate(float(mean), float(error), n, "1")
