"""Masked language models of the hub: classes of transformers that look at both sides, behind `MaskedModel`."""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from halfstep.model.families import Family, family_in_layout, family_of
from halfstep.model.gpt2 import load_pretrained
from halfstep.model.loading import (
    CONFIG_FILE,
    HUB_WEIGHTS,
    INDEX_FILE,
    WEIGHTS_FILE,
    locate,
    read_safetensors,
    read_values,
)
from halfstep.model.lora import (
    Adapter,
    add_adapter,
    load_adapter,
    matrices_of,
    merge_adapter,
    read_adapter,
    write_adapter,
)
from halfstep.run.errors import UserError, first_of, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

ENTRY = "halfstep"
"""Of config.json, with what transformers' own entries do not say."""


@dataclass(frozen=True)
class HubConfig:
    """What the house knows of such a model beside its weights; see `MaskedConfig`.

    Attributes:
        num_tokens: of the tokenizer: rows of the projection beyond these are never predicted.
        is_shifted: a position's state predicts the token after it, as in the autoregressive model it was made from.
    """

    vocab_size: int
    mask_token_id: int
    length: int
    noise_epsilon: float
    num_blocks: int
    num_tokens: int
    is_shifted: bool


class _Passed(nn.Module):
    """In place of a projection, so that a network ends in what would be projected."""

    weight, bias = None, None

    def forward(self, x: Tensor) -> Tensor:
        return x


def _nothing_is_padded(input_ids: Tensor, attention_mask: Tensor | None) -> None:
    pass


