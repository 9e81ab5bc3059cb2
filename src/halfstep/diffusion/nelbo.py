"""The training loss of masked diffusion: a weighted cross-entropy that bounds the log-likelihood."""

from torch import Tensor

from halfstep.diffusion.schedule import LogLinearSchedule


def nelbo_weight(t: Tensor, schedule: LogLinearSchedule) -> Tensor:
    """Weight of the cross-entropy at time t: -dalpha_t / (1 - alpha_t), which is 1 / t for the log-linear schedule.

    Args:
        t: times in (0, 1], float [batch].
        schedule: the noise schedule.
    Returns:
        float [batch], in the dtype of t.
    Source: Sahoo et al. 2024, arXiv:2406.07524, Section 3.4, Eq. 10.
    """
    return -schedule.dalpha(t) / (1 - schedule.alpha(t))


def nelbo_per_token(
    log_p_masked: Tensor, x0: Tensor, is_masked: Tensor, t: Tensor, schedule: LogLinearSchedule
) -> Tensor:
    """The negative ELBO's integrand at time t, for each position.

    Visible positions cost nothing, since SUBS gives their token probability one; so only masked positions need a
    prediction. The mean over all positions, masked or not, and over t uniform in (0, 1] is the bound on the
    negative log-likelihood per token.

    Args:
        log_p_masked: log p(x0 | xt) at the masked positions in row-major order, float [num_masked, vocab].
        x0: clean tokens, int64 [batch, length].
        is_masked: which positions xt masks, bool [batch, length].
        t: times in (0, 1], float [batch].
        schedule: the noise schedule.
    Returns:
        nats, in the dtype of log_p_masked, float [batch, length].
    Raises:
        ValueError: log_p_masked does not have one row per masked position.
    Source: Sahoo et al. 2024, arXiv:2406.07524, Section 3.5, Eq. 11.
    """
    targets = x0[is_masked]
    if log_p_masked.shape[:-1] != targets.shape:
        raise ValueError(f"log_p_masked has {log_p_masked.shape[0]} rows for {targets.numel()} masked positions")
    weight = nelbo_weight(t, schedule)[:, None].expand(x0.shape)[is_masked]
    nats = weighted_cross_entropy(log_p_masked, targets, weight)
    return nats.new_zeros(x0.shape).masked_scatter(is_masked, nats)


def weighted_cross_entropy(log_p: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """What a masked position adds to the negative ELBO: -weight log p(target).

    Args:
        log_p: log p(x0 | xt), float [n, vocab].
        targets: clean tokens, int64 [n].
        weight: of each position, see `nelbo_weight`, float [n].
    Returns:
        nats, in the dtype of log_p, float [n].
    """
    return -weight.to(log_p.dtype) * log_p.gather(-1, targets[:, None])[:, 0]
