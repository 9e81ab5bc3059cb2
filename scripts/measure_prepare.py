"""Memory and speed of the stage `prepare` on synthetic text of several sizes, killed on the way where asked.

    python scripts/measure_prepare.py FOLDER 100MB 1GB 5GB --tokenizer my/gpt2
    python scripts/measure_prepare.py FOLDER 1GB --kill-at 0.3 --kill-at 0.7 --tokenizer my/gpt2

Each size is made (scripts/synthetic_text.py) and prepared in FOLDER, in a fresh process whose memory, that of its child
processes included, is read twice a second. A kill is a SIGKILL to the stage's process, when so much of the training
documents is done; the stage is then started again. Without a tokenizer each sentence is one token: that takes
little time, and as much reading. Prints a Markdown table and draws FOLDER/memory.png from all runs
that FOLDER holds; a run that was killed is compared with the one of the same size that was not.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import psutil
import typer
import yaml

from halfstep.data.packing.shards import num_cores, num_documents_packed
from halfstep.data.tokens.manifest import read_manifest
from halfstep.run import console
from halfstep.run.errors import UserError
from halfstep.run.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
SECONDS_BETWEEN_SAMPLES = 0.5
MIB = 2**20


def main(
    folder: Annotated[Path, typer.Argument(help="Where texts and runs lie; twice the text's size is needed.")],
    sizes: Annotated[list[str], typer.Argument(help="100MB, 5GB, ... (none: only the table).")] = [],  # noqa: B006
    tokenizer: Annotated[Path | None, typer.Option(help="A folder (one token for each sentence).")] = None,
    num_workers: Annotated[int | None, typer.Option(min=1, help="Processes (all cores).")] = None,
    context_length: Annotated[int, typer.Option(min=8)] = 1024,
    tokens_per_shard: Annotated[int, typer.Option(min=8)] = 2**26,
    kill_at: Annotated[list[float], typer.Option(help="Shares of the documents at which to kill.")] = [],  # noqa: B006
) -> None:
    """Measure prepare."""
    mpl.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer or sentence_tokenizer(folder / "sentences")
    for size in sizes:
        text = (folder / f"text-{size}").resolve()
        if not text.is_dir():
            subprocess.run([sys.executable, ROOT / "scripts/synthetic_text.py", size, text], check=True)
        data = {
            "source": "text", "path": str(text), "text_column": "text", "split_on_blank_lines": 1,
            "context_length": context_length, "tokens_per_shard": tokens_per_shard, "valid_fraction": 0.01,
            "max_documents": None, "num_workers": num_workers, "cloze": None,
            "tokenizer": {"source": str(tokenizer.resolve()), "vocab_size": None, "revision": None},
        }  # fmt: skip
        name = f"{size}-killed" if kill_at else size
        record = measured(
            folder / f"run-{name}", data, kill_at, num_bytes=sum(f.stat().st_size for f in text.iterdir())
        )
        write_json(folder / f"{name}.json", record)
    records = {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}
    print_table(records, num_workers or num_cores())
    draw(records, folder / "memory.png")


def sentence_tokenizer(folder: Path) -> Path:
    """A tokenizer that knows where sentences end, and nothing else."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(".", behavior="merged_with_previous")
    special_tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special_tokens).save_pretrained(folder)
    return folder


