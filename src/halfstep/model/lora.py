"""LoRA through peft: a pair of small matrices beside each of a network's own, the base, which are frozen.

A folder holds them as peft itself reads them, and the hashes of the base's files. The base lies in a folder of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from torch import nn

from halfstep.model.loading import ANOTHER, CONFIG_FILE, HUB_WEIGHTS, check_tensors, read_safetensors, read_values
from halfstep.run.errors import UserError, one_line
from halfstep.run.files import file_hash, write_json
from halfstep.run.fits import check_peft

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"
BASE_FILE = "base.json"
ADAPTER_FILES = (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, BASE_FILE)


@dataclass(frozen=True)
class Adapter:
    """What there is to an adapter beside its weights.

    Attributes:
        base: folder of the model that it changes.
        hashes: of the base's files, by name.
        rank: of the product of two matrices.
        alpha: alpha / rank times the product is added to the base's matrix.
        targets: layers of the network that are changed, by the ends of their names.
        is_transposed: the network's matrices are stored as GPT-2's are.
    """

    base: str
    hashes: dict[str, str]
    rank: int
    alpha: int
    targets: tuple[str, ...]
    is_transposed: bool


def add_adapter(
    network: "PreTrainedModel", base: Path | None, *, rank: int, alpha: int, targets: Sequence[str] | None
) -> Adapter:
    """Freeze a network and give it an adapter, in place, that changes nothing yet; torch's own generator draws it.

    Args:
        base: folder that the network was read from; None where nothing is written.
        rank, alpha, targets: see `Adapter`; None are all linear layers.
    Raises:
        UserError: it has no layer of a name, or peft is not installed.
    """
    from transformers.pytorch_utils import Conv1D

    layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    for target in targets or ():
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            ends = sorted({name.rpartition(".")[2] for name in layers})
            raise UserError(
                f"distill.lora.targets has {target}, but the linear layers of {base or 'the teacher'} are"
                f" {', '.join(ends)}; null is all"
            )
    is_transposed = any(isinstance(module, Conv1D) for module in layers.values())
    hashes = {} if base is None else hashes_of(base)
    adapter = Adapter(str(base), hashes, rank, alpha, tuple(sorted(targets or layers)), is_transposed)
    _inject(adapter, network)
    return adapter


def _inject(adapter: Adapter, network: "PreTrainedModel", *, without_memory: bool = False) -> None:
    check_peft()
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        target_modules=list(adapter.targets),
        fan_in_fan_out=adapter.is_transposed,
    )
    inject_adapter_in_model(config, network, low_cpu_mem_usage=without_memory)


def matrices_of(network: nn.Module) -> dict[str, nn.Parameter]:
    """An adapter's matrices in a network, under the names that peft gives them in its files."""
    return {
        f"base_model.model.{name.replace('.default.', '.')}": parameter
        for name, parameter in network.named_parameters()
        if ".lora_" in name
    }


def write_adapter(adapter: Adapter, network: nn.Module, folder: Path) -> None:
    """Write an adapter into an existing folder; float32, byte for byte repeatable."""
    values = {
        "peft_type": "LORA",
        "base_model_name_or_path": adapter.base,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "target_modules": list(adapter.targets),
        "fan_in_fan_out": adapter.is_transposed,
        "inference_mode": True,
    }
    write_json(folder / ADAPTER_CONFIG_FILE, values)
    write_json(folder / BASE_FILE, adapter.hashes)
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in matrices_of(network).items()}
    save_file(tensors, folder / ADAPTER_WEIGHTS_FILE, metadata={"format": "pt"})


def read_adapter(folder: Path) -> tuple[Adapter, Path]:
    """The adapter of a folder without its weights, and the folder of its base.

    Raises:
        UserError: a file is broken, or the base is not there, or is another.
    """
    path = folder / ADAPTER_CONFIG_FILE
    values, hashes = read_values(path), read_values(folder / BASE_FILE)
    try:
        adapter = Adapter(
            str(values["base_model_name_or_path"]),
            dict(hashes),
            int(values["r"]),
            int(values["lora_alpha"]),
            tuple(map(str, values["target_modules"])),
            bool(values["fan_in_fan_out"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not as halfstep writes it ({one_line(error)}); {ANOTHER}") from None
    # Beside it, wherever the project was moved to, or as it was named.
    places = (folder.parent / Path(adapter.base).name, Path(adapter.base))
    base = next((place for place in places if place.is_dir()), None)
    if base is None:
        raise UserError(
            f"{folder} is an adapter of {adapter.base}, which is not there: put that model beside it (dvc pull"
            f" {adapter.base})"
        )
    if hashes_of(base) != adapter.hashes:
        raise UserError(f"{folder} is an adapter of another {base}: put back the one it was trained on, or dvc repro")
    return adapter, base


def hashes_of(base: Path) -> dict[str, str]:
    """Hashes of a model's files on which an adapter depends, by name."""
    return {path.name: file_hash(path) for path in (base / CONFIG_FILE, *sorted(base.glob(HUB_WEIGHTS)))}


def load_adapter(adapter: Adapter, network: "PreTrainedModel", folder: Path) -> None:
    """Freeze a network and give it the adapter of a folder, in place.

    Raises:
        UserError: a tensor is missing, left over, or of another shape, or peft is not installed.
    """
    path = folder / ADAPTER_WEIGHTS_FILE
    tensors = read_safetensors(path)
    try:
        # A configuration may state any size.
        _inject(adapter, network, without_memory=True)
    except ValueError as error:
        raise UserError(f"{folder} does not fit {adapter.base} ({one_line(error)}); {ANOTHER}") from None
    places = matrices_of(network)
    check_tensors(tensors, {name: place.shape for name, place in places.items()}, path)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = {names[id(place)]: tensors[name].float() for name, place in places.items()}
    network.load_state_dict(found, strict=False, assign=True)


def merge_adapter(network: "PreTrainedModel") -> None:
    """Add an adapter's products to the matrices that it changes, in place, and leave them out."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [(name, module) for name, module in network.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, layer in layers:
        layer.merge()
        network.set_submodule(name, layer.get_base_layer())
    del network.peft_config
