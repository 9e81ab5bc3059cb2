"""What DVC runs again when code or a corpus was edited, in copies of the project that only prepare a corpus."""

import json
import re
import sys
import time
from pathlib import Path

import pytest

from tests.pipeline.project import Project, stages_run

pytestmark = pytest.mark.system


def test_a_queued_experiment_runs_the_code_it_was_queued_with(tmp_path: Path) -> None:
    """What was edited since neither runs nor comes back from the run cache."""
    project = Project(tmp_path / "queue")
    command = ["prepare", "-S", "preset=smoke", "-S", "rounds=0", "-S", "seed=77"]
    project.dvc("exp", "run", "--queue", *command)
    corpora = project.path / "src/halfstep/data/corpora/stories.py"
    text = corpora.read_text()
    edited = text.replace("(settings.num_documents, seed)", "(settings.num_documents // 2, seed)")
    assert edited != text
    corpora.write_text(edited)
    # As where the environment is installed from the workspace.
    project.run("env", f"PYTHONPATH={project.path / 'src'}", sys.executable, "-m", "dvc", "queue", "start")
    while re.search(r"Queued|Running", project.dvc("queue", "status")):
        # To ask takes a core for seconds.
        time.sleep(3)
    corpora.write_text(text)
    output = project.dvc("exp", "run", *command)
    assert "Stage 'prepare' is cached" in output
    manifest = json.loads((project.path / "data/tokens/manifest.json").read_text())
    # Of 400 stories; half of them make half as many.
    assert manifest["train"]["num_sequences"] + manifest["valid"]["num_sequences"] == 402


def test_an_edited_corpus_is_prepared_again_and_edited_back_it_is_restored(tmp_path: Path) -> None:
    project = Project(tmp_path / "a project")
    (project.path / "my").mkdir()
    text = "".join(f"The cat number {number} sat on a mat with cat {7 * number}.\n\n" for number in range(200))
    for name in ("a", "b"):
        (project.path / "my" / f"{name}.txt").write_text(text)
    edited = project.path / "my" / "a.txt"
    tokens = project.path / "data" / "tokens" / "manifest.json"

    def repro(project: Project = project) -> str:
        output = project.dvc("repro", "prepare")
        # A corpus without cloze passages.
        assert "is empty" not in output
        return output

    output = project.dvc("exp", "run", "prepare", "-S", "preset=smoke", "-S", "data=text", "-S", "data.path=my/*.txt")
    assert stages_run(output) == ["inputs@prepare", "prepare"]
    assert "is empty" not in output
    first = tokens.read_bytes()
    assert project.run("git", "status", "--short", "--untracked-files=no") == " M params.yaml\n"
    project.run("git", "add", "params.yaml", "dvc.lock")
    project.run("git", "commit", "--quiet", "--message", "results")

    edited.write_text(text.replace("cat", "dog"))
    assert stages_run(repro()) == ["inputs@prepare", "prepare"]
    assert tokens.read_bytes() != first
    (project.path / "dvc.lock").unlink()
    edited.write_text(text)
    output = repro()
    assert stages_run(output) == ["inputs@prepare"]
    assert "Stage 'prepare' is cached" in output
    assert tokens.read_bytes() == first

    # Someone else's clone, which has the results and not the text.
    clone = project.clone(tmp_path / "clone")
    (clone.path / ".dvc/config.local").write_text(f"[cache]\n    dir = {project.path}/.dvc/cache\n")
    clone.dvc("checkout", "prepare", "inputs@prepare")
    output = repro(clone)
    assert stages_run(output) == ["inputs@prepare"]
    assert "data.path=my/*.txt is not on this machine: the hashes recorded before are kept" in output
    assert clone.run("git", "status", "--short") == ""
