"""The batch scripts, run by bash with programs of our own in place of Slurm's and DVC's."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.composed import composed

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path for path in (ROOT / "scripts" / "slurm").iterdir())
JOB = "4711"

# Slurm runs a copy of the script, under another name and with another working directory.
SBATCH = """#!/usr/bin/env bash
cp "$1" spooled
export SLURM_SUBMIT_DIR=$PWD
shift
cd /
exec bash "$SLURM_SUBMIT_DIR/spooled" "$@"
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then printf '%s\\n' node-a node-b; else echo "$*" >> "$CALLS/scontrol"; fi
"""
# As DVC does: the stage is a child that $SHELL starts, its failure is another exit code, and SIGTERM is not passed on.
DVC = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "$CALLS/dvc"
printf '%s\\n' "$MASTER_ADDR" "$MASTER_PORT" "$SRUN_CPUS_PER_TASK" > "$CALLS/environment"
[[ -v CODE ]] && exit "$CODE"
"$SHELL" --noprofile --norc -c "$CALLS/../bin/stage" &
wait $! || exit 255
"""
STAGE = """#!/usr/bin/env bash
trap 'echo checkpoint >> "$CALLS/stage"; exit 143' TERM
touch "$CALLS/started"
while :; do sleep 0.02; done
"""


class Cluster:
    """A project's folder, and what was called from it."""

    def __init__(self, path: Path) -> None:
        self.project, self.calls = path / "a project", path / "calls"
        self.calls.mkdir()
        shutil.copytree(ROOT / "scripts", self.project / "scripts")
        (path / "bin").mkdir()
        for name, text in {"sbatch": SBATCH, "scontrol": SCONTROL, "dvc": DVC, "stage": STAGE}.items():
            (path / "bin" / name).write_text(text)
            (path / "bin" / name).chmod(0o755)
        self.environment = {
            "PATH": f"{path / 'bin'}{os.pathsep}{os.environ['PATH']}", "CALLS": str(self.calls), "SLURM_JOB_ID": JOB,
            "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4",
            "SLURM_CPUS_PER_TASK": "16",
        }  # fmt: skip

    def submit(self, script: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["sbatch", f"scripts/slurm/{script}", *arguments],
            cwd=self.project,
            env=self.environment | environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    def called(self, name: str) -> list[str] | None:
        """What was written of a program's calls; None if there was none."""
        path = self.calls / name
        return path.read_text().splitlines() if path.exists() else None


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", [path for path in SCRIPTS if path.suffix == ".sbatch"], ids=lambda path: path.name)
def test_a_job_asks_for_the_signal_and_may_be_queued_again(script: Path) -> None:
    options = [line.removeprefix("#SBATCH ") for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    assert "--requeue" in options
    assert [option for option in options if option.startswith("--signal=B:TERM@")]
    assert "--open-mode=append" in options, "a job that runs again would write over its first log"


@pytest.mark.parametrize("script", ["experiment.sbatch", "multinode.sbatch"])
def test_sigterm_reaches_the_stage_once_and_queues_the_job_again(cluster: Cluster, script: str) -> None:
    job = cluster.submit(script, "-S", "seed=1")
    while not (cluster.calls / "started").exists():
        assert job.poll() is None
        time.sleep(0.01)
    job.send_signal(signal.SIGTERM)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) == 255
    assert cluster.called("stage") == ["checkpoint"]
    assert cluster.called("scontrol") == [f"requeue {JOB}"]


@pytest.mark.parametrize(("code", "is_requeued"), [(0, False), (2, False), (255, False), (143, True)])
def test_only_what_a_signal_stopped_is_queued_again(cluster: Cluster, code: int, is_requeued: bool) -> None:
    job = cluster.submit("experiment.sbatch", CODE=str(code))
    assert job.wait(timeout=60) == code
    assert cluster.called("scontrol") == ([f"requeue {JOB}"] if is_requeued else None)


def test_a_job_stopped_between_stages_is_queued_again(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "bin" / "dvc").write_text('#!/usr/bin/env bash\n: > "$CALLS/started"\nexec sleep 60\n')
    job = cluster.submit("experiment.sbatch")
    while not (cluster.calls / "started").exists():
        assert job.poll() is None
        time.sleep(0.01)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) == 143
    assert cluster.called("scontrol") == [f"requeue {JOB}"]


def test_an_array_runs_a_line_of_a_file(cluster: Cluster) -> None:
    lines = ["-S seed=1", "-S 'sample.num_steps=[4, 16]' -S rounds=2"]
    (cluster.project / "sweep.txt").write_text("\n".join(lines) + "\n")
    task = {"SLURM_ARRAY_JOB_ID": "12", "CODE": "0"}
    assert cluster.submit("experiment.sbatch", "sweep.txt", SLURM_ARRAY_TASK_ID="2", **task).wait(timeout=60) == 0
    overrides = ["-S", "sample.num_steps=[4, 16]", "-S", "rounds=2"]
    assert cluster.called("dvc") == ["exp", "run", "--temp", "--name", "slurm-12-2", *overrides]
    beyond = cluster.submit("experiment.sbatch", "sweep.txt", SLURM_ARRAY_TASK_ID="3", **task)
    assert "sweep.txt has no line 3" in beyond.communicate(timeout=60)[1]
    assert beyond.returncode != 0


def test_nodes_meet_at_the_first_one(cluster: Cluster) -> None:
    assert cluster.submit("multinode.sbatch", "-S", "preset=paper", CODE="0").wait(timeout=60) == 0
    called = cluster.called("dvc")
    assert (called[:2], set(called[2::2]), called[-1]) == (["exp", "run"], {"-S"}, "preset=paper")
    launch = yaml.safe_load(composed(*called[3::2]))["launch"]
    starts = {"num_nodes": 2, "processes_per_node": 4, "start_with": ["srun", "--ntasks-per-node=1"]}
    assert {name: launch[name] for name in starts} == starts
    assert cluster.called("environment") == ["node-a", str(20000 + int(JOB)), "16"]
