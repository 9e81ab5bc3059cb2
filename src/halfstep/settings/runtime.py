"""Where and how a stage computes."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, model_validator

from halfstep.settings.base import MAX_WORKERS, Settings


class RuntimeSettings(Settings):
    """Where a stage computes: device, thread count (null: all cores), precision of the networks, and whether
    `torch.compile` is to make their blocks faster in training, after a wait at the start."""

    device: Literal["auto", "cpu", "cuda"]
    num_threads: Annotated[int, Field(gt=0, le=MAX_WORKERS)] | None
    precision: Literal["auto", "fp32", "bf16"]
    compile: bool


class LaunchSettings(Settings):
    """How the work of a stage is laid out on devices and machines; it decides no result, so DVC does not watch it.

    One process computes on one device. `start_with` are the words before the command that start it once on every
    node, such as `[srun, --ntasks-per-node=1]`; without them each node is given the same command by hand. The nodes
    meet at `rendezvous` (`HOST:PORT` of the first one; null: `MASTER_ADDR:MASTER_PORT`, or this machine).
    `max_restarts` is how often all processes start again, from the last checkpoint, after one was lost.
    `timeout_seconds` is how long a process waits for the others. `strategy` is `ddp` (every device has the whole
    model) or `fsdp` (weights, gradients, optimizer and average are spread over the devices), which holds for a
    round's teacher only with `shard_teacher`. `gradient_checkpointing` computes the blocks' activations twice, and
    does not keep them.
    """

    num_nodes: Annotated[int, Field(gt=0, le=MAX_WORKERS)]
    processes_per_node: Annotated[int, Field(gt=0, le=MAX_WORKERS)]
    start_with: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)]
    rendezvous: Annotated[str, Field(pattern=r"^[\w.:\[\]-]+:\d{1,5}$")] | None
    max_restarts: Annotated[int, Field(ge=0, le=MAX_WORKERS)]
    timeout_seconds: PositiveFloat
    strategy: Literal["ddp", "fsdp"]
    shard_teacher: bool
    gradient_checkpointing: bool

    @property
    def num_processes(self) -> int:
        """Of all nodes, one for each device."""
        return self.num_nodes * self.processes_per_node

    @model_validator(mode="after")
    def _nodes_can_meet(self) -> "LaunchSettings":
        if self.start_with and self.num_nodes == 1:
            raise ValueError("start_with starts the command on other nodes, but num_nodes is 1")
        return self
