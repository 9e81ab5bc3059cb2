"""What a metric may look at: one model with its samples, and how it is asked, whatever its kind."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from halfstep.data.tokens.given import answers, without_given
from halfstep.data.tokens.packed import PackedTokens
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.evaluation.likelihood import Likelihood, autoregressive_likelihood, denoiser_likelihood
from halfstep.evaluation.scorer import Reading, Scorer, read_texts
from halfstep.metrics.estimate import Estimate
from halfstep.metrics.record import Row
from halfstep.model.base import MaskedModel, logits_at
from halfstep.model.joint import trunk_of
from halfstep.samples.table import SampleSet
from halfstep.settings.evaluation import EvaluateSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from halfstep.evaluation.lm_eval.autoregressive_lm import AutoregressiveLM
    from halfstep.evaluation.lm_eval.denoiser_lm import DenoiserLM


@dataclass(frozen=True)
class Evaluated:
    """One model, and what it is measured by.

    Methods take a `name`, which no other call of the same method may have: under it the batches of a run that may be
    cut off are kept.

    Attributes:
        opened: in evaluation mode, on `device`; its likelihoods are exact if it is autoregressive, and else bounds.
        tokenizer: its own.
        scorer: judges the samples.
        sample_sets: (unconditional samples, continuations of prefixes), drawn in the same way.
        valid_tokens: held-out sequences. Where prompts are given in them, samples answer these.
        tokens_path: all packed tokens.
        passages: for the cloze task.
        settings: of the section `evaluate`.
        seed: of every draw.
        device: where models compute.
        folder: for the batches, see `halfstep.run.work.cached`.
    """

    opened: "MaskedModel | PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    scorer: Scorer
    sample_sets: Sequence[tuple[SampleSet, SampleSet]]
    valid_tokens: PackedTokens
    tokens_path: Path
    passages: Sequence[str]
    settings: EvaluateSettings
    seed: int
    device: torch.device
    folder: Path

    @property
    def model(self) -> "MaskedModel | PreTrainedModel":
        """Without its joint head, if it has one."""
        return trunk_of(self.opened) if isinstance(self.opened, MaskedModel) else self.opened

    @property
    def held_out(self) -> np.ndarray:
        """The sequences of `valid_tokens` that are measured, see `halfstep.data.tokens.given`."""
        return self.valid_tokens.stored(slice(self.settings.num_valid_sequences))

    def whole(self, samples: SampleSet) -> list[list[int]]:
        """Token ids of samples; answers up to their end, and their prompts as given."""
        if not self.valid_tokens.has_given:
            return samples.token_ids
        is_given = ([step == 0 for step in steps] for steps in samples.unmask_step)
        return answers(samples.token_ids, is_given, self.tokenizer.eos_token_id)

    def new(self, samples: SampleSet) -> list[list[int]]:
        """`whole` without prompts."""
        return without_given(self.whole(samples))

    @cached_property
    def held_out_likelihood(self) -> Likelihood:
        """Of `held_out`."""
        return self.likelihood(self.held_out, "held-out")

    @cached_property
    def scored_samples(self) -> list[Reading]:
        """What the scorer makes of the unconditional samples of each set."""
        return [self.scored(self.whole(samples), samples_name(samples)) for samples, _ in self.sample_sets]

    def likelihood(self, tokens: np.ndarray, name: str) -> Likelihood:
        """How likely the model finds sequences, integers [num_sequences, length]."""
        folder, batch_size = self.folder / "likelihood" / name, self.settings.batch_size
        if not isinstance(self.model, MaskedModel):
            return autoregressive_likelihood(self.model, tokens, batch_size=batch_size, folder=folder)
        return denoiser_likelihood(
            partial(logits_at, self.model),
            tokens,
            schedule=LogLinearSchedule(self.model.config.noise_epsilon),
            min_time=self.settings.min_time,
            mask_token_id=self.model.config.mask_token_id,
            num_draws=self.settings.num_nelbo_draws,
            batch_size=batch_size,
            seed=self.seed,
            device=self.device,
            folder=folder,
        )

    def lm(self, num_draws: int) -> "AutoregressiveLM | DenoiserLM":
        """The model as lm-eval asks it; `num_draws` is for denoisers, see `DenoiserLM`."""
        # lm-eval takes seconds to import, and not all that measures samples asks for it.
        from halfstep.evaluation.lm_eval.autoregressive_lm import AutoregressiveLM
        from halfstep.evaluation.lm_eval.denoiser_lm import DenoiserLM

        folder, batch_size = self.folder / "lm_eval", self.settings.batch_size
        if not isinstance(self.model, MaskedModel):
            return AutoregressiveLM(self.model, self.tokenizer, batch_size=batch_size, folder=folder)
        return DenoiserLM(
            partial(logits_at, self.model),
            self.tokenizer,
            max_length=self.model.config.length,
            mask_token_id=self.model.config.mask_token_id,
            num_draws=num_draws,
            batch_size=batch_size,
            seed=self.seed,
            device=self.device,
            folder=folder,
        )

    def scored(self, samples: Sequence[Sequence[int]], name: str) -> Reading:
        """What the scorer makes of samples."""
        folder = self.folder / "scored" / name
        return read_texts(samples, self.tokenizer, self.scorer, batch_size=self.settings.batch_size, folder=folder)


def samples_name(samples: SampleSet) -> str:
    """How a set of samples was drawn, as a file's name."""
    return f"{samples.sampler} {samples.setting} {samples.temperature}"


def rows_of(samples: SampleSet | None, **measured: Estimate | int | None) -> list[Row]:
    """Rows on a set of samples, or on none, by metric: an integer is a count, None is what could not be measured."""
    drawn = () if samples is None else (samples.sampler, samples.setting, samples.temperature)
    return [
        Row(metric, value if isinstance(value, Estimate) else Estimate(float(value), None, 1, "1"), *drawn)
        for metric, value in measured.items()
        if value is not None
    ]
