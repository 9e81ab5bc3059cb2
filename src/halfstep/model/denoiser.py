"""The denoiser: a diffusion transformer (DiT) over tokens, with rotary positions and adaptive layer norm.

Module and parameter names are those of the published MDLM and SDTT checkpoints, so that a state dict is the same
thing here and there. Attention is torch's `scaled_dot_product_attention`: no other kernel is needed.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from halfstep.model.config import DenoiserConfig
from halfstep.model.loading import read_denoiser, save_denoiser
from halfstep.model.noise import NoiseEmbedding, exponentials
from halfstep.model.rotary import MAX_PERIOD, Rotary, rotate

FREQUENCY_EMBEDDING_SIZE = 256
LATENT_SCALE = 1000.0
"""Latents in [0, 1) are embedded as times of a thousand steps are."""
LATENT_STD = 0.1


class _LayerNorm(nn.Module):
    """Layer norm with a weight and no bias, in float32, and a modulation after it."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """norm(x) (1 + scale) + shift, in one pass where all sequences share the modulation."""
        weight = self.weight.float()
        if shift.numel() == len(weight):
            return F.layer_norm(x.float(), weight.shape, weight * (1 + scale.flatten()), shift.flatten().float())
        return F.layer_norm(x.float(), weight.shape, weight) * (1 + scale) + shift


class _SigmaEmbedding(nn.Module):
    """Sinusoids of the total noise through a small network."""

    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(FREQUENCY_EMBEDDING_SIZE, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim)
        )

    def forward(self, sigma: Tensor) -> Tensor:
        """Conditioning, float [batch, cond_dim], of sigma [batch]."""
        half = FREQUENCY_EMBEDDING_SIZE // 2
        exponent = torch.arange(half, device=sigma.device).float() / half
        angles = sigma.float()[:, None] * MAX_PERIOD**-exponent
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class _Embedding(nn.Module):
    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(vocab_size, hidden_size))
        nn.init.kaiming_uniform_(self.embedding, a=5**0.5)

    def forward(self, xt: Tensor) -> Tensor:
        return F.embedding(xt, self.embedding)


def _select(x: Tensor, at: Tensor) -> Tensor:
    """The entries at some positions [at.sum(), hidden_size] of x [batch, length, hidden_size].

    A modulation has length 1, and is one vector [1, hidden_size] if all sequences share it.
    """
    if x.shape[:2] == (1, 1) != at.shape:
        return x[0]
    return x.expand(*at.shape, -1)[at]


class _Block(nn.Module):
    """Attention and MLP, each modulated before and gated after."""

    def __init__(self, hidden_size: int, num_heads: int, cond_dim: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.norm1 = _LayerNorm(hidden_size)
        self.attn_qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.attn_out = nn.Linear(hidden_size, hidden_size, bias=False)
        self.norm2 = _LayerNorm(hidden_size)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size, 4 * hidden_size),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * hidden_size, hidden_size),
        )
        self.adaLN_modulation = nn.Linear(cond_dim, 6 * hidden_size)
        nn.init.zeros_(self.adaLN_modulation.weight)
        nn.init.zeros_(self.adaLN_modulation.bias)

    def forward(self, x: Tensor, cond: Tensor, cos: Tensor, sin: Tensor, at: Tensor | None = None) -> Tensor:
        """float [batch, length, hidden_size], or only at some positions, [at.sum(), hidden_size]."""
        shift1, scale1, gate1, *of_mlp = self.adaLN_modulation(cond)[:, None].chunk(6, dim=-1)
        attended = self._attend(self.norm1(x, shift1, scale1), cos, sin)
        if at is not None:
            # What follows treats each position alone.
            x, attended, gate1, *of_mlp = (_select(tensor, at) for tensor in (x, attended, gate1, *of_mlp))
        shift2, scale2, gate2 = of_mlp
        x = torch.addcmul(x, gate1, F.dropout(self.attn_out(attended), self.dropout, self.training))
        transformed = self.mlp(self.norm2(x, shift2, scale2))
        return torch.addcmul(x, gate2, F.dropout(transformed, self.dropout, self.training))

    def _attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, hidden_size = x.shape
        qkv = self.attn_qkv(x).view(batch, length, 3, self.num_heads, hidden_size // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
        return attended.transpose(1, 2).reshape(batch, length, hidden_size)


class _OutputLayer(nn.Module):
    """Last modulation and the projection to the vocabulary."""

    def __init__(self, hidden_size: int, vocab_size: int, cond_dim: int) -> None:
        super().__init__()
        self.norm_final = _LayerNorm(hidden_size)
        self.linear = nn.Linear(hidden_size, vocab_size)
        self.adaLN_modulation = nn.Linear(cond_dim, 2 * hidden_size)
        for layer in (self.linear, self.adaLN_modulation):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, cond: Tensor, at: Tensor | None) -> Tensor:
        """What `linear` projects, of the same shape as x: [batch, length, hidden_size], or [at.sum(), hidden_size]."""
        shift, scale = self.adaLN_modulation(cond)[:, None].chunk(2, dim=-1)
        if at is not None:
            shift, scale = _select(shift, at), _select(scale, at)
        return self.norm_final(x, shift, scale)


class Denoiser(nn.Module):
    """Predicts the clean token at every position of a partly masked sequence.

    Source: Sahoo et al. 2024, arXiv:2406.07524, Section 3.5.1 (DiT with rotary positions), Section 5.1 and Appendix D.4
        (sizes); Deschenaux & Gulcehre 2024, arXiv:2410.21035v2, Appendix C (time-unconditional models are fed zeros).
    """

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_embed = _Embedding(config.vocab_size, config.hidden_size)
        self.sigma_map = _SigmaEmbedding(config.cond_dim)
        self.rotary_emb = Rotary(config.hidden_size // config.num_heads)
        self.blocks = nn.ModuleList(
            _Block(config.hidden_size, config.num_heads, config.cond_dim, config.dropout)
            for _ in range(config.num_blocks)
        )
        self.output_layer = _OutputLayer(config.hidden_size, config.vocab_size, config.cond_dim)
        # Made last, and only where it is asked for: the other weights are drawn as without it.
        self.position_embed = _Embedding(config.length, config.hidden_size) if config.absolute_positions else None
        self.latent_map = _SigmaEmbedding(config.cond_dim) if config.takes_latent else None
        self.noise_embed = NoiseEmbedding(config.vocab_size, config.hidden_size) if config.takes_noise else None

    def with_latent(self) -> "Denoiser":
        """A copy that takes a latent and no noise, in evaluation mode; torch's own generator draws the new weights.

        They begin small and not at zero: where all latents say the same, no gradient separates them.
        """
        copied = Denoiser(replace(self.config, takes_latent=True, takes_noise=False))
        assert copied.latent_map is not None
        for parameter in copied.latent_map.mlp[2].parameters():
            nn.init.normal_(parameter, std=LATENT_STD)
        return self._copied_to(copied)

    def with_noise(self) -> "Denoiser":
        """A copy that takes noise and no latent, in evaluation mode; its predictions do not depend on it yet."""
        return self._copied_to(Denoiser(replace(self.config, takes_noise=True, takes_latent=False)))

    def _copied_to(self, other: "Denoiser") -> "Denoiser":
        other.load_state_dict(self.state_dict(), strict=other.config == self.config)
        return other.to(self.head.weight.device).eval()

    def forward(self, xt: Tensor, sigma: Tensor | None = None, at: Tensor | None = None) -> Tensor:
        """Raw logits.

        Args:
            xt: tokens, int64 [batch, length].
            sigma: total noise of each sequence, float [batch]; None is zero, as time-unconditional models have it.
            at: positions wanted, bool [batch, length]; None is all of them. The projection to the vocabulary is
                computed for these only.
        Returns:
            float [batch, length, vocab], or [at.sum(), vocab] in row-major order.
        Raises:
            ValueError: positions are absolute, and the sequences longer than these.
        """
        return self.head(self.hidden(xt, sigma, at))

    def hidden(
        self, xt: Tensor, sigma: Tensor | None = None, at: Tensor | None = None, latent: Tensor | None = None
    ) -> Tensor:
        """The network's body, which `head` projects to logits; arguments and shapes as in `forward`, `hidden_at`."""
        x, cond, cos, sin = self._embedded(xt, sigma, latent)
        for block in self.blocks[:-1]:
            x = block(x, cond, cos, sin)
        # Beyond its attention the last block computes only what is wanted.
        x = self.blocks[-1](x, cond, cos, sin, at)
        return self.output_layer(x, cond, at)

    def features(self, x: Tensor, num_blocks: int) -> Tensor:
        """The state of each position after some blocks, float [batch, length, hidden_size] of int64 [batch, length]."""
        state, cond, cos, sin = self._embedded(x, None)
        for block in self.blocks[:num_blocks]:
            state = block(state, cond, cos, sin)
        return state

    def _embedded(
        self, xt: Tensor, sigma: Tensor | None, latent: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the blocks begin with: (the embedded tokens, noise and latent, cos, sin of the positions)."""
        if sigma is None:
            sigma = torch.zeros(1, device=xt.device)
        cond = self.sigma_map(sigma)
        x = self.vocab_embed(xt)
        if self.latent_map is not None:
            latent = sigma.new_full((1, 1), 0.5) if latent is None else latent
            cond = cond + self.latent_map(LATENT_SCALE * latent[:, 0])
        elif latent is not None and self.noise_embed is not None:
            x = torch.where((xt == self.config.mask_token_id)[:, :, None], x + latent, x)
        elif latent is not None:
            raise ValueError("this denoiser takes no latent")
        cond = F.silu(cond)
        positions = torch.arange(xt.shape[1], device=xt.device)
        cos, sin = self.rotary_emb(positions)
        if self.position_embed is not None:
            if xt.shape[1] > self.config.length:
                raise ValueError(f"xt has length {xt.shape[1]}, but there are {self.config.length} absolute positions")
            x = x + self.position_embed(positions)
        return x, cond, cos, sin

    @property
    def head(self) -> nn.Linear:
        """The projection to the vocabulary."""
        return self.output_layer.linear

    def hidden_at(self, xt: Tensor, at: Tensor, *, t: Tensor | None = None, latent: Tensor | None = None) -> Tensor:
        """See `MaskedModel`. The network is not conditioned on time, as the published ones are not.

        Args:
            latent: of a network with `takes_latent`, uniform in [0, 1), float [batch, 1], and its middle where it is
                None; of one with `takes_noise`, what the noise adds to each mask's embedding, float [batch, length,
                hidden_size], and nothing where it is None.
        Raises:
            ValueError: there is a latent, for which it has no input.
        """
        return self.hidden(xt, at=at, latent=latent)

    @torch.no_grad()
    def latent_of(self, draw: Callable[..., Tensor], length: int) -> Callable[[int], Tensor] | None:
        """The latent of some samples in each step, from 1, or None where there is none.

        What `takes_latent` has is another in every step; noise is the same in all.

        Args:
            draw: key -> a number in [0, 1) for each sample, float64 [batch], by a function of its own for each key.
            length: of the samples.
        """
        device = self.head.weight.device
        if self.latent_map is not None:
            return lambda step: draw(step, "latent")[:, None].to(device)
        if self.noise_embed is None:
            return None
        pieces = (
            exponentials(u, length, self.config.vocab_size, torch.device("cpu")).to(device) for u in draw("noise")
        )
        noise = self.noise_embed(lambda: pieces).unflatten(0, (-1, length))
        return lambda step: noise

    def projection(self) -> tuple[Tensor, Tensor]:
        """See `MaskedModel`."""
        return self.head.weight, self.head.bias

    def logits_at(self, xt: Tensor, at: Tensor) -> Tensor:
        """`forward` at some positions of a time-unconditional model, float [at.sum(), vocab] in row-major order."""
        return self(xt, at=at)

    @classmethod
    def from_pretrained(cls, source: str | Path, revision: str | None = None, *, use_ema: bool = True) -> "Denoiser":
        """Load one of our models, or a published MDLM or SDTT checkpoint; a joint head beside it needs `open_model`.

        Args:
            source: folder with config.json and model.safetensors (or one other file of weights), a `.safetensors`
                file or a training checkpoint (`.ckpt`), or a hub id such as kuleshov-group/mdlm-owt. A training
                checkpoint without config.json beside it must carry its own configuration.
            revision: branch, tag or commit of a hub id.
            use_ema: of a training checkpoint, take the averaged weights if it carries them, else the raw ones.
        Returns:
            the denoiser in evaluation mode, on the CPU, float32.
        Raises:
            UserError: there is no such model, it would run code when read, or a tensor is missing, left over, or
                of another shape.
        """
        denoiser = read_denoiser(source, cls, revision, use_ema=use_ema)
        assert isinstance(denoiser, cls)
        return denoiser

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json and model.safetensors into an existing folder; other layouts: `halfstep export`."""
        save_denoiser(self.config, self, folder)

    def num_parameters(self) -> int:
        """Trainable parameters, embeddings included."""
        return sum(parameter.numel() for parameter in self.parameters())

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in vars(self.config).items())
