"""Everything a training run is at one moment: saved whole or in parts, restored strictly."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from halfstep.run import ranks
from halfstep.run.files import read_json, write_json
from halfstep.training.ema import EMA
from halfstep.training.sharding import as_part_of, is_sharded, whole

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
class TrainState:
    """Model, optimizer, average, and where the run stands.

    Randomness and the data's position are functions of (seed, step), so the step says it all.

    Attributes:
        model: raw weights.
        optimizer: AdamW over the model's parameters.
        ema: average of the weights.
        step: steps made in this run, those included whose update was skipped.
        optimizer_step: likewise since the optimizer was new; more than `step` when it was carried over.
        num_skipped_steps: steps of this run whose loss or gradient was not finite and that changed no weight.
        curve: what was logged so far.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMA
    step: int = 0
    optimizer_step: int = 0
    num_skipped_steps: int = 0
    curve: list[CurvePoint] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write the state into an existing folder; float32 tensors, byte for byte repeatable.

        Of several processes all must call this; the main one writes.
        """
        tensors = {}
        for name, tensor in self._tensors().items():
            tensor = whole(tensor)
            if ranks.is_main():
                tensors[name] = tensor.cpu().contiguous()
        if ranks.is_main():
            self._write(tensors, folder)

    def save_parts(self, folder: Path) -> None:
        """Write the state into an existing folder that all processes see, each process what it has of the tensors."""
        from torch.distributed import checkpoint

        checkpoint.save(self._tensors(), checkpoint_id=folder)
        if ranks.is_main():
            write_json(folder / VALUES_FILE, self._values())

    def save_alone(self, folder: Path) -> None:
        """`save` by this process, whichever it is, without the others.

        Raises:
            ValueError: it has only a part of the tensors.
        """
        if is_sharded(self.model):
            raise ValueError("this process has only a part of the training state")
        self._write({name: tensor.cpu().contiguous() for name, tensor in self._tensors().items()}, folder)

    def _write(self, tensors: dict[str, Tensor], folder: Path) -> None:
        save_file(tensors, folder / TENSORS_FILE)
        write_json(folder / VALUES_FILE, self._values())

    def _tensors(self) -> dict[str, Tensor]:
        """All tensors by name: `model.NAME`, `ema.NAME`, and the optimizer's moments if it has any."""
        tensors = {f"model.{name}": p.detach() for name, p in self.model.named_parameters()}
        tensors |= {f"ema.{name}": average for name, average in self.ema.average.items()}
        for name, parameter in self.model.named_parameters():
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"{key}.{name}": moments[key] for key in MOMENTS if key in moments}
        return tensors

    def _values(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "optimizer_step": self.optimizer_step,
            "num_skipped_steps": self.num_skipped_steps,
            "ema_num_updates": self.ema.num_updates,
            "curve": [vars(point) for point in self.curve],
        }

    def load(self, folder: Path) -> None:
        """Restore what `save`, `save_parts` or `save_alone` wrote, whatever the number of processes then and now.

        Raises:
            ValueError: a tensor is missing, left over, or of another shape.
        """
        values = read_json(folder / VALUES_FILE)
        if (folder / TENSORS_FILE).exists():
            tensors = load_file(folder / TENSORS_FILE)
            load_parameters(self.model, take_group(tensors, "model"))
            self.ema.load(take_group(tensors, "ema"), values["ema_num_updates"])
            load_moments(self.optimizer, self.model, tensors)
        else:
            self._load_parts(folder)
            self.ema.num_updates = values["ema_num_updates"]
        self.step = values["step"]
        self.optimizer_step = values["optimizer_step"]
        self.num_skipped_steps = values["num_skipped_steps"]
        self.curve = [CurvePoint(**point) for point in values["curve"]]

    def _load_parts(self, folder: Path) -> None:
        from torch.distributed import checkpoint

        saved = checkpoint.FileSystemReader(folder).read_metadata().state_dict_metadata
        if any(name.startswith(f"{MOMENTS[0]}.") for name in saved):
            for parameter in self.model.parameters():
                self.optimizer.state[parameter] = {
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


def take_group(tensors: dict[str, Tensor], group: str) -> dict[str, Tensor]:
    """The tensors named `group.NAME`, by NAME."""
    prefix = f"{group}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@torch.no_grad()
def load_parameters(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy tensors into a model's parameters.

    Raises:
        ValueError: names or shapes are not the model's.
    """
    parameters = dict(model.named_parameters())
    if parameters.keys() != tensors.keys():
        raise ValueError(f"tensors of another model: {sorted(parameters.keys() ^ tensors.keys())[:3]} do not match")
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, expected {tuple(parameter.shape)}")
        parameter.copy_(as_part_of(tensors[name], parameter))


def load_moments(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give the optimizer the moments in `exp_avg.NAME`, `exp_avg_sq.NAME`, `step.NAME`; none at all is a new one.

    Raises:
        ValueError: some parameters have moments and others do not, or they have another shape.
    """
    groups = {key: take_group(tensors, key) for key in MOMENTS}
    names = [name for name, _ in model.named_parameters()]
    if not any(groups.values()):
        return
    for key, group in groups.items():
        if group.keys() != set(names):
            raise ValueError(f"the saved optimizer has no {key} for some parameters")
    for name, parameter in model.named_parameters():
        if not groups["exp_avg"][name].shape == groups["exp_avg_sq"][name].shape == parameter.shape:
            raise ValueError(f"the saved moments of {name} have another shape")
        optimizer.state[parameter] = {
            "step": groups["step"][name].to(parameter.device),
            "exp_avg": as_part_of(groups["exp_avg"][name], parameter),
            "exp_avg_sq": as_part_of(groups["exp_avg_sq"][name], parameter),
        }