class HubModel(nn.Module):
    """A network of transformers, without its projection, and that projection: a `MaskedModel`.

    One with an adapter learns nothing else; its copies have the other weights in common with it, as the same tensors.
    """

    def __init__(self, network: "PreTrainedModel", config: HubConfig) -> None:
        super().__init__()
        self.head = network.get_output_embeddings()
        network.set_output_embeddings(_Passed())
        # Rows are never padded: where EOS pads, its embedding would not learn.
        network.get_input_embeddings().padding_idx = None
        # Every call would wait for the device, to warn of what ends a text and pads elsewhere.
        network.base_model.warn_if_padding_and_no_attention_mask = _nothing_is_padded
        self.network = network
        self.config = config
        self.adapter: Adapter | None = None

    def hidden_at(self, xt: Tensor, at: Tensor, *, t: Tensor | None = None, latent: Tensor | None = None) -> Tensor:
        """See `MaskedModel`. Such networks are not conditioned on time.

        A shifted one has nothing to predict the first token by: it is asked for the state of that position itself.
        """
        assert latent is None, "no such network takes a latent"
        hidden = self.network(input_ids=xt).logits
        row, column = at.nonzero(as_tuple=True)
        return hidden[row, (column - int(self.config.is_shifted)).clamp(min=0)]

    def features(self, x: Tensor, num_blocks: int) -> Tensor:
        """The state of each position after some blocks, float [batch, length, hidden_size] of int64 [batch, length].

        The blocks after them are computed, too.
        """
        states: Tensor = self.network(input_ids=x, output_hidden_states=True).hidden_states[num_blocks]
        return states

    def projection(self) -> tuple[Tensor, Tensor]:
        """See `MaskedModel`."""
        weight, bias = self.head.weight, self.head.bias
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        if self.config.num_tokens < len(weight):
            unknown = torch.arange(len(weight), device=weight.device) >= self.config.num_tokens
            bias = bias.masked_fill(unknown, -torch.inf)
        return weight, bias

    def adapt(self, base: Path | None, *, rank: int, alpha: int, targets: Sequence[str] | None) -> None:
        """Give it an adapter that changes nothing yet; see `add_adapter`."""
        self.adapter = add_adapter(self.network, base, rank=rank, alpha=alpha, targets=targets)
        self.requires_grad_()

    def merge(self) -> None:
        """Make what its adapter changes its own weights, if it has one."""
        if self.adapter is not None:
            merge_adapter(self.network)
            self.adapter = None
            self.requires_grad_()

    def _frozen(self) -> list[nn.Parameter]:
        """What it does not learn because it has an adapter."""
        if self.adapter is None:
            return []
        learned = set(map(id, matrices_of(self.network).values()))
        return [parameter for parameter in self.parameters() if id(parameter) not in learned]

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """See `nn.Module`; what is frozen stays so."""
        super().requires_grad_(requires_grad)
        for parameter in self._frozen():
            parameter.requires_grad_(False)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "HubModel":
        """A copy that has what is frozen in common with it."""
        memo |= {id(parameter): parameter for parameter in self._frozen()}
        memo[id(self)] = new = HubModel.__new__(HubModel)
        new.__dict__ = copy.deepcopy(self.__dict__, memo)
        return new

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json and the weights into an existing folder, as transformers reads them: its own class.

        Of one with an adapter that alone is written, as peft reads it.
        """
        if self.adapter is not None:
            write_adapter(self.adapter, self.network, folder)
            return
        with self._whole() as network:
            setattr(network.config, ENTRY, asdict(self.config))
            network.config.mask_token_id = self.config.mask_token_id
            network.save_pretrained(folder, save_original_format=False)

    @contextmanager
    def _whole(self) -> Iterator["PreTrainedModel"]:
        self.network.set_output_embeddings(self.head)
        try:
            yield self.network
        finally:
            self.network.set_output_embeddings(_Passed())


NOT_PREDICTED_FROM = r"pooler|seq_relationship"
"""What BERT and its like were trained with beside the prediction of masked tokens."""


def write_as_authors(source: Path, folder: Path, layout: str, *, name: object) -> None:
    """Write config.json and the weights in the layout of a family's authors.

    Args:
        source: folder that `HubModel.save_pretrained` wrote.
        folder: exists.
        layout: one of `families.LAYOUTS`.
        name: of the model, for messages.
    Raises:
        UserError: the authors have no such models, or a file is broken.
    """
    values = read_values(source / CONFIG_FILE)
    config = own_config(values, source / CONFIG_FILE)
    del values[ENTRY]
    family = family_in_layout(layout, values["model_type"], is_shifted=config.is_shifted, source=name)
    try:
        theirs = family.their_config(values, config.mask_token_id)
    except ValueError as error:
        raise UserError(f"{name} has no place in the layout {layout}: {error}; give --layout plain") from None
    (folder / CONFIG_FILE).write_text(json.dumps(theirs, indent=2) + "\n", encoding="utf-8")
    for file in source.glob(HUB_WEIGHTS):
        tensors = {family.their_name(name): tensor for name, tensor in read_safetensors(file).items()}
        save_file(tensors, folder / file.name, metadata={"format": "pt"})
    if (source / INDEX_FILE).is_file():
        index = read_values(source / INDEX_FILE)
        index["weight_map"] = {family.their_name(name): file for name, file in index["weight_map"].items()}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def is_own(values: Any) -> bool:
    """Whether a config.json is of a `HubModel` that was written here."""
    return isinstance(values, dict) and ENTRY in values


def own_config(values: Mapping[str, Any], path: Path) -> HubConfig:
    """What was written of a `HubModel` into a config.json at `path`; a `UserError` if it is broken."""
    try:
        return HubConfig(**values[ENTRY])
    except TypeError as error:
        raise UserError(f"{path}: {ENTRY} is not as halfstep writes it ({one_line(error)})") from None


@dataclass(frozen=True)
class Description:
    """A model as its config.json has it, which costs nothing to read.

    Attributes:
        source, revision: where its weights are.
        family: how they are read.
        network: transformers' configuration.
        config: ours.
    """

    source: str | Path
    revision: str | None
    family: Family
    network: "PreTrainedConfig"
    config: HubConfig

    def with_weights(self) -> HubModel:
        """The model, on the CPU, float32, in evaluation mode, with new weights of the tokens that it lacks.

        Raises:
            UserError: tensors are missing or left over, it is causal, or its logits are not a projection.
        """
        network = load_pretrained(
            self._auto_class,
            self.source,
            self.revision,
            config=lambda: self.network,
            what="masked language model",
            key_mapping=self.family.key_mapping,
            may_be_left=NOT_PREDICTED_FROM,
        )
        if self.network.vocab_size < self.config.vocab_size:
            network.resize_token_embeddings(self.config.vocab_size)
        return _checked(HubModel(network, self.config), self.source)

    def without_weights(self) -> HubModel:
        """A model of these sizes with random weights, which torch's own generator draws, in evaluation mode."""
        configuration = copy.deepcopy(self.network)
        configuration.vocab_size = self.config.vocab_size
        network = self._auto_class.from_config(configuration, dtype=torch.float32).eval()
        # Not tied are those that transformers was asked not to draw.
        network.tie_weights()
        return HubModel(network, self.config)

    @property
    def _auto_class(self) -> Any:
        from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

        return AutoModelForCausalLM if self.family.is_decoder else AutoModelForMaskedLM


