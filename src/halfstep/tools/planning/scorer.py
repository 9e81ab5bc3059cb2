"""The scorer as it will be opened, without its weights."""

from typing import TYPE_CHECKING

from halfstep.model.hub import HubConfig, HubModel
from halfstep.model.loading import CONFIG_FILE, locate
from halfstep.run.faults import storage_fault
from halfstep.run.files import local_or_hub
from halfstep.settings import Params
from halfstep.settings.graph import scores_by_baseline
from halfstep.tools.planning.networks import GPT2_SIZES, GPT2_VOCAB_SIZE, HubNetwork, Network
from halfstep.tools.planning.teacher import count_hub

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def scorer_network(params: Params, autoregressive: Network) -> Network | HubNetwork | None:
    """The scorer's sizes; None where they are not known."""
    source = params.evaluate.scorer
    if scores_by_baseline(source):
        return autoregressive
    if size := GPT2_SIZES.get(source.removeprefix("openai-community/")):
        return Network(GPT2_VOCAB_SIZE, *size, length=1024, cond_dim=None)
    # The configurations of the many kinds of models may raise anything, and so may layers on tensors without numbers.
    try:
        config = _configuration(params)
        return count_hub(lambda: HubModel(_network(config), _as_hub_config(config)))
    except Exception as error:
        if storage_fault(error):
            raise
        return None


def new_scorer(params: Params) -> "PreTrainedModel":
    """The scorer, if it is not the pipeline's own model, with random weights, in evaluation mode.

    Raises:
        UserError: there is no such model.
    """
    return _network(_configuration(params)).eval()


def _configuration(params: Params) -> "PreTrainedConfig":
    from transformers import AutoConfig

    folder = locate(local_or_hub(params.evaluate.scorer), params.evaluate.scorer_revision, CONFIG_FILE)
    return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)


def _network(config: "PreTrainedConfig") -> "PreTrainedModel":
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    # Not tied are those that transformers was asked not to draw.
    network.tie_weights()
    return network


def _as_hub_config(config: "PreTrainedConfig") -> HubConfig:
    """Of a causal model, of which nothing is masked."""
    return HubConfig(config.vocab_size, 0, 0, 0.0, config.num_hidden_layers, config.vocab_size, is_shifted=True)
