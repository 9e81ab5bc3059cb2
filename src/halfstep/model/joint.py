"""A joint head: a small causal network on a denoiser, the trunk, that draws the tokens of one evaluation together.

The trunk gives each masked position its distribution given what is visible, and no position knows what is drawn at
another. The head goes through some of these positions in an order, and corrects each distribution by the tokens drawn
before it. Shapes below: b sequences, n places in the order, N positions in row-major order, h the trunk's width.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from halfstep.model.base import MaskedConfig, MaskedModel
from halfstep.model.loading import ANOTHER, check_tensors, read_safetensors, read_values
from halfstep.model.rotary import Rotary, rotate
from halfstep.run.errors import UserError, shown
from halfstep.settings.base import MAX_BLOCKS

HEAD_CONFIG_FILE = "joint_head.json"
HEAD_WEIGHTS_FILE = "joint_head.safetensors"

Order = Literal["sampler", "left_to_right"]
"""In which a head goes through the positions of an evaluation: as the sampler would write them, or by place."""
ORDERS: tuple[Order, ...] = get_args(Order)


@dataclass(frozen=True)
class JointHeadConfig:
    """Sizes of a head: its width, layers and attention heads; and the order that it was trained in."""

    hidden_size: int
    num_layers: int
    num_heads: int
    order: Order


@dataclass(frozen=True)
class Arrangement:
    """Some positions of each sequence in an order.

    Attributes:
        columns: their places in the sequence, int64 [b, n]; 0 where a sequence has fewer.
        rows: their row numbers among all N positions, int64 [b, n].
        is_in: which of the entries are positions, bool [b, n]; those of a sequence come first.
    """

    columns: Tensor
    rows: Tensor
    is_in: Tensor

    @classmethod
    def of(cls, at: Tensor, priority: Tensor) -> "Arrangement":
        """The positions `at`, bool [b, length], by descending priority, float [b, length], ties from left to right."""
        counts = at.sum(dim=1, keepdim=True)
        order = priority.double().masked_fill(~at, -torch.inf).argsort(dim=1, descending=True, stable=True)
        columns = order[:, : int(counts.max()) if len(at) else 0]
        is_in = torch.arange(columns.shape[1], device=at.device) < counts
        columns = columns.masked_fill(~is_in, 0)
        rows = (at.flatten().cumsum(0).view(at.shape) - 1).gather(1, columns).masked_fill(~is_in, 0)
        return cls(columns, rows, is_in)

    def row_major(self, ordered: Tensor) -> Tensor:
        """What is in the order, [b, n, ...], as rows [N, ...]."""
        rows = self.rows[self.is_in]
        return torch.empty_like(ordered[self.is_in]).index_copy(0, rows, ordered[self.is_in])

    def select(self, rows: Tensor) -> "Arrangement":
        """That of some of the sequences, int64 [k]."""
        return Arrangement(self.columns[rows], self.rows[rows], self.is_in[rows])


class _Layer(nn.Module):
    """Attention and MLP of two streams with the same weights.

    Contents belong to the place before that of the query with the same number: attention is causal in both streams,
    and no query sees its own token.
    """

    def __init__(self, hidden_size: int, num_heads: int, *, is_last: bool) -> None:
        super().__init__()
        self.num_heads, self.is_last = num_heads, is_last
        self.norm1, self.norm2 = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.to_q = nn.Linear(hidden_size, hidden_size, bias=False)
        self.to_kv = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.attn_out = nn.Linear(hidden_size, hidden_size, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size, 4 * hidden_size),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * hidden_size, hidden_size),
        )

    def forward(
        self,
        query: Tensor,
        content: Tensor,
        of_query: tuple[Tensor, Tensor],
        of_content: tuple[Tensor, Tensor],
        cache: "Cache | None" = None,
    ) -> tuple[Tensor, Tensor]:
        """(query, content) after the layer, each float [b, n, hidden_size]; of the last layer content is as it was.

        Args:
            of_query, of_content: (cos, sin) of their positions.
            cache: keys and values of earlier places, to which those of this content are added; n is then 1.
        """
        normed = self.norm1(content)
        k, v = self._heads(self.to_kv(normed), 2)
        k = rotate(k, *of_content)
        if cache is not None:
            k, v = cache.extend(self, k, v)
        (q,) = self._heads(self.to_q(self.norm1(query)), 1)
        query = self._after(query, rotate(q, *of_query), k, v)
        if not self.is_last:
            (q,) = self._heads(self.to_q(normed), 1)
            content = self._after(content, rotate(q, *of_content), k, v)
        return query, content

    def _heads(self, x: Tensor, number: int) -> tuple[Tensor, ...]:
        b, n, width = x.shape
        parts = x.view(b, n, number, self.num_heads, width // (number * self.num_heads))
        return parts.permute(2, 0, 3, 1, 4).unbind(0)

    def _after(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1)
        x = x + self.attn_out(attended.transpose(1, 2).reshape(x.shape))
        return x + self.mlp(self.norm2(x))


class Cache:
    """Keys and values of the places that a head has gone through, by layer."""

    def __init__(self) -> None:
        self._kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: nn.Module, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Those of a layer, float [b, heads, places, head_size], with the new ones at the end."""
        if layer in self._kept:
            k, v = (torch.cat(pair, dim=2) for pair in zip(self._kept[layer], (k, v), strict=True))
        self._kept[layer] = k, v
        return k, v