def describe_own(source: str | Path, revision: str | None = None) -> Description:
    """What `HubModel.save_pretrained` wrote, in a folder or on the hub.

    Raises:
        UserError: config.json is broken.
    """
    path = locate(source, revision, CONFIG_FILE) / CONFIG_FILE
    values = read_values(path)
    family = family_of(values, source)
    return Description(source, revision, family, _configuration(source, values, family), own_config(values, path))


def read_hub(source: str | Path, revision: str | None = None) -> HubModel:
    """Read what `HubModel.save_pretrained` wrote, from a folder or the hub.

    Raises:
        UserError: a file is broken, or the network is not what config.json says.
    """
    return describe_own(source, revision).with_weights()


def read_adapted(folder: Path) -> HubModel:
    """Read an adapter that `HubModel.save_pretrained` wrote, with its base.

    Raises:
        UserError: a file is broken, the base is not there or another one, or peft is not installed.
    """
    adapter, base = read_adapter(folder)
    model = read_hub(base)
    load_adapter(adapter, model.network, folder)
    model.adapter = adapter
    return model.requires_grad_()


def describe_hub(
    source: str | Path,
    revision: str | None,
    *,
    mask_token_id: int | None,
    num_tokens: int,
    length: int,
    noise_epsilon: float,
    is_shifted: bool | None = None,
    is_trained: bool = False,
) -> Description:
    """A masked language model of the hub, without its weights.

    Args:
        source: folder or hub id.
        revision: branch, tag or commit of a hub id.
        mask_token_id, num_tokens: of the tokenizer; None where it is not known, for the model's own.
        length, noise_epsilon: see `HubConfig`.
        is_shifted: whether a position's state predicts the token after it, where the model's type does not settle it.
        is_trained: it will be: then tokens are added that it lacks, such as one that masks.
    Raises:
        UserError: it is of a kind that cannot be read, masks with another token, or has too few rows or positions; or
            whether it is shifted must be said, or was said wrongly.
    """
    values = read_values(locate(source, revision, CONFIG_FILE) / CONFIG_FILE)
    if is_own(values):
        return describe_own(source, revision)
    family = family_of(values, source)
    if family.is_shifted is None and is_shifted is None:
        raise UserError(
            f"{source} is a {family.model_type}: say whether a position's state predicts the token after it, as in"
            " Open-dCoder and DiffuLLaMA, or its own: pretrain.init_shift=true or false"
        )
    if None not in (family.is_shifted, is_shifted) and is_shifted != family.is_shifted:
        raise UserError(f"pretrain.init_shift is {is_shifted}, but models of the kind of {source} have it otherwise")
    named = values.get("mask_token_id")
    if mask_token_id is None:
        mask_token_id = num_tokens - 1 if named is None else named
    if named not in (None, mask_token_id):
        raise UserError(
            f"{source} masks with token {named}, but the tokenizer with {mask_token_id}: set data.tokenizer.source to"
            " the model's own"
        )
    network = _configuration(source, values, family)
    most = positions_of(network)
    if most is not None and length > most:
        raise UserError(f"{source} has {most} positions: dvc exp run -S data.context_length={most}")
    if network.vocab_size < num_tokens and family.embedding:
        network.vocab_size = _stored_rows(source, revision, family.embedding) or network.vocab_size
    rows = network.vocab_size
    if rows < num_tokens and not is_trained:
        raise UserError(
            f"{source} has {rows} tokens, but its tokenizer {num_tokens}: set data.tokenizer.source to the model's"
            " own, or train it to know them: pretrain.num_train_steps"
        )
    config = HubConfig(
        vocab_size=max(rows, num_tokens),
        mask_token_id=mask_token_id,
        length=length,
        noise_epsilon=noise_epsilon,
        num_blocks=network.num_hidden_layers,
        num_tokens=num_tokens,
        is_shifted=bool(is_shifted if family.is_shifted is None else family.is_shifted),
    )
    return Description(source, revision, family, network, config)


