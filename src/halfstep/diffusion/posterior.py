"""The reverse process: from time t to an earlier time s."""

import torch
from torch import Tensor


def unmask_probability(alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
    """Probability that a token masked at time t is visible at the earlier time s.

    It does not depend on the token or on the network: (alpha_s - alpha_t) / (1 - alpha_t).

    Args:
        alpha_t: visibility at t, in [0, 1), float [...].
        alpha_s: visibility at s, in [alpha_t, 1], float [...].
    Returns:
        probability in [0, 1], float [...].
    Raises:
        ValueError: alpha_t is 1 (nothing is masked at t), or alpha_s lies outside [alpha_t, 1].
    Source: Sahoo et al. 2024, arXiv:2406.07524, Section 3.2.1, Eq. 6.
    """
    if not bool((alpha_t < 1).all()):
        raise ValueError("alpha_t is 1: no token is masked at t")
    if not bool(((alpha_s >= alpha_t) & (alpha_s <= 1)).all()):
        raise ValueError("alpha_s must lie in [alpha_t, 1]: s is the earlier time")
    return (alpha_s - alpha_t) / (1 - alpha_t)


def posterior_probs(p_x0: Tensor, xt: Tensor, alpha_t: Tensor, alpha_s: Tensor, mask_token_id: int) -> Tensor:
    """Distribution of xs given xt: masked tokens stay masked or take a token of p_x0, visible ones stay.

    The sampler never forms this tensor; tests compare it with the sampler by enumeration.

    Args:
        p_x0: probabilities of the clean tokens, zero at the mask token, float [batch, length, vocab].
        xt: tokens at time t, int64 [batch, length].
        alpha_t: visibility at t, in [0, 1), float [batch].
        alpha_s: visibility at s, in [alpha_t, 1], float [batch].
        mask_token_id: id of the absorbing state.
    Returns:
        probabilities of xs, float [batch, length, vocab]; rows sum to one.
    Raises:
        ValueError: as `unmask_probability`.
    Source: Sahoo et al. 2024, arXiv:2406.07524, Section 3.2.3, Eq. 7.
    Departs: normalised, where the authors' sampler works with rows that sum to 1 - alpha_t.
    """
    p_unmask = unmask_probability(alpha_t, alpha_s)[:, None, None]
    stays = torch.zeros_like(p_x0).scatter(-1, xt[..., None], 1.0)
    return torch.where((xt == mask_token_id)[..., None], p_unmask * p_x0 + (1 - p_unmask) * stays, stays)
