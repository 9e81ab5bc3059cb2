"""Do one piece of work once and print the process's peak memory: `python -m benchmarks.peak REQUEST`."""

import json
import sys

import torch

from benchmarks.sizes import Size
from benchmarks.work import build
from halfstep.run.device import autocast, peak_memory_bytes, set_num_threads


def main(request: str) -> None:
    """Print {"peak_bytes", "before_bytes"} of the work that a JSON object names, on an accelerator of its memory."""
    wanted = json.loads(request)
    set_num_threads(wanted["num_threads"])
    device = torch.device(wanted["device"])
    work = build(wanted["work"], Size(**wanted["size"]), num_steps=wanted["num_steps"], dt=wanted["dt"], device=device)

    def peak() -> int:
        return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory_bytes()

    before = peak()
    with autocast(device, wanted["precision"]):
        getattr(work, wanted["which"])()
    print(json.dumps({"peak_bytes": peak(), "before_bytes": before}))


if __name__ == "__main__":
    main(sys.argv[1])
