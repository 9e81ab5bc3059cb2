"""The rules of the house: who may import whom, what DVC is told, and that params.yaml is composed."""

import ast
import hashlib
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from halfstep.settings import models_of, schedule_of

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
STAGES = sorted(path for path in (ROOT / "stages").glob("*.py") if path.name != "__init__.py")

# Every room, and the rooms it may import from; a module that is in no room may be imported by all.
ROOMS = {
    "halfstep.diffusion": set(),
    "halfstep.model": set(),
    "halfstep.sampling": {"halfstep.diffusion"},
    "halfstep.distillation": {"halfstep.diffusion", "halfstep.sampling"},
    "halfstep.samples.draw": {"halfstep.diffusion", "halfstep.sampling", "halfstep.model"},
    "halfstep.data": set(),
    "halfstep.training": {
        "halfstep.diffusion",
        "halfstep.sampling",
        "halfstep.distillation",
        "halfstep.model",
    },
    "halfstep.evaluation": {
        "halfstep.data",
        "halfstep.diffusion",
        "halfstep.sampling",
        "halfstep.samples.draw",
        "halfstep.model",
    },
    "halfstep.tools.planning": set(),
    "benchmarks": {
        "halfstep.data",
        "halfstep.diffusion",
        "halfstep.sampling",
        "halfstep.distillation",
        "halfstep.model",
        "halfstep.training",
        "halfstep.evaluation",
        "halfstep.tools.planning",
    },
    "halfstep.tools.lm_eval": {"halfstep.data", "halfstep.evaluation", "halfstep.model"},
    "halfstep.tracking": set(),
    "halfstep.report": set(),
}
COMMON = {
    "halfstep", "halfstep.run.errors", "halfstep.metrics.estimate", "halfstep.run.files", "halfstep.data.seeds", "halfstep.run.device",
    "halfstep.run.console", "halfstep.run.work", "halfstep.settings", "halfstep.run.stage_times", "halfstep.run.faults",
    "halfstep.run.inputs", "halfstep.run.launch", "halfstep.run.memory_advice", "halfstep.run.ranks", "halfstep.run.retries",
    "halfstep.run.provenance",
}  # fmt: skip
MATHEMATICS_MAY_IMPORT = {"torch", "math", "dataclasses", "collections", "typing", "halfstep"}


