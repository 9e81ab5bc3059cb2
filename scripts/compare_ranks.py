"""What the number of processes changes: curves of training, a run that goes on with fewer, samples and metrics.

    python scripts/compare_ranks.py /tmp/ranks

Runs the stages themselves at the smoke preset in a new folder, with dropout, and prints Markdown tables. On a machine
with several GPUs: --device cuda.
"""

import csv
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

PROJECT = Path(__file__).resolve().parents[1]
COLUMNS = ("loss", "grad_norm", "valid_loss")


class Pipeline:
    """The stages, run in a folder with its own parameters."""

    def __init__(self, folder: Path, overrides: Iterable[str]) -> None:
        from dvc.utils.hydra import compose_and_dump

        self.folder = folder
        folder.mkdir(parents=True)
        self.params = folder / "params.yaml"
        conf = PROJECT / "pipeline"
        compose_and_dump(self.params, str(conf / "conf"), None, "config", str(conf / "plugins"), list(overrides))

    def start(self, stage: str, *arguments: str, layout: str, processes: int) -> subprocess.Popen[bytes]:
        """Start a stage; `layout` is ddp or fsdp."""
        text = self.params.read_text()
        text = text.replace("processes_per_node: 1", f"processes_per_node: {processes}")
        params = self.folder / f"params-{layout}-{processes}.yaml"
        params.write_text(text.replace("strategy: ddp", f"strategy: {layout}"))
        command = [sys.executable, "-m", f"stages.{stage}", *arguments, "--params", str(params)]
        paths = os.pathsep.join([str(PROJECT), str(PROJECT / "src")])
        environment = {**os.environ, "PYTHONPATH": paths, "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder}/mlflow.db"}
        return subprocess.Popen(command, cwd=self.folder, env=environment)

    def run(self, stage: str, *arguments: str, layout: str = "ddp", processes: int = 1) -> float:
        """Run a stage from the start to its end; returns the seconds it took."""
        shutil.rmtree(self.folder / ".halfstep" / "work", ignore_errors=True)
        started = time.monotonic()
        self._end(self.start(stage, *arguments, layout=layout, processes=processes))
        return time.monotonic() - started

    def run_interrupted(self, stage: str, *arguments: str, layout: str, processes: Iterable[int], steps: int) -> None:
        """Run a stage with ever other numbers of processes, ended by SIGTERM but for the last."""
        shutil.rmtree(self.folder / ".halfstep" / "work", ignore_errors=True)
        *first, last = processes
        for turn, number in enumerate(first, 1):
            process = self.start(stage, *arguments, layout=layout, processes=number)
            while self._newest_step() < steps * turn and process.poll() is None:
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            if (code := process.wait()) != 128 + signal.SIGTERM:
                sys.exit(f"{stage} with {number} processes ended with exit code {code}, not 143")
        self._end(self.start(stage, *arguments, layout=layout, processes=last))

    def _newest_step(self) -> int:
        steps = (self.folder / ".halfstep" / "work").glob("*/step-*")
        return max((int(path.name.removeprefix("step-")) for path in steps), default=0)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        if code := process.wait():
            sys.exit(code)

    def curve(self, name: str) -> list[dict[str, str]]:
        with (self.folder / name).open() as file:
            return list(csv.DictReader(file))

    def hashes(self, *names: str) -> list[str]:
        files = [file for name in names for file in sorted(self.folder.glob(f"{name}/*") or [])]
        files += [self.folder / name for name in names if (self.folder / name).is_file()]
        return [hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in files]


def largest_differences(curve: list[dict[str, str]], other: list[dict[str, str]]) -> dict[str, float]:
    """The largest absolute difference of each column."""
    pairs = list(zip(curve, other, strict=True))
    return {name: max(abs(float(a[name]) - float(b[name])) for a, b in pairs if a[name]) for name in COLUMNS}


def main(
    folder: Annotated[Path, typer.Argument(help="New, for everything that is written.")],
    num_steps: Annotated[int, typer.Option(min=10)] = 200,
    processes: Annotated[str, typer.Option(help="Numbers to compare with one process.")] = "2,4",
    device: Annotated[str, typer.Option(help="cpu | cuda")] = "cpu",
) -> None:
    """Compare one process with several."""
    numbers = [int(number) for number in processes.split(",")]
    pipeline = Pipeline(
        folder.resolve(),
        [
            "preset=smoke", "rounds=1", f"runtime.device={device}", "runtime.num_threads=1", "model.dropout=0.1",
            f"pretrain.num_train_steps={num_steps}", f"pretrain.num_accumulation_steps={max(numbers)}",
            "pretrain.log_every_steps=1", "pretrain.validate_every_steps=50", "pretrain.checkpoint_every_steps=5",
        ],
    )  # fmt: skip
    pipeline.run("prepare")
    seconds = pipeline.run("pretrain", "--model", "models/0", "--curve", "one.csv")
    one = pipeline.curve("one.csv")
    lines = [f"| one | {seconds:.0f} | | | |"]
    for layout in ("ddp", "fsdp"):
        for number in numbers:
            name = f"{layout}-{number}"
            seconds = pipeline.run(
                "pretrain", "--model", name, "--curve", f"{name}.csv", layout=layout, processes=number
            )
            found = largest_differences(one, pipeline.curve(f"{name}.csv"))
            lines.append(
                f"| {number}, {layout} | {seconds:.0f} | " + " | ".join(f"{v:.1e}" for v in found.values()) + " |"
            )
        chain = [*sorted(numbers, reverse=True), 1]
        name = f"{layout}-chain"
        third = num_steps // (len(chain) + 1)
        pipeline.run_interrupted(
            "pretrain", "--model", name, "--curve", f"{name}.csv", layout=layout, processes=chain, steps=third
        )
        found = largest_differences(one, pipeline.curve(f"{name}.csv"))
        shown = " then ".join(map(str, chain))
        lines.append(f"| {shown}, {layout} | | " + " | ".join(f"{value:.1e}" for value in found.values()) + " |")
    print(f"\n{num_steps} steps, losses from {float(one[0]['loss']):.4f} to {float(one[-1]['loss']):.4f}\n")
    print("| processes | seconds | loss | gradient norm | validation loss |\n| --- | --- | --- | --- | --- |")
    print("\n".join(lines))

    pipeline.run("baseline")
    written = {}
    for number in (1, numbers[0]):
        samples, metrics = f"samples-{number}", f"metrics-{number}"
        pipeline.run("sample", "0", "--samples", samples, processes=number)
        judged = ["--samples", "samples-1", "--metrics", f"{metrics}.json", "--csv-folder", metrics]
        pipeline.run("evaluate", "0", *judged, processes=number)
        written[number] = pipeline.hashes(samples, metrics, f"{metrics}.json")
    print(f"\n| file | one | {numbers[0]} |\n| --- | --- | --- |")
    names = ["continuations.parquet", "unconditional.parquet", "rows.csv", "samples.csv", "metrics"]
    for name, alone, together in zip(names, *written.values(), strict=True):
        print(f"| {name} | {alone} | {'the same' if alone == together else together} |")


if __name__ == "__main__":
    typer.run(main)
