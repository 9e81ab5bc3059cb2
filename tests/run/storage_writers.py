"""Run every kind of writer on a disk that refuses: `python tests/run/storage_writers.py FOLDER FAULT...`, for a test.

A FAULT is `full` or `read-only`, for which FOLDER/FAULT becomes a small tmpfs (in a namespace of this process: run it
under `unshare -rm`), or `limit`, where no file may grow beyond a few bytes. Each writer is called twice: while the disk
refuses, and after it was mended. What happened is printed as JSON by fault and writer.
"""

import json
import logging
import os
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from halfstep.data.corpora.stories import stories
from halfstep.data.packing.documents import store_documents
from halfstep.data.packing.shards import pack_documents
from halfstep.data.tokenizer import train_bpe_tokenizer
from halfstep.model.config import DenoiserConfig
from halfstep.model.denoiser import Denoiser
from halfstep.run.faults import fault_line
from halfstep.run.files import atomic_path, file_hash, write_json
from halfstep.samplers.base import Samples
from halfstep.samples.table import Batch, write_samples
from halfstep.training.checkpoint import CheckpointFolder
from halfstep.training.ema import EMA
from halfstep.training.state import Trained, TrainState

SMALL, LARGE = 32 * 1024, 64 * 1024 * 1024
"""Bytes the disk holds before and after it is mended; every writer needs more than the first."""

RANDOM = random.Random(0)
WORDS = ["".join(RANDOM.choices("abcdefghijklmnopqrstuvwxyz", k=9)) for _ in range(4000)]
TEXTS = [" ".join(WORDS[start : start + 50]) for start in range(0, len(WORDS), 50)]


def writers(folder: Path, source: Path) -> dict[str, Callable[[], object]]:
    """What to call, by the name of what it writes into `folder`; `source` is on a disk with room."""
    tokenizer = train_bpe_tokenizer(TEXTS, 4000)
    documents = store_documents(TEXTS * 20, None, source)
    denoiser = Denoiser(DenoiserConfig(400, 399, 16, 32, 1, 2, 8, 0.0, 1e-3))
    optimizer = torch.optim.SGD(denoiser.parameters(), lr=0.0)
    state = TrainState({"model": Trained(denoiser, optimizer, EMA(denoiser, 0.9))}, step=7)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(2**31, size=(64, 400)))
    batch = Batch(
        "ancestral",
        "num_steps=4",
        4,
        range(64),
        [-1] * 64,
        Samples(tokens, torch.ones(64), torch.ones_like(tokens), torch.zeros(64)),
    )

    def whole_folder(name: str, save: Callable[[Path], object]) -> None:
        with atomic_path(folder / name) as temporary:
            temporary.mkdir()
            save(temporary)

    def packed(temporary: Path) -> None:
        pack_documents(
            documents,
            np.ones(len(documents), np.bool_),
            tokenizer,
            temporary,
            "train",
            context_length=16,
            tokens_per_shard=2**20,
            num_workers=1,
            on_documents=lambda done, note: None,
        )

    def corpus() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            store_documents(stories(3000, 0), None, Path(temporary))

    return {
        "denoiser": lambda: whole_folder("denoiser", denoiser.save_pretrained),
        "tokenizer": lambda: whole_folder("tokenizer", tokenizer.save_pretrained),
        "tokens": lambda: whole_folder("tokens", packed),
        "checkpoint": lambda: CheckpointFolder(folder / "work").save(state),
        "samples.parquet": lambda: write_samples(
            folder / "samples.parquet", [batch], decode=lambda ids: str(ids), metadata={}
        ),
        "metrics.json": lambda: write_json(folder / "metrics.json", WORDS * 2),
        "corpus": corpus,
    }


def break_disk(fault: str, folder: Path) -> None:
    """Make `folder` refuse."""
    if fault == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL // 4, resource.RLIM_INFINITY))
        return
    options = f"size={SMALL}" + (",ro" if fault == "read-only" else "")
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)


def mend_disk(fault: str, folder: Path) -> None:
    """Have it take anything."""
    if fault == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return
    subprocess.run(["mount", "-o", f"remount,rw,size={LARGE}", folder], check=True)


def files_in(folder: Path) -> dict[str, str]:
    """Path and hash of what a reader could take for a result: locks, which are empty, are none."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): file_hash(path) for path in files}


def attempt(write: Callable[[], object]) -> dict[str, Any]:
    """What calling a writer came to."""
    try:
        write()
    except Exception as error:
        return {"line": fault_line(error), "error": repr(error)}
    return {"line": None, "error": None}


def try_writers(fault: str, folder: Path, source: Path) -> dict[str, dict[str, Any]]:
    """What every writer came to, by name; both folders exist."""
    os.environ["DVC_ROOT"] = str(folder)
    found = {}
    for name, write in writers(folder, source).items():
        break_disk(fault, folder)
        refused = attempt(write)
        left = files_in(folder)
        mend_disk(fault, folder)
        again = attempt(write)
        found[name] = {**refused, "left": left, "again": again["error"], "written": files_in(folder)}
        if fault == "limit":
            for path in sorted(folder.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
        else:
            subprocess.run(["umount", folder], check=True)
    return found


def main(root: Path, *faults: str) -> None:
    logging.disable()
    found = {}
    for fault in faults:
        folder, source = root / fault, root / f"{fault}, source"
        folder.mkdir()
        source.mkdir()
        found[fault] = try_writers(fault, folder, source)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
