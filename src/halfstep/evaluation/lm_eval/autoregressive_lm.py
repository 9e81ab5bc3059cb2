"""An autoregressive model as lm-eval has it, reading passages as the denoiser reads them."""

import copy
import logging
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from lm_eval.models.huggingface import HFLM

from halfstep.data.encoding import encode_pair
from halfstep.run.errors import UserError
from halfstep.run.work import Arrays, Remember, anew

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lm_eval.api.instance import Instance
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


REQUESTS_AT_ONCE = 16
"""Batches that lm-eval sorts by length together, and that are kept together."""


class AutoregressiveLM(HFLM):
    """lm-eval's HFLM, except that every context begins with BOS, whatever the tokenizer adds by itself.

    Its numbers are those of `--model hf --model_args pretrained=...,add_bos_token=True`.

    Attributes:
        num_truncated: contexts that lost tokens on the left to fit.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        batch_size: int,
        remember: Remember = anew,
    ) -> None:
        """
        Args:
            model: causal language model in evaluation mode, on its device.
            tokenizer: with BOS.
            batch_size: passages per forward pass.
            remember: keeps a few batches at a time, see `halfstep.run.work`.
        """
        logger = logging.getLogger("lm_eval")
        level = logger.level
        # HFLM warns that a model is passed in already loaded, which is what we mean.
        logger.setLevel(logging.ERROR)
        try:
            # HFLM gives the tokenizer a padding token; ours is to stay as it is.
            super().__init__(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size)
        finally:
            logger.setLevel(level)
        self.num_truncated = 0
        self._remember = remember
        self._requests_at_once = REQUESTS_AT_ONCE * batch_size

    def forget(self) -> None:
        """Begin `num_truncated` anew."""
        self.num_truncated = 0

    def monte_carlo(self) -> None:
        """Nothing is drawn."""

    def loglikelihood(self, requests: "Sequence[Instance]", disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood of the continuation, whether greedy decoding gives it) of each (context, continuation).

        Raises:
            UserError: a continuation has no tokens or does not fit, or the network gives NaN.
        """
        encoded = []
        for context, continuation in (request.args for request in requests):
            # The last token is only predicted, not read: one more fits.
            context_ids, ids, is_cut = encode_pair(self.tokenizer, context, continuation, self.max_length + 1)
            self.num_truncated += is_cut
            encoded.append(((context, continuation), context_ids, ids))
        return self._loglikelihood_tokens(encoded, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        def answer(some: Any) -> Arrays:
            answers = super(AutoregressiveLM, self)._loglikelihood_tokens(some, *args, **kwargs)
            log_likelihoods, is_greedy = zip(*answers, strict=True)
            return {"log_likelihoods": np.array(log_likelihoods), "is_greedy": np.array(is_greedy)}

        def ids_of(some: Any) -> list[Any]:
            return [ids for _, *ids in some]

        answers: list[tuple[float, bool]] = []
        size = self._requests_at_once
        pieces = (requests[start : start + size] for start in range(0, len(requests), size))
        for _, kept in self._remember("log-likelihoods", pieces, ids_of, answer):
            answers += zip(kept["log_likelihoods"].tolist(), kept["is_greedy"].tolist(), strict=True)
        for (texts, _, _), (log_likelihood, _) in zip(requests, answers, strict=True):
            if math.isnan(log_likelihood):
                what = f" for {texts[1][:60]!r}" if texts else ""
                raise UserError(
                    f"the model gives NaN{what}: its weights are broken, train it again with a lower learning rate"
                )
        return answers
