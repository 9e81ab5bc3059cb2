"""Everything a training run is at one moment: saved whole or in parts, restored strictly."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from halfstep.objectives.base import PRODUCT
from halfstep.run import ranks
from halfstep.run.files import read_json, write_json
from halfstep.settings.training import TrainingSettings
from halfstep.training.ema import EMA
from halfstep.training.optimizer import build_optimizer
from halfstep.training.parallel import full_tensor, is_sharded, shard_like, trained

TENSORS_FILE = "train_state.safetensors"
VALUES_FILE = "train_state.json"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass
class CurvePoint:
    """One logged step of a training run; losses in nats (or the divergence's unit) per term.

    Of a step that was skipped, loss and gradient are None. `num_skipped_steps` counts those of the run so far.
    """

    step: int
    loss: float | None
    learning_rate: float
    grad_norm: float | None
    valid_loss: float | None
    num_skipped_steps: int


@dataclass
class Trained:
    """One network in training: raw weights, AdamW over those that are not frozen, their average."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMA

    @classmethod
    def new(cls, model: nn.Module, settings: TrainingSettings) -> "Trained":
        """A network whose training begins."""
        betas = settings.adam_beta1, settings.adam_beta2
        optimizer = build_optimizer(
            model, betas=betas, epsilon=settings.adam_epsilon, weight_decay=settings.weight_decay
        )
        return cls(model, optimizer, EMA(model, settings.ema_decay))

    def tensors(self) -> dict[str, Tensor]:
        """What is not frozen, by name: `model.NAME`, `ema.NAME`, and the optimizer's moments if it has any."""
        parameters = trained(self.model)
        tensors = {f"model.{name}": parameter.detach() for name, parameter in parameters.items()}
        tensors |= {f"ema.{name}": average for name, average in self.ema.average.items()}
        for name, parameter in parameters.items():
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"{key}.{name}": moments[key] for key in MOMENTS if key in moments}
        return tensors

    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.model.parameters() if p.grad is not None]


@dataclass
class TrainState:
    """The networks in training, and how many steps were made.

    Randomness and the data's position are functions of (seed, step), so the step says it all.

    Attributes:
        networks: by name; `PRODUCT` is the one that is made.
        step: steps made in this run, those included whose update was skipped.
        optimizer_step: likewise since the optimizer was new; more than `step` when it was carried over.
        num_skipped_steps: updates of this run that were left out because a loss or gradient was not finite.
        curve: what was logged so far.
    """

    networks: dict[str, Trained]
    step: int = 0
    optimizer_step: int = 0
    num_skipped_steps: int = 0
    curve: list[CurvePoint] = field(default_factory=list)

    @property
    def product(self) -> Trained:
        return self.networks[PRODUCT]

    @property
    def is_sharded(self) -> bool:
        """Whether this process has only a part of the tensors."""
        return is_sharded(self.product.model)

    def save(self, folder: Path, *, is_alone: bool = False) -> None:
        """Write the state into an existing folder; float32 tensors, byte for byte repeatable.

        Of several processes all must call this; the main one writes.

        Args:
            is_alone: this process writes, without the others; it must have all of the tensors.
        """
        writes = is_alone or ranks.is_main()
        tensors = {}
        for name, tensor in self._tensors().items():
            tensor = full_tensor(tensor)
            if writes:
                tensors[name] = tensor.cpu().contiguous()
        if writes:
            save_file(tensors, folder / TENSORS_FILE)
            write_json(folder / VALUES_FILE, self._values())

    def save_parts(self, folder: Path) -> None:
        """Write the state into an existing folder that all processes see, each process what it has of the tensors."""
        from torch.distributed import checkpoint

        checkpoint.save(self._tensors(), checkpoint_id=folder)
        if ranks.is_main():
            write_json(folder / VALUES_FILE, self._values())

    def _tensors(self) -> dict[str, Tensor]:
        """Tensors of all networks by name."""
        return {
            f"{prefix_of(name)}{key}": tensor
            for name, network in self.networks.items()
            for key, tensor in network.tensors().items()
        }

    def _values(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "optimizer_step": self.optimizer_step,
            "num_skipped_steps": self.num_skipped_steps,
            "curve": [vars(point) for point in self.curve],
            **{f"{prefix_of(name)}ema_num_updates": n.ema.num_updates for name, n in self.networks.items()},
        }

    def load(self, folder: Path) -> None:
        """Restore what `save` or `save_parts` wrote, whatever the number of processes then and now.

        Raises:
            ValueError: a tensor is missing, left over, or of another shape.
        """
        values = read_json(folder / VALUES_FILE)
        if (folder / TENSORS_FILE).exists():
            tensors = load_file(folder / TENSORS_FILE)
            for name, network in self.networks.items():
                load_weights(network.model, tensors, name)
                load_moments(network, tensors, name)
                load_average(network, tensors, values, name)
        else:
            self._load_parts(folder)
            for name, network in self.networks.items():
                network.ema.num_updates = values[f"{prefix_of(name)}ema_num_updates"]
        self.step = values["step"]
        self.optimizer_step = values["optimizer_step"]
        self.num_skipped_steps = values["num_skipped_steps"]
        self.curve = [CurvePoint(**point) for point in values["curve"]]

    def _load_parts(self, folder: Path) -> None:
        from torch.distributed import checkpoint

        saved = checkpoint.FileSystemReader(folder).read_metadata().state_dict_metadata
        for name, network in self.networks.items():
            for key, parameter in trained(network.model).items():
                if f"{prefix_of(name)}{MOMENTS[0]}.{key}" in saved:
                    network.optimizer.state[parameter] = {
                        key: torch.zeros((), device=parameter.device) if key == "step" else torch.zeros_like(parameter)
                        for key in MOMENTS
                    }
        tensors = self._tensors()
        if tensors.keys() != saved.keys():
            raise ValueError(f"tensors of another model: {sorted(tensors.keys() ^ saved.keys())[:3]} do not match")
        with warnings.catch_warnings():
            # That there is one process is no news.
            warnings.filterwarnings("ignore", ".*assuming the intent is to load in a single process", UserWarning)
            checkpoint.load(tensors, checkpoint_id=folder)


