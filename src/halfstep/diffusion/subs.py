"""SUBS: from raw network outputs to log p(x0 | xt)."""

import torch
from torch import Tensor


def subs_log_probs(logits: Tensor, xt: Tensor, mask_token_id: int) -> Tensor:
    """Substitute what is known into the prediction: no token is ever the mask, and visible tokens stay.

    Args:
        logits: raw network output, float [batch, length, vocab]. Not modified.
        xt: tokens at time t, int64 [batch, length].
        mask_token_id: id of the absorbing state.
    Returns:
        log_p_x0, float32 or wider [batch, length, vocab]: at masked positions the log-softmax with the
        mask token at -inf, at visible positions 0 at the visible token and -inf elsewhere.
    Raises:
        ValueError: the shapes do not belong together.
    Source: Sahoo et al. 2024, arXiv:2406.07524, Section 3.2.3 (SUBS: zero masking probabilities, carry-over).
    Departs: impossible tokens get -inf, where the authors' code has about -1e6, so that their probability is zero
        and not merely small; functions that multiply by log-probabilities treat 0 * -inf as 0.
    """
    if logits.shape[:-1] != xt.shape:
        raise ValueError(f"logits has shape {tuple(logits.shape)}, xt {tuple(xt.shape)}: the leading ones must agree")
    log_p_x0 = masked_log_probs(logits, mask_token_id)
    visible = torch.full_like(log_p_x0, -torch.inf).scatter(-1, xt[..., None], 0.0)
    return torch.where((xt == mask_token_id)[..., None], log_p_x0, visible)


def masked_log_probs(logits: Tensor, mask_token_id: int) -> Tensor:
    """`subs_log_probs` where every position is known to be masked: the log-softmax without the mask token.

    Args:
        logits: raw network output, float [..., vocab]. Not modified.
        mask_token_id: id of the absorbing state.
    Returns:
        log-probabilities, float32 or wider [..., vocab], -inf at the mask token.
    Raises:
        ValueError: mask_token_id is not an index into the vocabulary.
    Source: as `subs_log_probs`.
    """
    if not 0 <= mask_token_id < logits.shape[-1]:
        raise ValueError(f"mask_token_id is {mask_token_id}, but the vocabulary has {logits.shape[-1]} entries")
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return exclude_mask(logits.to(dtype), mask_token_id).log_softmax(dim=-1)


def exclude_mask(logits: Tensor, mask_token_id: int) -> Tensor:
    """Logits with -inf at the mask token, float [..., vocab]; of a projection's bias, it excludes it for all rows."""
    mask = torch.full((1,), mask_token_id, device=logits.device)
    return logits.index_fill(-1, mask, -torch.inf)
