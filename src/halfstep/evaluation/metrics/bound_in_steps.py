"""How likely held-out text is as a sampler of few steps writes it: what independence within a step costs."""

from collections.abc import Iterator

from halfstep.evaluation.evaluated import Evaluated, rows_of
from halfstep.evaluation.likelihood import stepwise_likelihood
from halfstep.metrics.record import Row
from halfstep.model.base import MaskedModel
from halfstep.model.joint import JointModel


def measure(evaluated: Evaluated) -> Iterator[Row]:
    """bound_in_N_steps.independent, and .joint of a model with a joint head, nats per token, for each number of steps
    that samples were drawn in; nothing for an autoregressive model, whose likelihood is exact."""
    model = evaluated.opened
    if not isinstance(model, MaskedModel):
        return
    ways = {"independent": False} | ({"joint": True} if isinstance(model, JointModel) else {})
    for num_steps in sorted({samples.num_steps for samples, _ in evaluated.sample_sets if samples.num_steps}):
        for name, together in ways.items():
            metric = f"bound_in_{num_steps}_steps.{name}"
            likelihood = stepwise_likelihood(
                model,
                evaluated.held_out,
                num_steps=num_steps,
                together=together,
                mask_token_id=model.config.mask_token_id,
                num_draws=evaluated.settings.num_nelbo_draws,
                batch_size=evaluated.settings.batch_size,
                seed=evaluated.seed,
                device=evaluated.device,
                folder=evaluated.folder / metric,
            )
            yield from rows_of(None, **{metric: likelihood.nll_per_token})
