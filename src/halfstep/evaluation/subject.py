"""The model under test, as the measures ask for it: whatever its kind, held-out text and lm-eval's questions."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.evaluation.likelihood import Likelihood, autoregressive_likelihood, denoiser_likelihood
from halfstep.evaluation.lm_eval.autoregressive_lm import AutoregressiveLM
from halfstep.evaluation.lm_eval.denoiser_lm import DenoiserLM
from halfstep.model.denoiser import Denoiser
from halfstep.run.work import Remember, anew

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Subject(Protocol):
    """A model with its tokenizer, on its device and in evaluation mode."""

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The model's own."""
        ...

    def likelihood(self, tokens: np.ndarray) -> Likelihood:
        """How likely the model finds sequences, integers [num_sequences, length]."""
        ...

    def lm(self, num_draws: int) -> AutoregressiveLM | DenoiserLM:
        """The model as lm-eval asks it; `num_draws` is for denoisers, see `DenoiserLM`."""
        ...


@dataclass(frozen=True)
class DenoiserSubject:
    """A denoiser: its likelihoods are bounds, estimated from draws.

    Attributes:
        denoiser: in evaluation mode, on `device`.
        tokenizer: its own.
        schedule: of the noise under which the likelihood is bounded.
        min_time: smallest time.
        num_nelbo_draws: times drawn per sequence.
        batch_size: sequences per forward pass.
        seed: of every draw.
        device: where it computes.
        remember: keeps the batches, see `halfstep.run.work`.
    """

    denoiser: Denoiser
    tokenizer: "PreTrainedTokenizerBase"
    schedule: LogLinearSchedule
    min_time: float
    num_nelbo_draws: int
    batch_size: int
    seed: int
    device: torch.device
    remember: Remember = anew

    def likelihood(self, tokens: np.ndarray) -> Likelihood:
        """See `denoiser_likelihood`."""
        return denoiser_likelihood(
            self.denoiser.logits_at,
            tokens,
            schedule=self.schedule,
            min_time=self.min_time,
            mask_token_id=self.denoiser.config.mask_token_id,
            num_draws=self.num_nelbo_draws,
            batch_size=self.batch_size,
            seed=self.seed,
            device=self.device,
            remember=self.remember,
        )

    def lm(self, num_draws: int) -> DenoiserLM:
        """See `DenoiserLM`."""
        return DenoiserLM(
            self.denoiser.logits_at,
            self.tokenizer,
            max_length=self.denoiser.config.length,
            mask_token_id=self.denoiser.config.mask_token_id,
            num_draws=num_draws,
            batch_size=self.batch_size,
            seed=self.seed,
            device=self.device,
            remember=self.remember,
        )


@dataclass(frozen=True)
class AutoregressiveSubject:
    """An autoregressive model: its likelihoods are exact.

    Attributes:
        model: in evaluation mode, on its device.
        tokenizer: its own.
        batch_size: sequences per forward pass.
        remember: keeps the batches, see `halfstep.run.work`.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    batch_size: int
    remember: Remember = anew

    def likelihood(self, tokens: np.ndarray) -> Likelihood:
        """See `autoregressive_likelihood`."""
        return autoregressive_likelihood(self.model, tokens, batch_size=self.batch_size, remember=self.remember)

    def lm(self, num_draws: int) -> AutoregressiveLM:
        """See `AutoregressiveLM`; there is nothing to draw."""
        return AutoregressiveLM(self.model, self.tokenizer, batch_size=self.batch_size, remember=self.remember)