def measured(run: Path, data: dict[str, Any], kill_at: list[float], *, num_bytes: int) -> dict[str, Any]:
    """Prepare in `run`, from its start or after each kill, and give what was seen."""
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8")) | {"data": data}
    (run / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    samples: list[list[float]] = []
    kills = []
    started = time.monotonic()
    for share in [*sorted(kill_at), None]:
        begun = time.monotonic()
        killed_at = prepare(run, share, data["valid_fraction"], samples, started)
        if share is not None:
            kills.append({"share": share, "documents": killed_at, "seconds": time.monotonic() - begun})
    manifest = read_manifest(run / "data/tokens")
    shards = [*manifest.train.shards, *manifest.valid.shards]
    log = (run / "log.txt").read_text(encoding="utf-8")
    counts = re.findall(r"(\d+) documents, (\d+) tokens,", log)
    return {
        "num_bytes": num_bytes,
        "num_documents": sum(int(num_documents) for num_documents, _ in counts),
        "num_tokens": sum(int(num_tokens) for _, num_tokens in counts),
        "seconds": time.monotonic() - started,
        "reading_seconds": next(sample[0] for sample in samples if sample[3]),
        "tokens_bytes": sum(shard.num_bytes for shard in shards),
        "sha256": {shard.file: shard.sha256 for shard in shards},
        "kills": kills,
        "samples": samples,
    }


def prepare(run: Path, share: float | None, valid_fraction: float, samples: list[list[float]], started: float) -> int:
    """Run the stage to its end, or kill it; add (seconds, MiB of all processes, MiB of the main one, processes)."""
    environment = {**os.environ, "DVC_ROOT": str(run.resolve()), "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    with (run / "log.txt").open("ab") as log:
        process = psutil.Popen(
            [sys.executable, "-m", "stages.prepare"], cwd=run, env=environment, stdout=log, stderr=log
        )
        while process.poll() is None:
            work = next((run / ".halfstep/work").glob("prepare-*/"), run)
            done = num_documents_packed(work, "train")
            sizes = [rss(child) for child in [process, *children(process)]]
            num_tokenizing = sum(child > 0 for child in sizes[1:])
            samples.append([time.monotonic() - started, sum(sizes) / MIB, sizes[0] / MIB, num_tokenizing])
            if share is not None and done >= share * (1 - valid_fraction) * num_documents(run):
                process.send_signal(signal.SIGKILL)
                process.wait()
                return done
            time.sleep(SECONDS_BETWEEN_SAMPLES)
    if process.returncode:
        raise UserError(f"prepare failed in {run}: {(run / 'log.txt').read_text()[-2000:]}")
    return 0


def num_documents(run: Path) -> float:
    """Training documents as the stage shows them; infinite before it does."""
    found = re.findall(r"tokenizing train: \d+/(\d+)", (run / "log.txt").read_text())
    return float(found[-1]) if found else float("inf")


def children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def rss(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return 0


def print_table(records: dict[str, dict[str, Any]], num_workers: int) -> None:
    """One line for each run."""
    print("| text | documents | tokens | seconds | tokens/s | tokens/s a core | peak memory | of the main process |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, record in sorted(records.items(), key=lambda item: (item[1]["num_bytes"], item[0])):
        rate = record["num_tokens"] / record["seconds"]
        peak, main_peak = (max(sample[column] for sample in record["samples"]) for column in (1, 2))
        print(
            f"| {name} | {record['num_documents']:,} | {record['num_tokens']:,} | {record['seconds']:,.0f} |"
            f" {rate:,.0f} | {rate / num_workers:,.0f} | {peak:,.0f} MiB | {main_peak:,.0f} MiB |"
        )
    for name, record in records.items():
        for kill in record["kills"]:
            print(f"{name}: killed after {kill['seconds']:.0f} s, with {kill['documents']} training documents noted")
        whole = records.get(name.removesuffix("-killed"))
        if record["kills"] and whole:
            same = sum(whole["sha256"].get(file) == digest for file, digest in record["sha256"].items())
            print(f"{name}: {same} of {len(whole['sha256'])} shards have the hash of the run that was not killed")


def draw(records: dict[str, dict[str, Any]], path: Path) -> None:
    """Memory over the share of the time, a line for each run."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for name, record in sorted(records.items(), key=lambda item: item[1]["num_bytes"]):
        seconds, total, *_ = zip(*record["samples"], strict=True)
        share = [100 * second / record["seconds"] for second in seconds]
        axes.plot(share, total, label=f"{name}, {record['seconds']:.0f} s", linewidth=1)
    axes.set(xlabel="share of the run [%]", ylabel="memory of all processes [MiB]", ylim=(0, None), xlim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    console.run(main)
