"""Kill the pipeline at random moments, over its whole graph, and see that it ends in the same bytes.

    python tests/soak/soak.py FOLDER [--preset smoke] [--target evaluate] [--num-kills 50] [--seed 0]

In FOLDER/undisturbed one clone of this repository runs to its end, in FOLDER/killed another is killed (SIGKILL to its
whole process group) and started again. Each kill comes after a random time, drawn so that the kills spread over what is
left to do. Prints a line for each kill; exit code 0 if every output that does not hold times has the same hash. Leaves
kills.json and hashes.json in FOLDER.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer
import yaml

ROOT = Path(__file__).parents[2]
WITH_TIMES = ("latency", "report", "track")
STARTING_SECONDS = 10.0
"""Of DVC and a stage, before the work goes on."""

GIT_NAMES = {
    f"GIT_{who}_{what}": "soak@example.invalid" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
}


def main(
    folder: Annotated[Path, typer.Argument(help="Where the clones are made, or are already.")],
    preset: Annotated[str | None, typer.Option(help="Preset; none is the committed params.yaml.")] = None,
    target: Annotated[str | None, typer.Option(help="The last stages; none is the whole graph.")] = None,
    num_kills: Annotated[int, typer.Option(min=0)] = 50,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
) -> None:
    """Kill the pipeline at random moments and compare its outputs with those of a run that was left alone."""
    folder = folder.resolve()
    undisturbed, killed = (_clone(folder / name) for name in ("undisturbed", "killed"))
    command = [sys.executable, "-m", "dvc", *(["exp", "run", "-S", f"preset={preset}"] if preset else ["repro"])]
    command += [target] if target else []
    expected, seconds = _hashes(undisturbed), _stage_seconds(undisturbed)
    if not seconds:
        seconds = _run_to_end(command, undisturbed)
        expected = _hashes(undisturbed)
    whole = sum(seconds.values())
    print(f"undisturbed: {whole:.0f} s, {len(expected)} outputs", flush=True)

    draw = random.Random(seed)
    kills = []
    started = time.monotonic()
    while len(kills) < num_kills:
        left = whole - sum(seconds.get(stage, 0.0) for stage in _stages_done(killed))
        delay = draw.uniform(0, 2 * (max(left, 0) / (num_kills - len(kills)) + STARTING_SECONDS))
        output, is_done = _run_for(command, killed, delay)
        if is_done:
            print("the pipeline ended before the last kills", flush=True)
            break
        kills.append(_describe(output, delay, time.monotonic() - started))
        print(f"kill {len(kills):2d}: {json.dumps(kills[-1])}", flush=True)
    _run_to_end(command, killed)
    total = time.monotonic() - started
    found = _hashes(killed)
    # What was left undisturbed may have gone beyond the target.
    names = found.keys() if target else expected.keys() | found.keys()
    different = sorted(name for name in names if expected.get(name) != found.get(name))
    lost = (total - whole) / max(len(kills), 1)
    print(
        f"{len(kills)} kills in {total:.0f} s, undisturbed {whole:.0f} s: {lost:.1f} s a kill, starting again included"
    )
    print(f"{len(names) - len(different)} of {len(names)} outputs have the same hash; different: {different}")
    (folder / "kills.json").write_text(json.dumps(kills, indent=1) + "\n", encoding="utf-8")
    (folder / "hashes.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    sys.exit(1 if different or not found else 0)


def _clone(path: Path) -> Path:
    if not path.is_dir():
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(path)], check=True)
    return path


def _start(command: list[str], project: Path) -> tuple[subprocess.Popen[bytes], Path]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_"))}
    paths = [str(project / "src"), str(project)]
    binaries = str(Path(sys.executable).parent)
    environment |= GIT_NAMES | {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    log = project.with_suffix(".log")
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=project, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    return process, log


def _run_for(command: list[str], project: Path, seconds: float) -> tuple[str, bool]:
    """(what it printed, whether it came to its end before it was killed)."""
    process, log = _start(command, project)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return log.read_text(errors="replace"), False
    output = log.read_text(errors="replace")
    if code:
        sys.exit(f"the pipeline failed by itself with exit code {code}:\n{output[-3000:]}")
    return output, True


def _run_to_end(command: list[str], project: Path) -> dict[str, float]:
    """Run, and give the seconds between the stages' beginnings."""
    process, log = _start(command, project)
    begun: dict[str, float] = {}
    while process.poll() is None:
        for stage in re.findall(r"Running stage '([^']+)'", log.read_text(errors="replace")):
            begun.setdefault(stage, time.monotonic())
        time.sleep(0.2)
    if process.returncode:
        sys.exit(f"the pipeline failed with exit code {process.returncode}:\n{log.read_text(errors='replace')[-3000:]}")
    moments = [*begun.values(), time.monotonic()]
    seconds = {stage: end - start for stage, (start, end) in zip(begun, pairwise(moments), strict=True)}
    (project.parent / f"{project.name}.seconds.json").write_text(json.dumps(seconds))
    return seconds


def _stage_seconds(project: Path) -> dict[str, float]:
    """As `_run_to_end` left them; empty if no run has come to its end."""
    path = project.parent / f"{project.name}.seconds.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _locked(project: Path) -> dict:
    lock = project / "dvc.lock"
    return (yaml.safe_load(lock.read_text()) or {}).get("stages", {}) if lock.is_file() else {}


def _stages_done(project: Path) -> list[str]:
    return list(_locked(project))


def _hashes(project: Path) -> dict[str, str]:
    return {
        out["path"]: out["md5"]
        for stage, lock in _locked(project).items()
        if stage not in WITH_TIMES
        for out in lock.get("outs", [])
    }


def _describe(output: str, delay: float, moment: float) -> dict[str, object]:
    running = re.findall(r"Running stage '([^']+)'", output)
    # A checkpoint's step, or a number of batches; not the word of DVC about stages it skipped.
    went_on = re.findall(r"^(\S+: goes on after .*)$", output, flags=re.MULTILINE)
    return {
        "moment": round(moment, 1),
        "after_seconds": round(delay, 1),
        "stage": running[-1] if running else None,
        "went_on": went_on,
    }


if __name__ == "__main__":
    typer.run(main)
