"""An autoregressive model as lm-eval has it, reading passages as the denoiser reads them."""

import copy
import logging
from typing import TYPE_CHECKING

from lm_eval.models.huggingface import HFLM

from halfstep.evaluation.harness import encode_passage

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class AutoregressiveLM(HFLM):
    """lm-eval's HFLM, except that every context begins with BOS, whatever the tokenizer adds by itself.

    Attributes:
        num_truncated: contexts that lost tokens on the left to fit.
    """

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", *, batch_size: int) -> None:
        """
        Args:
            model: causal language model in evaluation mode, on its device.
            tokenizer: with BOS.
            batch_size: passages per forward pass.
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

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        # The last token is only predicted, not read: one more fits.
        context_ids, target_ids, is_cut = encode_passage(self.tokenizer, context, continuation, self.max_length + 1)
        self.num_truncated += is_cut
        return context_ids, target_ids
