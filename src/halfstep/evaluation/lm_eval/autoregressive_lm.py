"""An autoregressive model as lm-eval has it, reading passages as the denoiser reads them."""

import copy
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lm_eval.models.huggingface import HFLM

from halfstep.data.texts.encoding import encode_pair
from halfstep.evaluation.lm_eval.harness import digest, silenced
from halfstep.run.errors import UserError
from halfstep.run.work import Arrays, cached

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
        folder: Path | None = None,
    ) -> None:
        """
        Args:
            model: causal language model in evaluation mode, on its device.
            tokenizer: with BOS.
            batch_size: passages per forward pass.
            folder: for a few batches at a time, see `cached`.
        """
        # HFLM warns that a model is passed in already loaded, which is what we mean.
        with silenced():
            # HFLM gives the tokenizer a padding token; ours is to stay as it is.
            super().__init__(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size)
        self.num_truncated = 0
        self._folder = folder
        self._requests_at_once = REQUESTS_AT_ONCE * batch_size

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

        answers: list[tuple[float, bool]] = []
        size = self._requests_at_once
        pieces = (requests[start : start + size] for start in range(0, len(requests), size))
        folder = self._folder and self._folder / digest([ids for _, *ids in requests])
        for _, kept in cached(folder, pieces, answer):
            answers += zip(kept["log_likelihoods"].tolist(), kept["is_greedy"].tolist(), strict=True)
        for (texts, _, _), (log_likelihood, _) in zip(requests, answers, strict=True):
            if math.isnan(log_likelihood):
                what = f" for {texts[1][:60]!r}" if texts else ""
                raise UserError(
                    f"the model gives NaN{what}: its weights are broken, train it again with a lower learning rate"
                )
        return answers
