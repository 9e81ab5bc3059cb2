"""The likelihood of the next token."""

from torch import Tensor, nn

from halfstep.objectives.base import PRODUCT, Objective


def autoregressive_objective() -> Objective:
    """Negative log-likelihood of each token after the first, given those before it, in nats per token."""

    def loss(model: nn.Module, x0: Tensor) -> tuple[Tensor, int]:
        # Keys and values of earlier tokens are for those who write the next one.
        logits = model(x0[:, :-1], use_cache=False).logits
        targets = x0[:, 1:]
        total = nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")
        return total, targets.numel()

    return Objective(lambda shape, generator: (), {PRODUCT: loss})
