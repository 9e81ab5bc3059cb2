"""What a first teacher that others have trained is checked by, before anything is made from it."""

from dataclasses import replace

import torch
from torch import Tensor

from halfstep.model.hub import HubModel
from halfstep.objectives.base import Objective
from halfstep.run.errors import UserError


@torch.no_grad()
def check_bound(model: HubModel, tokens: Tensor, objective: Objective, *, seed: int) -> None:
    """Check that a model predicts held-out text, and better as it is read than by the other shift.

    A wrong shift shows here, and a token that never masked in its training.

    Args:
        model: not to be trained any more.
        tokens: held-out sequences, int64 [batch, length], see `halfstep.data.tokens.given`.
        objective: the bound, in nats per token.
        seed: of the noise, the same for all that is compared.
    Raises:
        UserError: the bound is lower under the other shift, or not lower than the entropy of single tokens.
    """

    def bound(is_shifted: bool) -> float:
        model.config = replace(model.config, is_shifted=is_shifted)
        total, count = objective(model, tokens, torch.Generator().manual_seed(seed))
        return float(total) / count

    stated = model.config.is_shifted
    # In this order, so that the model is left as it came.
    other, found = bound(not stated), bound(stated)
    counts = torch.bincount(tokens[tokens >= 0]).double()
    unigram = float(torch.special.entr(counts / counts.sum()).sum())
    if other < found:
        raise UserError(
            f"pretrain.init_from: validation text has {found:.2f} nats per token, but {other:.2f} if a position's state"
            f" predicts {'its own' if stated else 'the next'} token: pretrain.init_shift={str(not stated).lower()}"
        )
    if found > unigram:
        raise UserError(
            f"pretrain.init_from: validation text has {found:.2f} nats per token, more than the {unigram:.2f} of single"
            " tokens: is its tokenizer, or the token that masks, another one? Or train it: pretrain.num_train_steps"
        )
