"""The first teacher as it will be opened, without its weights: built, or counted without memory for it."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from halfstep.model.config import DenoiserConfig
from halfstep.model.denoiser import Denoiser
from halfstep.model.hub import Description, HubModel
from halfstep.model.opening import describe_first
from halfstep.settings import Params
from halfstep.tools.planning.memory import Lora
from halfstep.tools.planning.networks import HubNetwork, Network, Parameters

SHORT, LONG = 16, 32
"""Tokens of the texts by which is counted: two lengths separate what grows with tokens from what grows with pairs."""


def describe_teacher(params: Params, num_tokens: int) -> DenoiserConfig | Description:
    """What `pretrain.init_from` names, or else a denoiser of the sizes in `model`.

    Args:
        params: all parameters.
        num_tokens: of the tokenizer, the mask token included.
    Raises:
        UserError: see `describe_first`.
    """
    settings, length = params.pretrain, params.data.context_length
    if settings.init_from is None:
        return DenoiserConfig(
            vocab_size=num_tokens,
            mask_token_id=num_tokens - 1,
            length=length,
            noise_epsilon=params.noise.epsilon,
            **params.model.model_dump(),
        )
    return describe_first(
        settings, mask_token_id=None, num_tokens=num_tokens, length=length, noise_epsilon=params.noise.epsilon
    )


def teacher_vocab_size(params: Params) -> int:
    """Rows of the projection of what `pretrain.init_from` names."""
    described = describe_teacher(params, 0)
    return (described.config if isinstance(described, Description) else described).vocab_size


def new_teacher(params: Params, num_tokens: int) -> Denoiser | HubModel:
    """The first teacher with random weights; arguments and errors as of `describe_teacher`."""
    described = describe_teacher(params, num_tokens)
    return described.without_weights() if isinstance(described, Description) else Denoiser(described)


def teacher_network(params: Params, num_tokens: int) -> Network | HubNetwork:
    """Its sizes; arguments and errors as of `describe_teacher`."""
    described = describe_teacher(params, num_tokens)
    if isinstance(described, Description):
        return count_hub(described.without_weights)
    sizes = ("vocab_size", "hidden_size", "num_blocks", "num_heads", "length", "cond_dim", "absolute_positions")
    return Network(**{name: getattr(described, name) for name in sizes})


def lora_of(params: Params, num_tokens: int) -> Lora | None:
    """What a round that learns adapters holds; None where it learns all weights. Errors as of `describe_teacher`."""
    settings = params.distill.lora
    if settings.rank is None:
        return None
    described = describe_teacher(params, num_tokens)
    assert isinstance(described, Description), "settings refuse adapters of another teacher"
    with torch.device("meta"):
        model = described.without_weights()
        model.adapt(None, rank=settings.rank, alpha=settings.alpha, targets=settings.targets)
        return Lora.of(model)


def count_hub(make: Callable[[], HubModel]) -> HubNetwork:
    """Count what a network of transformers has, computes and keeps, by running it on tensors without numbers."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers.initialization import no_init_weights

    with FakeTensorMode():
        # Random numbers would be drawn by their values.
        with no_init_weights():
            model = make()
        body, head = model.network, model.head
        short, long = (partial(body, input_ids=torch.zeros(1, n, dtype=torch.int64)) for n in (SHORT, LONG))
        flops = [_flops(run) for run in (short, long)]
        kept = {
            precision: [_kept_bytes(run, bf16=precision == "bf16") for run in (short, long)]
            for precision in ("fp32", "bf16")
        }
    per_pair = (flops[1] / LONG - flops[0] / SHORT) / (LONG - SHORT)
    embedding = body.get_input_embeddings().weight
    is_tied = embedding is head.weight
    in_blocks = {p for module in body.modules() if isinstance(module, nn.ModuleList) for p in module.parameters()}
    total = sum(p.numel() for p in model.parameters())
    blocks, projection = sum(p.numel() for p in in_blocks), sum(p.numel() for p in head.parameters())
    projection -= embedding.numel() if is_tied else 0
    return HubNetwork(
        vocab_size=model.config.vocab_size,
        hidden_size=head.weight.shape[1],
        num_blocks=model.config.num_blocks,
        parameters=Parameters(
            embedding.numel(), blocks, projection, total - embedding.numel() - blocks - projection, total
        ),
        flops_per_token=flops[0] / SHORT - SHORT * per_pair,
        flops_per_pair=per_pair,
        kept={precision: (long - short) / (LONG - SHORT) for precision, (short, long) in kept.items()},
    )


@torch.no_grad()
def _flops(run: Callable[[], object]) -> int:
    # What the other kernels of attention compute is not counted on the CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def _kept_bytes(run: Callable[[], object], *, bf16: bool) -> int:
    """Of the tensors that a forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    # A storage is known by where it is: none may go before all are counted.
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = run()
    del output
    return sum(kept.values())