class JointHead(nn.Module):
    """The head alone: what is added to the trunk's hidden states.

    Its last layer begins at zero, so that an untrained head changes nothing; and nothing is ever changed at the first
    place, before which there is nothing to know.

    Source: two streams as in Yang et al. 2019, arXiv:1906.08237, Section 2.3 (XLNet): a query knows its position, and
        no content knows more than what came before it. A causal part on a bidirectional one as in Campbell et al.
        2025, arXiv:2510.03929 (self-speculative masked diffusions), whose layers are the trunk's own.
    """

    def __init__(self, config: JointHeadConfig, trunk_size: int) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.from_state = nn.Linear(trunk_size, size)
        self.from_token = nn.Linear(trunk_size, size, bias=False)
        self.rotary_emb = Rotary(size // config.num_heads)
        self.layers = nn.ModuleList(
            _Layer(size, config.num_heads, is_last=number == config.num_layers - 1)
            for number in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(size)
        self.out = nn.Linear(size, trunk_size)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, hidden: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
        """The correction at every place, float [b, n, h], given the tokens of all places before it; at the first, 0.

        Args:
            hidden: the trunk's states in order, float [b, n, h].
            tokens: rows of the trunk's projection for the tokens in order, float [b, n, h]; the last is not used.
            positions: places in the sequence, int64 [b, n].
        """
        num_places = hidden.shape[1]
        if num_places < 2:
            # Of several processes all compute it, whatever their rows hold.
            hidden, tokens = (F.pad(x, (0, 0, 0, 2 - num_places)) for x in (hidden, tokens))
            return self(hidden, tokens, F.pad(positions, (0, 2 - num_places)))[:, :num_places]
        before = hidden[:, :-1], tokens[:, :-1], positions[:, :-1]
        return F.pad(self.next(hidden[:, 1:], positions[:, 1:], before), (0, 0, 1, 0))

    def next(
        self, hidden: Tensor, positions: Tensor, before: tuple[Tensor, Tensor, Tensor], cache: Cache | None = None
    ) -> Tensor:
        """The correction at some places after the first, float [b, n, h].

        Args:
            hidden, positions: as in `forward`.
            before: (hidden, tokens, positions) of the places that are each one earlier.
            cache: of what came before these, for one place at a time.
        """
        last_hidden, last_tokens, last_positions = before
        query = self.from_state(_normed(hidden))
        content = self.from_state(_normed(last_hidden)) + self.from_token(_normed(last_tokens))
        # One axis for the attention heads.
        of_query, of_content = (self.rotary_emb(places[:, None]) for places in (positions, last_positions))
        for layer in self.layers:
            query, content = layer(query, content, of_query, of_content, cache)
        return self.out(self.norm(query))


def _normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


class JointModel(nn.Module):
    """A masked model and its joint head; asked as a `MaskedModel` it is the trunk alone."""

    def __init__(self, trunk: MaskedModel, joint_head: JointHead) -> None:
        super().__init__()
        self.trunk = cast(Any, trunk)
        self.joint_head = joint_head

    @classmethod
    def untrained(cls, trunk: MaskedModel, config: JointHeadConfig) -> "JointModel":
        """A trunk with a new head, whose weights torch's own generator draws."""
        return cls(trunk, JointHead(config, trunk.projection()[0].shape[1]))

    @property
    def config(self) -> MaskedConfig:
        """The trunk's."""
        return self.trunk.config

    @property
    def relative_depth(self) -> float:
        """Layers of the head over those of the trunk: what a pass of the head costs, in evaluations of the trunk."""
        return self.joint_head.config.num_layers / self.config.num_blocks

    def hidden_at(self, xt: Tensor, at: Tensor, *, t: Tensor | None = None, latent: Tensor | None = None) -> Tensor:
        """See `MaskedModel`."""
        return self.trunk.hidden_at(xt, at, t=t, latent=latent)

    def projection(self) -> tuple[Tensor, Tensor]:
        """See `MaskedModel`."""
        return self.trunk.projection()

    def arrange(self, at: Tensor, priority: Tensor) -> Arrangement:
        """Positions in the order that the head was trained in; `priority`, float [b, length], is the sampler's."""
        if self.joint_head.config.order == "left_to_right":
            priority = -torch.arange(at.shape[1], device=at.device).expand(at.shape)
        return Arrangement.of(at, priority)

    def conditional(self, hidden: Tensor, tokens: Tensor, arrangement: Arrangement) -> Tensor:
        """What the projection makes the head's logits of: each position's given the tokens before it in the order.

        Args:
            hidden: of `hidden_at`, for the arranged positions, float [N, h].
            tokens: in the order, int64 [b, n].
            arrangement: of `arrange`, with the same positions, of these sequences.
        Returns:
            in the order, float [b, n, h].
        """
        ordered = hidden[arrangement.rows]
        embedded = F.embedding(tokens, self.projection()[0])
        return ordered + self.joint_head(ordered, embedded, arrangement.columns).to(hidden.dtype)

    def save_pretrained(self, folder: Path) -> None:
        """Write the trunk as it writes itself, and the head beside it."""
        self.trunk.save_pretrained(folder)
        save_head(self.joint_head, folder)


def save_head(head: JointHead, folder: Path) -> None:
    """Write joint_head.json and joint_head.safetensors into an existing folder."""
    text = json.dumps(asdict(head.config), indent=2) + "\n"
    (folder / HEAD_CONFIG_FILE).write_text(text, encoding="utf-8")
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in head.state_dict().items()}
    save_file(tensors, folder / HEAD_WEIGHTS_FILE, metadata={"format": "pt"})


def read_head(folder: Path, trunk_size: int) -> JointHead:
    """The head that lies in a model's folder.

    Raises:
        UserError: a file is broken, or a tensor is missing, left over, or of another shape.
    """
    path = folder / HEAD_CONFIG_FILE
    config = _checked(read_values(path), path)
    tensors = read_safetensors(folder / HEAD_WEIGHTS_FILE)
    # Shapes without memory for them: a configuration may state any size.
    with torch.device("meta"):
        expected = JointHead(config, trunk_size).state_dict()
    check_tensors(tensors, {name: tensor.shape for name, tensor in expected.items()}, folder / HEAD_WEIGHTS_FILE)
    head = JointHead(config, trunk_size)
    head.load_state_dict(tensors)
    return head


def _checked(values: Any, path: Path) -> JointHeadConfig:
    names = ("hidden_size", "num_layers", "num_heads")
    if not isinstance(values, Mapping) or set(values) != {*names, "order"}:
        raise UserError(f"{path} is not the configuration of a joint head: it has {shown(values)}; {ANOTHER}")
    wrong = [name for name in names if type(values[name]) is not int or not 0 < values[name] <= MAX_BLOCKS]
    wrong += [] if values["order"] in ORDERS else ["order"]
    if not wrong and values["hidden_size"] % (2 * values["num_heads"]):
        wrong = ["num_heads"]
    if wrong:
        raise UserError(f"{path}: {wrong[0]} is {shown(values[wrong[0]])}, which no joint head has; {ANOTHER}")
    return JointHeadConfig(**values)


def trunk_of(model: MaskedModel) -> MaskedModel:
    """A model without its joint head, if it has one."""
    return model.trunk if isinstance(model, JointModel) else model
