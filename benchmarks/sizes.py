"""How large a benchmark is: by name, by model group, or by numbers."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from halfstep.model.config import DenoiserConfig
from halfstep.model.denoiser import Denoiser
from halfstep.run.errors import UserError
from halfstep.tools.planning.networks import Network


@dataclass(frozen=True, kw_only=True)
class Size(Network):
    """A denoiser, whose mask token is the last, and a batch of sequences of its length."""

    cond_dim: int
    batch_size: int

    @property
    def mask_token_id(self) -> int:
        """The last id."""
        return self.vocab_size - 1

    def denoiser(self) -> Denoiser:
        """A denoiser of this size without dropout, with small random weights: time does not depend on them."""
        config = DenoiserConfig(
            vocab_size=self.vocab_size,
            mask_token_id=self.mask_token_id,
            length=self.length,
            hidden_size=self.hidden_size,
            num_blocks=self.num_blocks,
            num_heads=self.num_heads,
            cond_dim=self.cond_dim,
            dropout=0.0,
            noise_epsilon=1e-3,
        )
        denoiser = Denoiser(config)
        generator = torch.Generator().manual_seed(0)
        for parameter in denoiser.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.02, generator=generator)
        return denoiser


SIZES = {
    name: Size(
        vocab_size=50258, hidden_size=width, num_heads=heads, num_blocks=blocks, cond_dim=128, length=length,
        batch_size=batch_size,
    )
    for name, width, heads, blocks, length, batch_size in (("S1", 256, 4, 4, 128, 8), ("S2", 768, 12, 12, 256, 2))
}  # fmt: skip


def choose_size(name: str, changes: dict[str, int | None], groups: Path = Path("pipeline/conf/model")) -> Size:
    """A named size, or S1 with the network of a model group, with some numbers changed.

    Args:
        name: of `SIZES`, or a file of `groups` without its suffix.
        changes: values by attribute; None leaves what is there.
        groups: folder of model groups.
    Raises:
        UserError: there is no such name, or the heads do not divide the width.
    """
    if name in SIZES:
        size = SIZES[name]
    elif (groups / f"{name}.yaml").is_file():
        group: dict[str, Any] = yaml.safe_load((groups / f"{name}.yaml").read_text(encoding="utf-8"))
        group.pop("dropout")
        size = replace(SIZES["S1"], **group)
    else:
        known = ", ".join([*SIZES, *sorted(path.stem for path in groups.glob("*.yaml"))])
        raise UserError(f"--size is {name!r}: {known} are known here (model groups are read from {groups})")
    numbers: dict[str, Any] = {key: value for key, value in changes.items() if value is not None}
    size = replace(size, **numbers)
    if size.hidden_size % (2 * size.num_heads):
        raise UserError(f"--hidden-size {size.hidden_size} cannot be shared by {size.num_heads} heads of even size")
    return size