def module_file(module: str) -> Path | None:
    """The file of a module of ours, or None if there is none of that name."""
    path = SOURCE.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def imported_modules(file: Path) -> set[str]:
    """Names of the modules a file imports, at any depth of its code; `from a import b` counts a.b if it is one."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            assert node.module is not None
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in names if not name.startswith("halfstep") or module_file(name)}


def files_behind(file: Path) -> set[str]:
    """The files of ours that a script imports, directly or through others, with their packages and the templates."""
    seen: set[Path] = set()
    pending = [file]
    while pending:
        for name in imported_modules(pending.pop()):
            parts = name.split(".")
            for end in range(1, len(parts) + 1):
                found = module_file(".".join(parts[:end])) if parts[0] == "halfstep" else None
                if found and found not in seen:
                    seen.add(found)
                    pending.append(found)
    if SOURCE / "halfstep" / "report" / "page.py" in seen:
        seen.update((SOURCE / "halfstep" / "templates").glob("*.j2"))
    return {path.relative_to(ROOT).as_posix() for path in seen}


def room_of(module: str) -> str | None:
    return next((room for room in ROOMS if module == room or module.startswith(room + ".")), None)


def module_name(file: Path) -> str:
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_rooms_import_only_what_lies_before_them() -> None:
    violations = []
    for file in sorted(SOURCE.rglob("*.py")):
        room = room_of(module_name(file))
        for name in sorted(imported_modules(file)):
            target = room_of(name)
            if room is None:
                is_allowed = module_name(file) not in COMMON or target is None
            else:
                is_allowed = target in {None, room, *ROOMS[room]}
            if name.split(".")[0] == "stages" or not is_allowed:
                violations.append(f"{file.relative_to(ROOT)} imports {name}")
    assert violations == []


def test_every_module_is_in_a_room_or_known_to_all() -> None:
    strays = {module_name(file) for file in SOURCE.rglob("*.py")} - COMMON - {"halfstep.tools.cli"}
    assert [name for name in sorted(strays) if room_of(name) is None] == []


def test_the_mathematics_needs_only_torch() -> None:
    for file in (SOURCE / "halfstep" / "diffusion").glob("*.py"):
        roots = {name.split(".")[0] for name in imported_modules(file)}
        assert roots <= MATHEMATICS_MAY_IMPORT, file


def test_only_tracking_imports_mlflow_and_no_stage_another_stage() -> None:
    for file in [*SOURCE.rglob("*.py"), *STAGES]:
        roots = {name.split(".")[0] for name in imported_modules(file)}
        assert "stages" not in roots, file
        if module_name(file) != "halfstep.tracking" if file.is_relative_to(SOURCE) else True:
            assert "mlflow" not in roots, file


def dvc_stages() -> dict[str, dict]:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return {name: stage.get("do", stage) for name, stage in stages.items()}


def test_every_script_is_a_stage_and_every_stage_runs_its_script() -> None:
    assert {path.stem for path in STAGES} == set(dvc_stages())
    for name, stage in dvc_stages().items():
        assert re.match(rf"python -m stages\.{name}( |$)", stage["cmd"])


@pytest.mark.parametrize("name", dvc_stages())
def test_dvc_is_told_every_file_of_code_a_stage_imports_and_no_other(name: str) -> None:
    """When this fails, `python tests/test_house.py` writes the lists anew."""
    script = ROOT / "stages" / f"{name}.py"
    listed = {dep for dep in dvc_stages()[name]["deps"] if dep.endswith(".py") or dep.startswith("src/")}
    assert listed == {"stages/__init__.py", f"stages/{name}.py", *files_behind(script)}


def test_params_yaml_is_what_the_groups_compose_to(tmp_path: Path) -> None:
    from dvc.utils.hydra import compose_and_dump

    conf, plugins = ROOT / "pipeline" / "conf", ROOT / "pipeline" / "plugins"
    compose_and_dump(tmp_path / "params.yaml", str(conf), None, "config", str(plugins), [])
    assert (tmp_path / "params.yaml").read_text() == (ROOT / "params.yaml").read_text()


@pytest.mark.parametrize("preset", ["smoke", "laptop", "gpu", "paper", "paper-medium", "paper-large"])
@pytest.mark.parametrize("data", ["stories", "pydocs", "text", "openwebtext", "hub"])
def test_every_preset_composes_with_every_corpus_into_parameters_that_load(
    preset: str, data: str, tmp_path: Path
) -> None:
    from dvc.utils.hydra import compose_and_dump

    from halfstep.settings import load_params

    if preset.startswith("paper") and data == "stories":
        pytest.skip("the paper's continuations are longer than a story's context")
    missing = {"text": ["data.path=a.txt"], "hub": ["data.hub_id=a/b"]}.get(data, [])
    conf, plugins = ROOT / "pipeline" / "conf", ROOT / "pipeline" / "plugins"
    overrides = [f"preset={preset}", f"data={data}", "rounds=4", *missing]
    compose_and_dump(tmp_path / "params.yaml", str(conf), None, "config", str(plugins), overrides)
    params = load_params(tmp_path / "params.yaml")
    assert params.preset == preset
    assert (params.schedule, params.models) == (schedule_of(4), models_of(4))


def test_the_container_file_copies_what_is_there_and_nothing_is_sent_to_its_build_besides() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "Containerfile").read_text(encoding="utf-8"), re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    assert [name for name in names if not (ROOT / name).exists()] == []
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored
    assert {line[1:] for line in ignored if line.startswith("!")} == names


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root becomes a user without a name")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is missing")
def test_dvc_runs_as_a_user_without_a_name_in_the_containers_environment(tmp_path: Path) -> None:
    lines = re.findall(r"^ENV (.+)$", (ROOT / "Containerfile").read_text(encoding="utf-8"), re.MULTILINE)
    variables = dict(pair.split("=", 1) for line in lines for pair in line.split())
    assert variables.pop("HOME") == "/home/halfstep"
    nobody = 54321
    os.chown(tmp_path, nobody, nobody)
    # May read what others may not, as the image's packages, and write to nothing but its own.
    user = ["setpriv", f"--reuid={nobody}", "--clear-groups", "--inh-caps=+dac_read_search"]
    user += ["--ambient-caps=+dac_read_search", sys.executable, "-m", "dvc"]
    environment = variables | {"PATH": os.environ["PATH"], "HOME": "/", "PYTHONDONTWRITEBYTECODE": "1"}
    for command in (["init", "--no-scm"], ["status"]):
        done = subprocess.run([*user, *command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_checkout_on_windows_has_the_same_bytes(tmp_path: Path) -> None:
    """DVC hashes them, so that other line ends would make every stage stale."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git repository")
    options = ["--quiet", "--config", "core.autocrlf=true", "--config", "core.eol=crlf"]
    subprocess.run(["git", "clone", *options, str(ROOT), str(tmp_path / "clone")], check=True)
    tree = ["git", "-C", str(tmp_path / "clone"), "ls-tree", "-r", "-z", "--format=%(objectname) %(path)", "HEAD"]
    for entry in filter(None, subprocess.check_output(tree, text=True).split("\0")):
        object_name, name = entry.split(" ", 1)
        content = (tmp_path / "clone" / name).read_bytes()
        assert hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == object_name, name


def test_stages_find_a_python_where_the_path_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    runpy.run_path(str(ROOT / "pipeline/plugins/hydra_plugins/halfstep_rounds.py"))
    assert shutil.which("python") == str(Path(sys.executable).with_name("python"))


def write_dependency_lists() -> None:
    """Rewrite the code files among the dependencies in dvc.yaml, leaving everything else as it is."""
    lines: list[str] = []
    for line in (ROOT / "dvc.yaml").read_text(encoding="utf-8").splitlines():
        script = re.match(r"( +)- stages/([a-z]\w*)\.py$", line)
        if script:
            files = files_behind(ROOT / "stages" / f"{script[2]}.py")
            lines += [line, *(f"{script[1]}- {file}" for file in ["stages/__init__.py", *sorted(files)])]
        elif not re.match(r" +- (src/|stages/__init__)", line):
            lines.append(line)
    (ROOT / "dvc.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(write_dependency_lists())
