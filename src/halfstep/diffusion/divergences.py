"""Distances between the predictions of a student and of its teacher, one number per row.

Rows are log-probabilities over the vocabulary. Where both put zero probability on a token, the token contributes
nothing, and gradients there are zero: 0 * log 0 is 0 throughout.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def kl_student_teacher(student_log_p: Tensor, teacher_log_p: Tensor) -> Tensor:
    """KL(student || teacher), the reverse KL: the paper's best distance.

    Args:
        student_log_p: the student's log-probabilities, float [..., vocab].
        teacher_log_p: the teacher's log-probabilities, float [..., vocab].
    Returns:
        nats, float [...]; infinite where the student gives probability to what the teacher excludes.
    Source: Deschenaux & Gulcehre 2024, arXiv:2410.21035v2, Appendix B (Eq. 9, 10, 11) and Section 4.1.
    """
    return _kl(student_log_p, teacher_log_p)


def kl_teacher_student(student_log_p: Tensor, teacher_log_p: Tensor) -> Tensor:
    """KL(teacher || student), the forward KL.

    Args, Returns, Source: as `kl_student_teacher`; infinite where the student excludes what the teacher allows.
    """
    return _kl(teacher_log_p, student_log_p)


def mse(student_log_p: Tensor, teacher_log_p: Tensor) -> Tensor:
    """Mean over the tokens either side allows of the squared difference of log-probabilities.

    Args, Source: as `kl_student_teacher`.
    Returns:
        nats squared, float [...].
    Departs: the mean excludes tokens that both exclude, which the mask token always is; the authors' code averages
        over the whole vocabulary with about -1e6 for the mask token, whose rounding then enters the loss.
    """
    difference, is_possible = _log_difference(student_log_p, teacher_log_p)
    return difference.square().sum(dim=-1) / is_possible.sum(dim=-1)


def log_l1(student_log_p: Tensor, teacher_log_p: Tensor) -> Tensor:
    """Sum over the tokens of the absolute difference of log-probabilities.

    This is what the authors' code computes under the name TVD, and so the distance behind the paper's results for
    it; the total variation distance itself is `total_variation`.

    Args, Source: as `kl_student_teacher`.
    Returns:
        nats, float [...]; infinite where only one side excludes a token.
    Departs: tokens that both exclude add nothing; in the authors' code the mask token adds the rounding of about -1e6.
    """
    difference, _ = _log_difference(student_log_p, teacher_log_p)
    return difference.abs().sum(dim=-1)


def total_variation(student_log_p: Tensor, teacher_log_p: Tensor) -> Tensor:
    """Total variation distance: half the L1 distance of the probabilities.

    Args, Source: as `kl_student_teacher`.
    Returns:
        float [...] in [0, 1].
    Departs: the authors' code sums absolute differences of log-probabilities, without the half, which is not the
        total variation the paper names.
    """
    return (student_log_p.exp() - teacher_log_p.exp()).abs().sum(dim=-1) / 2


def _log_difference(student_log_p: Tensor, teacher_log_p: Tensor) -> tuple[Tensor, Tensor]:
    """(difference, where either side allows the token); where neither does the difference and its gradient are zero."""
    is_possible = (student_log_p > -torch.inf) | (teacher_log_p > -torch.inf)
    difference = torch.where(is_possible, student_log_p, 0.0) - torch.where(is_possible, teacher_log_p, 0.0)
    return difference, is_possible


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) per row; where p is zero the term and its gradient are zero."""
    return _KL.apply(log_p, log_q)


class _KL(torch.autograd.Function):
    """The sum of p log(p / q), with its derivatives written out: they share what autograd would compute again."""

    @staticmethod
    def forward(ctx: Any, log_p: Tensor, log_q: Tensor) -> Tensor:
        p = log_p.exp()
        log_ratio = (log_p - log_q).masked_fill_(log_p == -torch.inf, 0.0)
        ctx.save_for_backward(p, log_ratio)
        return (p * log_ratio).sum(dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None]:
        p, log_ratio = ctx.saved_tensors
        by_log_p = torch.addcmul(p, p, log_ratio).mul_(slope[..., None]) if ctx.needs_input_grad[0] else None
        by_log_q = p * -slope[..., None] if ctx.needs_input_grad[1] else None
        return by_log_p, by_log_q


Divergence = Callable[[Tensor, Tensor], Tensor]
DivergenceName = Literal["kl_student_teacher", "kl_teacher_student", "mse", "log_l1", "total_variation"]

DIVERGENCES: dict[DivergenceName, Divergence] = {
    "kl_student_teacher": kl_student_teacher,
    "kl_teacher_student": kl_teacher_student,
    "mse": mse,
    "log_l1": log_l1,
    "total_variation": total_variation,
}
