"""Gumbel distillation: the noise by which an autoregressive model would have drawn a text is its student's input."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from halfstep.diffusion.projection import rows_per_chunk
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.model.base import MaskedModel
from halfstep.model.denoiser import Denoiser
from halfstep.model.gpt2 import fills_in
from halfstep.model.noise import exponentials
from halfstep.objectives.base import Objective
from halfstep.objectives.distillation import Costs, Distillation, own_trunk
from halfstep.objectives.masked import masked_share
from halfstep.objectives.nelbo import LatentOf, nelbo_objective
from halfstep.run.errors import UserError
from halfstep.settings import base
from halfstep.settings.training import DistillSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Settings(base.Settings):
    """`noise_share`: share of the texts that come with their noise; of the others the student learns to do without, as
    its likelihood is measured."""

    adds_input: ClassVar[bool] = True
    asks_autoregressive: ClassVar[bool] = True

    noise_share: Annotated[float, Field(gt=0, le=1)]


def student(teacher: MaskedModel, settings: Settings) -> Denoiser:
    """A copy of the teacher that takes noise.

    Raises:
        UserError: see `own_trunk`.
    """
    return own_trunk(teacher, "gumbel").with_noise()


def build(given: Distillation) -> Objective:
    """The objective of a round, from its parameters."""
    settings, mask_token_id = given.settings, given.student.config.mask_token_id
    return nelbo_objective(
        schedule=given.schedule,
        min_time=settings.min_time,
        mask_token_id=mask_token_id,
        latent_of=noise_of_texts(given.autoregressive, settings.own.noise_share, mask_token_id),
    )


def costs(
    settings: DistillSettings, round_index: int, schedule: LogLinearSchedule, length: int, num_blocks: int
) -> Costs:
    """The autoregressive model once; its projection and the noise's embedding twice, and the gradient of the latter."""
    return Costs([(1.0, 0.0), (0.0, 5 * masked_share(settings.min_time, schedule))])


def posterior(p: Tensor, tokens: Tensor, drawn: Tensor) -> Tensor:
    """exp(-noise) as it is where argmax(log p + noise) is known; over tokens that follow p it is exponential again.

    The first to arrive does so at time E_0, the others by their own rates later: exp(-noise) is p_v E_0 of the token v
    that was written, and E_k + p_k E_0 of every other k.

    Args:
        p: probabilities, float [n, vocab].
        tokens: that were written, int64 [n].
        drawn: numbers of the exponential distribution, E_0 in the last column, float [n, vocab + 1].
    Returns:
        float [n, vocab].
    Source: Gumbel distillation, arXiv:2603.22216; Maddison et al. 2014, arXiv:1411.0030 (noise given its maximum).
    """
    first = p * drawn[:, -1:]
    return (drawn[:, :-1] + first).scatter(1, tokens[:, None], first.gather(1, tokens[:, None]))


def noise_of_texts(autoregressive: "PreTrainedModel", noise_share: float, mask_token_id: int) -> LatentOf:
    """What the noise behind texts adds at their masked positions; nothing in a share of them.

    The first token, before which there is nothing, is taken to be sure, so that its noise says nothing. A model that
    fills in is given what is visible.

    Raises:
        UserError: the model does more to its states than project them.
    """
    transformer: Any = autoregressive.base_model
    head: Any = autoregressive.get_output_embeddings()
    with torch.no_grad():
        some = torch.zeros(1, 2, dtype=torch.int64, device=head.weight.device)
        if not torch.allclose(head(transformer(some).last_hidden_state), autoregressive(some).logits, atol=1e-2):
            raise UserError(
                "distill.objective is gumbel, but models/ar changes its logits after the projection: dvc exp run -S"
                " baseline.init_from=null, or objective=sdtt"
            )

    def latent_of(model: nn.Module, x0: Tensor, xt: Tensor, u: Tensor) -> Tensor:
        assert isinstance(model, Denoiser)
        assert model.noise_embed is not None
        is_masked, vocab = xt == mask_token_id, model.config.vocab_size
        with torch.no_grad():
            read = torch.cat([xt, x0], dim=1) if fills_in(autoregressive) else x0
            states = transformer(read[:, :-1], use_cache=False).last_hidden_state[:, 1 - x0.shape[1] :]
            states = nn.functional.pad(states, (0, 0, 1, 0))
        sequences = torch.arange(len(x0), device=x0.device)

        @torch.no_grad()
        def pieces() -> Iterator[Tensor]:
            for some in sequences.split(max(1, rows_per_chunk(vocab, x0.device) // x0.shape[1])):
                at, tokens = is_masked[some], x0[some][is_masked[some]]
                p = head(states[some][at]).softmax(dim=-1, dtype=torch.float32)
                p = nn.functional.pad(p, (0, max(0, vocab - p.shape[1])))[:, :vocab]
                is_first = at.nonzero()[:, 1] == 0
                p[is_first] = nn.functional.one_hot(tokens[is_first], vocab).to(p.dtype)
                drawn = zip(u[some, 0], at.sum(dim=1).tolist(), strict=True)
                noise = torch.cat([exponentials(number, n, vocab + 1, x0.device) for number, n in drawn])
                yield posterior(p, tokens, noise)

        embedded = model.noise_embed(pieces)
        latent = embedded.new_zeros(*xt.shape, embedded.shape[1])
        latent[is_masked] = embedded
        return latent * (u[:, 1] < noise_share)[:, None, None]

    return latent_of
