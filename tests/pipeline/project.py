"""A copy of the project in a repository of its own, in which tests run stages through DVC."""

import copy
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

CANARY = "canary-4f1d9c"
SECRETS = dict.fromkeys(
    ("HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "MY_API_KEY"), CANARY
)
"""In the environment of every command, and to be found nowhere else."""

IDENTITY = {
    "GIT_AUTHOR_NAME": "test",
    "GIT_AUTHOR_EMAIL": "test@example.invalid",
    "GIT_COMMITTER_NAME": "test",
    "GIT_COMMITTER_EMAIL": "test@example.invalid",
}


class Project:
    """A copy of the project's files in a repository of its own, at a path with a space in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, path / name)
        for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "start"]):
            self.run("git", *command)

    def clone(self, path: Path) -> "Project":
        """What someone else gets from the Git repository."""
        self.run("git", "clone", "--quiet", str(self.path), str(path))
        clone = copy.copy(self)
        clone.path = path
        return clone

    def run(self, *command: str, code: int | None = 0) -> str:
        """Run a command in the project; its output, both streams together."""
        binaries = str(Path(sys.executable).parent)
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_", "GIT_", "AWS_"))
        }
        environment |= (
            SECRETS
            | IDENTITY
            | {
                "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
                "HF_HUB_OFFLINE": "1",
            }
        )
        done = subprocess.run(
            command,
            cwd=self.path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert code is None or done.returncode == code, done.stdout[-4000:]
        assert CANARY not in done.stdout
        return done.stdout

    def dvc(self, *arguments: str, code: int | None = 0) -> str:
        return self.run(sys.executable, "-m", "dvc", *arguments, code=code)


def stages_run(output: str) -> list[str]:
    """The stages that DVC ran, in order."""
    return re.findall(r"Running stage '([^']+)'", output)