def prefix_of(network: str) -> str:
    """What comes before the names of a network's tensors and values."""
    return "" if network == PRODUCT else f"networks.{network}."


def _group(tensors: Mapping[str, Tensor], network: str, group: str) -> dict[str, Tensor]:
    """A network's tensors named `group.NAME`, by NAME."""
    prefix = f"{prefix_of(network)}{group}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@torch.no_grad()
def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], network: str = PRODUCT) -> None:
    """Give a model the raw weights of a network in a training state, which holds what is not frozen.

    Raises:
        ValueError: names or shapes are not the model's.
    """
    saved = _group(tensors, network, "model")
    parameters = trained(model)
    if parameters.keys() != saved.keys():
        raise ValueError(f"tensors of another model: {sorted(parameters.keys() ^ saved.keys())[:3]} do not match")
    for name, parameter in parameters.items():
        if parameter.shape != saved[name].shape:
            raise ValueError(f"{name} has shape {tuple(saved[name].shape)}, expected {tuple(parameter.shape)}")
        parameter.copy_(shard_like(saved[name], parameter))


def load_average(network: Trained, tensors: Mapping[str, Tensor], values: Mapping[str, Any], name: str) -> None:
    """Go on from the average of a network in a training state; one of another model is a ValueError."""
    network.ema.load(_group(tensors, name, "ema"), values[f"{prefix_of(name)}ema_num_updates"])


def load_moments(network: Trained, tensors: Mapping[str, Tensor], name: str) -> None:
    """Go on from the optimizer's moments of a network in a training state; none at all is a new optimizer.

    Raises:
        ValueError: some parameters have moments and others do not, or they have another shape.
    """
    groups = {key: _group(tensors, name, key) for key in MOMENTS}
    parameters = trained(network.model)
    if not any(groups.values()):
        return
    for moment, group in groups.items():
        if group.keys() != parameters.keys():
            raise ValueError(f"the saved optimizer has no {moment} for some parameters")
    for key, parameter in parameters.items():
        if not groups["exp_avg"][key].shape == groups["exp_avg_sq"][key].shape == parameter.shape:
            raise ValueError(f"the saved moments of {key} have another shape")
        network.optimizer.state[parameter] = {
            "step": groups["step"][key].to(parameter.device),
            "exp_avg": shard_like(groups["exp_avg"][key], parameter),
            "exp_avg_sq": shard_like(groups["exp_avg_sq"][key], parameter),
        }
