"""lm-eval's own command, with our denoisers among its models."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

# Registers lm-eval's own models. It does so by itself only while no model is registered, and ours is.
import lm_eval.models  # noqa: F401
import torch
from lm_eval.api.registry import register_model

from halfstep.data.tokenizer import load_tokenizer, with_mask_token
from halfstep.evaluation.lm_eval.denoiser_lm import DenoiserLM
from halfstep.model.base import logits_at
from halfstep.model.joint import trunk_of
from halfstep.model.opening import open_denoiser
from halfstep.run import console
from halfstep.run.device import autocast, select_device, select_precision
from halfstep.run.errors import UserError
from halfstep.samplers.sampler import sampler_of

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

MODEL_NAME = "halfstep"
LM_EVAL_DEFAULT_DEVICE = "cuda:0"


@register_model(MODEL_NAME)
class RegisteredDenoiserLM(DenoiserLM):
    """`--model halfstep`: a denoiser by folder or hub id. What it answers is in `DenoiserLM`."""

    def __init__(
        self,
        pretrained: str = "",
        revision: str | None = None,
        tokenizer: str | None = None,
        num_draws: int = 32,
        sampler: str = "ancestral",
        seed: int = 0,
        precision: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **setting: Any,
    ) -> None:
        """
        Args:
            pretrained: a denoiser's folder, such as models/3, or a hub id.
            revision: of a hub id.
            tokenizer: folder or hub id; None is `pretrained`. Published denoisers bring none: theirs is gpt2.
            num_draws: draws of a log-likelihood.
            sampler: of generated text.
            seed: of every draw.
            precision: auto, fp32 or bf16.
            batch_size: lm-eval's --batch_size, inputs per forward pass.
            max_batch_size: of lm-eval, for `auto` alone; not used.
            device: lm-eval's --device; None takes the best there is.
            setting: of the sampler, such as num_steps=8; without one it refuses to generate.
        Raises:
            UserError: there is no such model, device or tokenizer, or a value does not fit.
        """
        if not pretrained:
            raise UserError("--model_args: pretrained is missing: give a denoiser, such as pretrained=models/3")
        chosen_sampler = sampler_of(sampler, setting, "--model_args") if setting else None
        target = _device(device)
        chosen = _choice("precision", precision, ("auto", "fp32", "bf16"))
        denoiser = trunk_of(open_denoiser(str(pretrained), revision)).to(target)
        mask_token_id = denoiser.config.mask_token_id
        own = with_mask_token(load_tokenizer(tokenizer or str(pretrained), None if tokenizer else revision))
        if own.mask_token_id != mask_token_id:
            raise UserError(
                f"--model_args: the tokenizer of {tokenizer or pretrained} has its mask token at {own.mask_token_id},"
                f" the model at {mask_token_id}: give tokenizer=FOLDER, the one it was trained with"
            )

        def asked(xt: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
            with autocast(target, select_precision(chosen, target)):
                return logits_at(denoiser, xt, at)

        super().__init__(
            asked,
            own,
            max_length=denoiser.config.length,
            mask_token_id=mask_token_id,
            num_draws=_count("num_draws", num_draws),
            batch_size=_count("--batch_size", batch_size),
            seed=_count("seed", seed, least=0),
            device=target,
            sampler=chosen_sampler,
        )

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> "RegisteredDenoiserLM":
        """As lm-eval makes a model: --model_args go before its other options."""
        return super().create_from_arg_obj({}, {**(additional_config or {}), **arg_dict})

    def loglikelihood(self, requests: "Sequence[Instance]", disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """See `DenoiserLM`; says how far the answers depend on the draws."""
        answers = super().loglikelihood(requests, disable_tqdm)
        self._say()
        return answers

    def loglikelihood_rolling(self, requests: "Sequence[Instance]", disable_tqdm: bool = False) -> list[float]:
        """See `DenoiserLM`; says how far the answers depend on the draws."""
        answers = super().loglikelihood_rolling(requests, disable_tqdm)
        self._say()
        return answers

    def _say(self) -> None:
        found = self.monte_carlo()
        error = found["mean_standard_error"]
        console.console.print(
            f"{MODEL_NAME}: {found['num_log_likelihoods']} log-likelihoods, {found['num_exact']} of them exact, the"
            f" others from {found['num_draws']} draws each (seed {found['seed']}); mean Monte Carlo standard error "
            + (f"{error:.4g} nats" if error is not None else "unknown, since one draw has none")
            + f"; {self.num_truncated} contexts cut on the left",
            markup=False,
            soft_wrap=True,
        )


def run_lm_eval(arguments: Sequence[str]) -> None:
    """Run lm-eval's command in this process, with `--model halfstep` known.

    Args:
        arguments: as after `lm-eval`, unchanged.
    Raises:
        UserError: the denoiser cannot be had or cannot answer; what lm-eval itself objects to, it says itself.
    """
    from lm_eval.__main__ import cli_evaluate

    before = sys.argv
    # lm-eval reads the command line from here, and from nowhere else.
    sys.argv = ["lm-eval", *arguments]
    try:
        cli_evaluate()
    finally:
        sys.argv = before


def _device(name: str | None) -> torch.device:
    """The device of --device; where none was given, lm-eval says cuda:0, whatever the machine has."""
    if name in (None, "auto") or (name == LM_EVAL_DEFAULT_DEVICE and not torch.cuda.is_available()):
        found = select_device("auto")
        if name == LM_EVAL_DEFAULT_DEVICE:
            console.console.print(f"{MODEL_NAME}: no {name} on this machine, computing on {found}", markup=False)
        return found
    kind, _, index = str(name).partition(":")
    num_devices = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if kind not in num_devices or not (index or "0").isdecimal() or int(index or 0) >= num_devices[kind]:
        raise UserError(f"--device is {name!r}, which torch does not find on this machine: use --device cpu")
    return torch.device(str(name))


def _count(name: str, value: Any, *, least: int = 1) -> int:
    if isinstance(value, bool) or not str(value).isdecimal() or int(value) < least:
        raise UserError(f"{name} is {value!r}: --model {MODEL_NAME} takes a whole number from {least}")
    return int(value)


def _choice(name: str, value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise UserError(f"--model_args: {name} is {value!r}: give one of {', '.join(choices)}")
    return value
