"""The computation as it was published: the yardstick for speed, and an independent reference for results.

Every position is projected to the whole vocabulary at every step, noise is drawn for the whole tensor, and
log-probabilities are kept as [batch, length, vocab] tensors. Nothing here is used to train or to sample: `halfstep
bench` times it, and tests compare its results with ours.

Source: the code of Sahoo et al. 2024, arXiv:2406.07524, and Deschenaux & Gulcehre 2024, arXiv:2410.21035v2: which
    tensors are formed, and with which constants. The teacher's times are those the paper means, t and t - dt.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from halfstep.diffusion.schedule import LogLinearSchedule

EXCLUDED = -1e6
"""In place of the logarithm of zero."""
MIN_TIME = 1e-5
"""Where the clock stops; what is still masked then takes its likeliest token."""

Network = Callable[[Tensor], Tensor]
"""xt int64 [batch, length] -> logits float [batch, length, vocab]."""


def log_p_x0(network: Network, xt: Tensor, mask_token_id: int) -> Tensor:
    """SUBS over the full tensor: log p(x0 | xt), float [batch, length, vocab]; `EXCLUDED` where it is zero."""
    logits = network(xt)
    logits[..., mask_token_id] += EXCLUDED
    log_p = logits - logits.logsumexp(dim=-1, keepdim=True)
    is_visible = xt != mask_token_id
    log_p[is_visible] = EXCLUDED
    log_p[is_visible, xt[is_visible]] = 0.0
    return log_p


def ancestral_step(
    log_p: Tensor,
    xt: Tensor,
    t: Tensor,
    dt: float,
    *,
    mask_token_id: int,
    schedule: LogLinearSchedule,
    generator: torch.Generator,
) -> Tensor:
    """Draw xs at s = t - dt by exponential races over all positions and tokens, with float32 noise.

    Args:
        log_p: of `log_p_x0`, float [batch, length, vocab].
        xt: tokens at time t, int64 [batch, length].
        t: times, float [batch].
        dt: time the step covers.
        mask_token_id: id of the absorbing state.
        schedule: the noise schedule.
        generator: randomness.
    Returns:
        xs, int64 [batch, length].
    """
    masked_at_t = (1 - schedule.alpha(t))[:, None, None].to(log_p.dtype)
    masked_at_s = (1 - schedule.alpha((t - dt).clamp(min=0.0)))[:, None, None].to(log_p.dtype)
    q_xs = log_p.exp() * (masked_at_t - masked_at_s)
    q_xs[..., mask_token_id] = masked_at_s[..., 0]
    u = torch.rand(q_xs.shape, generator=generator, dtype=q_xs.dtype, device=q_xs.device)
    drawn = (q_xs / (1e-10 - (u + 1e-10).log())).argmax(dim=-1)
    return torch.where(xt == mask_token_id, drawn, xt)


@torch.no_grad()
def sample(
    network: Network,
    x_init: Tensor,
    *,
    num_steps: int,
    mask_token_id: int,
    schedule: LogLinearSchedule,
    generator: torch.Generator,
) -> Tensor:
    """Fill the masks of x_init with one network evaluation per step, and one more where a mask is left.

    Args:
        network: in evaluation mode.
        x_init: tokens to keep, the mask token elsewhere, int64 [batch, length].
        num_steps: denoising steps.
        mask_token_id, schedule, generator: as `ancestral_step`.
    Returns:
        tokens, int64 [batch, length].
    """
    xt = x_init
    times = torch.linspace(1, MIN_TIME, num_steps + 1, dtype=torch.float64, device=xt.device)
    dt = (1 - MIN_TIME) / num_steps
    for time in times[:-1]:
        log_p = log_p_x0(network, xt, mask_token_id)
        t = time.expand(xt.shape[0])
        xt = ancestral_step(log_p, xt, t, dt, mask_token_id=mask_token_id, schedule=schedule, generator=generator)
    if (xt == mask_token_id).any():
        xt = log_p_x0(network, xt, mask_token_id).argmax(dim=-1)
    return xt


def nelbo(network: Network, x0: Tensor, xt: Tensor, t: Tensor, *, mask_token_id: int) -> Tensor:
    """MDLM's loss: the cross-entropy of every position, weighted by 1 / t, averaged over all positions.

    Args:
        network: being trained.
        x0, xt: clean tokens and those at time t, int64 [batch, length].
        t: times, float [batch].
        mask_token_id: id of the absorbing state.
    Returns:
        nats per token, float [].
    """
    log_p = log_p_x0(network, xt, mask_token_id)
    cross_entropy = -log_p.gather(-1, x0[..., None])[..., 0]
    return (cross_entropy / t[:, None].to(cross_entropy.dtype)).mean()


@torch.no_grad()
def sdtt_targets(
    teacher: Network,
    xt: Tensor,
    t: Tensor,
    *,
    dt: float,
    num_teacher_steps: int,
    mask_token_id: int,
    schedule: LogLinearSchedule,
    generator: torch.Generator,
) -> Tensor:
    """The teacher's log-probabilities for every position, from the step that unmasked it or else the last.

    Args:
        teacher: in evaluation mode.
        xt: tokens at time t, int64 [batch, length].
        t: times, float [batch].
        dt: time one teacher step covers.
        num_teacher_steps: teacher steps that one student step replaces.
        mask_token_id, schedule, generator: as `ancestral_step`.
    Returns:
        float [batch, length, vocab].
    """
    targets = None
    for i in range(num_teacher_steps):
        log_p = log_p_x0(teacher, xt, mask_token_id)
        xs = ancestral_step(
            log_p, xt, t - i * dt, dt, mask_token_id=mask_token_id, schedule=schedule, generator=generator
        )
        # Positions that this step or a later one decides; the last step decides whatever is left.
        if targets is None:
            targets = log_p.clone()
        else:
            is_open = xt == mask_token_id
            targets[is_open] = log_p[is_open]
        xt = xs
    assert targets is not None
    return targets


def sdtt_loss(student: Network, xt: Tensor, targets: Tensor, *, mask_token_id: int) -> Tensor:
    """Reverse KL of the student from the targets, averaged over the masked positions.

    Args:
        student: being trained.
        xt: tokens at time t, int64 [batch, length].
        targets: of `sdtt_targets`, float [batch, length, vocab].
        mask_token_id: id of the absorbing state.
    Returns:
        nats per masked token, float [].
    """
    is_masked = xt == mask_token_id
    student_log_p = log_p_x0(student, xt, mask_token_id)[is_masked]
    difference = student_log_p - targets[is_masked]
    return (student_log_p.exp() * difference).sum(dim=-1).mean()
