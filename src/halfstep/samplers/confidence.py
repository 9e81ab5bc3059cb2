"""Writing the surest positions first."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from halfstep.diffusion.categorical import draw_categorical
from halfstep.samplers.base import LogitsAt, Predictor, Samples, logit_chunks


@torch.inference_mode()
def sample_by_confidence(
    network: LogitsAt | Predictor,
    x_init: Tensor,
    *,
    threshold: float,
    mask_token_id: int,
    u_token: Tensor,
    adjust: Callable[[Tensor], Tensor] | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Samples:
    """Fill the masks of x_init from the surest to the least sure: as many at once as the network is sure of.

    Every step predicts all masked positions, and unmasks those whose likeliest token has the probability `threshold` or
    more, or else the one where it is greatest. There are as many steps as it takes, at most one per position.

    Changes the distribution: the order of writing depends on what is predicted, where ancestral sampling draws it
    independently, so easy positions come first and texts are likelier and less diverse than the model's. And what
    unmasks depends on the network, so every masked position is projected in every step.

    Args:
        network, x_init, mask_token_id, u_token, adjust, on_step: as in `sample`; confidence is that after `adjust`.
        threshold: least probability, 0 for everything at once, 1 or more for one position at a time.
    Returns:
        Samples, on the device of x_init.
    Raises:
        ValueError: shapes do not agree.
    """
    if x_init.shape != u_token.shape:
        raise ValueError(f"x_init has shape {tuple(x_init.shape)}, u_token {tuple(u_token.shape)}")
    xt = x_init.clone()
    u_token = u_token.to(xt.device)
    unmask_step = torch.zeros_like(xt)
    nfe = torch.zeros(xt.shape[0], dtype=torch.int64, device=xt.device)
    step = 0
    while (is_masked := xt == mask_token_id).any():
        step += 1
        rows = is_masked.any(dim=1).nonzero()[:, 0]
        drawn, greatest, u = [], [], u_token[is_masked]
        for logits in logit_chunks(network, xt[rows], is_masked[rows], mask_token_id):
            adjusted = logits if adjust is None else adjust(logits)
            greatest.append((adjusted.amax(dim=-1) - adjusted.logsumexp(dim=-1)).exp())
            drawn.append(draw_categorical(adjusted, u[: len(logits)]))
            u = u[len(logits) :]
        confidence = torch.full(xt.shape, -1.0, dtype=torch.float64, device=xt.device)
        confidence[is_masked] = torch.cat(greatest).double()
        surest = F.one_hot(confidence.argmax(dim=1), xt.shape[1]).bool()
        unmasks = is_masked & ((confidence >= threshold) | surest)
        xt[unmasks] = torch.cat(drawn)[unmasks[is_masked]]
        unmask_step[unmasks] = step
        nfe[rows] += 1
        if on_step is not None:
            on_step(step, xt)
    return Samples(tokens=xt, nfe=nfe, unmask_step=unmask_step)