def _stored_rows(source: str | Path, revision: str | None, name: str) -> int | None:
    """Rows of a tensor in the one file of weights, if it is there."""
    path = locate(source, revision, CONFIG_FILE, WEIGHTS_FILE) / WEIGHTS_FILE
    tensor = read_safetensors(path).get(name) if path.is_file() else None
    return None if tensor is None else len(tensor)


def positions_of(network: "PreTrainedConfig") -> int | None:
    """Tokens of the longest text that a network of transformers reads, by its configuration; None if it has no end."""
    most: int | None = getattr(network, "max_position_embeddings", None)
    # RoBERTa and its like count positions from behind the one of padding.
    counts_padding = "roberta" in network.model_type or network.model_type == "camembert"
    return most - network.pad_token_id - 1 if most is not None and counts_padding else most


def check_shards(folder: Path) -> None:
    """Check that the files of weights are there which a model's index names, if it has one.

    Raises:
        UserError: some are not.
    """
    path = folder / INDEX_FILE
    named = set(read_values(path)["weight_map"].values()) if path.is_file() else set()
    if lacking := [name for name in sorted(named) if not (folder / name).is_file()]:
        raise UserError(f"{folder} lacks {first_of(lacking)}, which its {INDEX_FILE} names: copy the model again")


def open_hub(source: str | Path, revision: str | None, **given: Any) -> HubModel:
    """Open a masked language model of the hub; see `describe_hub` and `Description.with_weights`."""
    return describe_hub(source, revision, **given).with_weights()


def _configuration(source: str | Path, values: dict[str, Any], family: Family) -> "PreTrainedConfig":
    """Transformers' own, of a network that looks at both sides.

    Raises:
        UserError: config.json does not make one.
    """
    from transformers import AutoConfig

    left_out = ("model_type", "auto_map", "architectures", ENTRY)
    # The configurations of the many kinds of models may raise anything.
    try:
        own = family.config({name: value for name, value in values.items() if name not in left_out})
        # transformers' attention looks at both sides where a configuration says so.
        return AutoConfig.for_model(family.model_type, **{**own, "is_causal": False, "use_cache": False})
    except Exception as error:
        raise UserError(
            f"{source} has a config.json that is not one of a {family.model_type} ({one_line(error)}); give another"
            " model"
        ) from None


@torch.no_grad()
def _checked(model: HubModel, source: object) -> HubModel:
    """The model, if its logits are the projection of its states, which depend on what comes after them.

    Raises:
        UserError: they are not.
    """
    tokens = torch.arange(2 * 8).view(2, 8) % model.config.num_tokens
    other = tokens.clone()
    other[:, -1] = (other[:, -1] + 1) % model.config.num_tokens
    states, of_other = (model.network(input_ids=x).logits for x in (tokens, other))
    if torch.equal(states[:, 0], of_other[:, 0]):
        raise UserError(f"{source} is causal: its first position does not see the last token; give a masked model")
    with model._whole() as network:
        logits = network(input_ids=tokens).logits
    if not torch.allclose(F.linear(states, model.head.weight, model.head.bias), logits, rtol=1e-4, atol=1e-4):
        raise UserError(f"{source} changes its logits after the projection, which halfstep cannot: give another model")
    return model


def no_place(objective: str) -> str:
    """What is wrong with an objective for a teacher of the hub."""
    return (
        f"distill.objective is {objective}, which adds an input, but a network of transformers has no place for one:"
        " dvc exp run -S objective=sdtt"
    )
