"""Samplers by name, under their settings.

A sampler is a file of this room, `NAME.py`, with its `Settings`, whose fields are lists, and `policy(x_init, u_time,
uniforms, *, mask_token_id, ...)`, which makes the policy of a batch from one value of each field: `u_time` says for
each position when it is written, float64 [batch, length], and `uniforms(step)` gives two more such arrays.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import yaml
from pydantic import ValidationError
from torch import Tensor

from halfstep.model.base import MaskedModel
from halfstep.model.denoiser import Denoiser
from halfstep.model.joint import JointModel, trunk_of
from halfstep.run.errors import UserError, one_line, shown
from halfstep.samplers import SAMPLERS
from halfstep.samplers.base import InBlocks, LogitsAt, Samples, Uniforms, fill
from halfstep.samplers.joint import DrawTogether
from halfstep.settings.evaluation import SamplerSettings
from halfstep.settings.plugins import plugin_module, plugin_names


@dataclass(frozen=True)
class Sampler:
    """A sampler under one setting.

    Attributes:
        name: of its file.
        values: one of each of its settings.
    """

    name: str
    values: Mapping[str, Any]

    @property
    def setting(self) -> str:
        """Its values as text, such as `num_steps=8`, without those that are as usual."""
        usual = _usual(self.name) if self.values else {}
        return ",".join(f"{key}={value}" for key, value in self.values.items() if value != usual.get(key, ...))

    @property
    def num_steps(self) -> int | None:
        """Denoising steps asked for; None where it takes as many as it takes."""
        is_bound = self.values.get("drawing") != "speculative" or self.values.get("head_passes") is None
        return self.values.get("num_steps") if is_bound else None

    def sample(
        self,
        network: LogitsAt | MaskedModel,
        x_init: Tensor,
        *,
        mask_token_id: int,
        uniforms: Uniforms,
        **options: Any,
    ) -> Samples:
        """Fill the masks of x_init: see `fill` for arguments and options.

        Raises:
            UserError: the network has no joint head, which is to draw.
        """
        make = partial(plugin_module(SAMPLERS, self.name).policy, mask_token_id=mask_token_id)
        values = {**_usual(self.name), **self.values}
        block_length, drawing, head_passes = (values.pop(name) for name in ("block_length", "drawing", "head_passes"))
        if drawing != "independent":
            if not isinstance(network, JointModel):
                raise UserError(f"the model has no joint head, by which drawing={drawing} draws: drawing=independent")
            options["together"] = DrawTogether(network, drawing, head_passes)
        if block_length is None:
            policy = make(x_init, uniforms.first[0], uniforms.at, **values)
        else:
            policy = InBlocks(
                partial(make, **values), x_init, uniforms, block_length=block_length, mask_token_id=mask_token_id
            )
        trunk = trunk_of(network) if isinstance(network, MaskedModel) else None
        if isinstance(trunk, Denoiser):
            options["latent"] = trunk.latent_of(uniforms.one, x_init.shape[1])
        u_token = uniforms.first[1]
        return fill(network, x_init, policy, mask_token_id=mask_token_id, u_token=u_token, **options)


def _settings_of(name: str) -> type[SamplerSettings]:
    return plugin_module(SAMPLERS, name).Settings


def _usual(name: str) -> dict[str, Any]:
    """What its settings are where nothing else is said; those that have to be given are left out."""
    fields = _settings_of(name).model_fields.items()
    return {key: field.default[0] for key, field in fields if not field.is_required()}


def samplers_of(entries: Iterable[SamplerSettings]) -> list[Sampler]:
    """Some samplers under every combination of their settings."""
    return [Sampler(entry.name, way) for entry in entries for way in entry.ways()]


def sampler_in(name: str, setting: str, where: str) -> Sampler:
    """The sampler whose `setting` is this text, see `sampler_of`."""
    pairs = (pair.split("=", 1) for pair in setting.split(","))
    return sampler_of(name, {key: yaml.safe_load(value) for key, value in pairs}, where)


def sampler_of(name: str, values: Mapping[str, Any], where: str) -> Sampler:
    """A sampler under one setting, as a command is given it.

    Args:
        values: {setting: value}; those that are as usual may be left out.
        where: the option that holds them, for messages.
    Raises:
        UserError: there is no such sampler, or a value does not fit.
    """
    known = plugin_names(SAMPLERS)
    if name not in known:
        raise UserError(f"{where}: there is no sampler {shown(name)}; there are {', '.join(known)}")
    entry = {"name": name, **{key: [value] for key, value in values.items()}}
    try:
        (way,) = _settings_of(name).model_validate(entry).ways()
    except ValidationError as error:
        # A name that is not known is why another is missing.
        first = min(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")
        key = one_line(".".join(map(str, first["loc"][:1])), 80)
        problems = {"extra_forbidden": f"{name} has no setting {key}", "missing": f"{name} needs {key}"}
        other = f"{key} of {name} is {shown(first['input'])}: {one_line(first['msg'])}"
        raise UserError(f"{where}: {problems.get(first['type'], other)}") from None
    return Sampler(name, way)
