"""The rules of the house: who may import whom, what DVC is told, and that params.yaml is composed."""

import ast
import hashlib
import os
import re
import runpy
import shutil
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import yaml

from halfstep.settings.evaluation import FrontierSettings
from halfstep.settings.graph import frontiers_of, models_of, schedule_of
from halfstep.settings.plugins import plugin_names

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
STAGES = sorted(path for path in (ROOT / "stages").glob("*.py") if path.name != "__init__.py")

# A room imports only rooms before it. Rooms of the first group say how a command runs and what a person looks at: DVC
# does not watch them, and no result depends on them. Which files of the user `run` finds is part of the hashes in
# inputs/, on which the stages that read them depend.
ROOMS = (
    "settings", "run", "diffusion", "data", "model", "samplers", "objectives", "metrics", "samples", "tracking",
    "training", "evaluation", "report", "tools",
)  # fmt: skip
NOT_WATCHED = {"run", "settings", "tracking", "report", "tools"}
# Beyond the order: what is wrong with a parameter is an error as any other.
MAY_ALSO_IMPORT = {"settings": {"halfstep.run.errors"}}
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
    return modules_imported_in(ast.parse(file.read_text(encoding="utf-8")), file)


def modules_imported_in(tree: ast.AST, file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            assert node.module is not None
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= members
            if not all(map(module_file, members)):
                names.add(node.module)
    return {name for name in names if not name.startswith("halfstep") or module_file(name)}


def made_imports(file: Path) -> set[str]:
    """`imported_modules` without those for type checkers."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    return modules_imported_in(tree, file)


def files_behind(file: Path) -> set[Path]:
    """The files of ours that a script imports, directly or through others, with their packages.

    Imports for type checkers are never made, and decide nothing.
    """
    seen: set[Path] = set()
    pending = [file]
    while pending:
        for name in made_imports(pending.pop()):
            parts = name.split(".")
            for end in range(1, len(parts) + 1):
                found = module_file(".".join(parts[:end])) if parts[0] == "halfstep" else None
                if found and found not in seen:
                    seen.add(found)
                    pending.append(found)
    return seen


def room_of(module: str) -> str | None:
    """The room of a module of ours; None for the package itself and for what is not ours."""
    parts = module.split(".")
    return parts[1] if parts[0] == "halfstep" and len(parts) > 1 else None


def module_name(file: Path) -> str:
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_rooms_import_only_rooms_before_them() -> None:
    violations = []
    for file in sorted(SOURCE.rglob("*.py")):
        module = module_name(file)
        if (room := room_of(module)) is None:
            continue
        allowed = {None, *ROOMS[: ROOMS.index(room) + 1]}
        for name in sorted(imported_modules(file) - MAY_ALSO_IMPORT.get(room, set()) - {"halfstep.run"}):
            is_outside = name.split(".")[0] in ("stages", "benchmarks")
            if is_outside or room_of(name) not in allowed or {room, room_of(name)} == {"diffusion", "model"}:
                violations.append(f"{file.relative_to(ROOT)} imports {name}")
    assert violations == []


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    """Imports inside functions count, those for type checkers do not: they are never made."""
    imports = {module_name(file): made_imports(file) for file in SOURCE.rglob("*.py")}
    graph = {module: {name for name in names if name in imports} - {module} for module, names in imports.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"imports in a circle: {error.args[1]}") from None


def test_the_mathematics_needs_only_torch() -> None:
    for file in (SOURCE / "halfstep" / "diffusion").glob("*.py"):
        roots = {name.split(".")[0] for name in imported_modules(file)}
        assert roots <= MATHEMATICS_MAY_IMPORT, file


def test_only_tracking_imports_mlflow_and_no_stage_another_stage() -> None:
    for file in [*SOURCE.rglob("*.py"), *STAGES]:
        roots = {name.split(".")[0] for name in imported_modules(file)}
        assert "stages" not in roots, file
        if room_of(module_name(file)) != "tracking" if file.is_relative_to(SOURCE) else True:
            assert "mlflow" not in roots, file


SCRIPTS = {"rival": "baseline"}
"""Of stages that are called otherwise."""


def dvc_stages() -> dict[str, dict]:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return {name: stage.get("do", stage) for name, stage in stages.items()}


def test_every_script_is_a_stage_and_every_stage_runs_its_script() -> None:
    assert {path.stem for path in STAGES} == set(dvc_stages()) - {*SCRIPTS}
    for name, stage in dvc_stages().items():
        assert re.match(rf"python -m stages\.{SCRIPTS.get(name, name)}( |$)", stage["cmd"])


# Of these files one is chosen by a parameter: the stages list it by DVC's template, and no import says which it is.
PLUGINS = {
    "inputs": ["src/halfstep/data/corpora/${data.source}.py"],
    "prepare": ["src/halfstep/data/corpora/${data.source}.py"],
    "distill": ["src/halfstep/objectives/${distill.objective}.py"],
    "frontier": ["src/halfstep/data/corpora/${data.source}.py"],
}


def chosen(name: str) -> set[Path]:
    """The files of plug-ins that a stage may import by a name in the parameters: of a corpus that of the default ones,
    else all."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    names = []
    if name in ("sample", "latency", "frontier"):
        names += [f"samplers/{sampler}" for sampler in plugin_names("halfstep.samplers")]
    if name == "evaluate":
        names += [f"evaluation/metrics/{metric}" for metric in plugin_names("halfstep.evaluation.metrics")]
    if name == "distill":
        names += [f"objectives/{objective}" for objective in plugin_names("halfstep.objectives")]
    if name == "frontier":
        names += [f"data/corpora/{params['data']['source']}"]
    return {SOURCE / "halfstep" / f"{name}.py" for name in names}


def watched_files(name: str) -> set[str]:
    """The files whose change can change what a stage writes: its script, and what it imports of the watched rooms.

    The report and MLflow are what a person looks at: their stages, which are quick, watch how they are made.
    """
    script = ROOT / "stages" / f"{SCRIPTS.get(name, name)}.py"
    rooms = {*ROOMS} - (NOT_WATCHED - {{"report": "report", "track": "tracking"}.get(name)})
    plugins = chosen(name)
    imported = plugins | {file for root in (script, *plugins) for file in files_behind(root)}
    files = {path for path in imported if room_of(module_name(path)) in rooms and path.name != "__init__.py"}
    # A plug-in that a template stands for is listed only where the script imports it whatever is chosen.
    folders = {(ROOT / template).parent for template in PLUGINS.get(name, [])}
    by_template = {path for path in plugins if path.parent in folders} - {script, *files_behind(script)}
    return {path.relative_to(ROOT).as_posix() for path in {script, *files} - by_template}


def is_code(dep: str) -> bool:
    return dep.startswith(("src/", "stages/"))


def covers(listed: str, file: str) -> bool:
    return file == listed or file.startswith(f"{listed}/")


@pytest.mark.parametrize("name", dvc_stages())
def test_dvc_watches_the_code_that_decides_what_a_stage_writes_and_no_other(name: str) -> None:
    """When this fails, `python tests/test_house.py` writes the lists again."""
    listed = {dep for dep in dvc_stages()[name]["deps"] if is_code(dep)}
    plugins = {dep for dep in listed if "${" in dep}
    assert sorted(plugins) == PLUGINS.get(name, [])
    listed -= plugins
    watched = watched_files(name)
    assert [file for file in sorted(watched) if not any(covers(dep, file) for dep in listed)] == []
    assert [dep for dep in sorted(listed) if not any(covers(dep, file) for file in watched)] == []


def test_a_further_plugin_makes_no_stage_stale() -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))

    def filled(dep: str) -> str:
        return re.sub(r"\$\{(\w+)\.(\w+)\}", lambda key: str(params.get(key[1], {}).get(key[2], key[0])), dep)

    further = [re.sub(r"\$\{.*\}", "other", template) for of in PLUGINS.values() for template in of]
    for stage in dvc_stages().values():
        assert not [dep for dep in map(filled, stage["deps"]) for file in further if covers(dep, file)]


def test_the_baseline_watches_neither_diffusion_nor_distillation() -> None:
    listed = [dep for dep in dvc_stages()["baseline"]["deps"] if is_code(dep)]
    assert not [dep for dep in listed if "diffusion" in dep or "sdtt" in dep or "samplers" in dep]


NETWORKS_RUN_IN = {"pretrain", "baseline", "rival", "distill", "sample", "latency", "evaluate", "frontier"}


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("run/errors.py", set()),
        ("tools/cli.py", set()),
        ("report/page.py", set()),
        ("tracking/client.py", set()),
        ("diffusion/schedule.py", NETWORKS_RUN_IN - {"baseline", "rival"}),
        ("model/denoiser.py", NETWORKS_RUN_IN),
        # Files that are not there: what a person adds.
        ("objectives/other.py", set()),
        ("samplers/other.py", set()),
        ("data/other.py", set()),
        ("data/corpora/other.py", set()),
        ("evaluation/metrics/other.py", set()),
    ],
)
def test_a_file_makes_only_the_stages_stale_whose_results_it_decides(file: str, stages: set[str]) -> None:
    """Besides the report and MLflow's runs, which are made again in seconds, and `inputs`, which always runs."""
    listed = {name: filter(is_code, stage["deps"]) for name, stage in dvc_stages().items()}
    stale = {name for name, deps in listed.items() if any(covers(dep, f"src/halfstep/{file}") for dep in deps)}
    assert stale - {"report", "track", "inputs"} == stages


def test_a_models_frontier_watches_every_parameter_of_the_section_but_the_others_samplers() -> None:
    (own,) = [name for name in dvc_stages()["frontier"]["params"] if name.startswith("$")]
    named = {name for name in dvc_stages()["frontier"]["params"] if name.startswith("frontier.")}
    samplers = set(frontiers_of(1, []).values())
    assert own == "${item}"
    assert named | samplers == {f"frontier.{name}" for name in FrontierSettings.model_fields}


def test_params_yaml_is_what_the_groups_compose_to() -> None:
    from tests.composed import composed

    assert composed() == (ROOT / "params.yaml").read_text()


@pytest.mark.parametrize(
    "preset", ["smoke", "laptop", "evening", "gpu", "hub", "hub-smoke", "paper", "paper-medium", "paper-large"]
)
@pytest.mark.parametrize("data", ["stories", "pydocs", "text", "openwebtext", "hub"])
def test_every_preset_composes_with_every_corpus_into_parameters_that_load(preset: str, data: str) -> None:
    from halfstep.tools.planning.compose import composed_params

    if preset.startswith("paper") and data == "stories":
        pytest.skip("the paper's continuations are longer than a story's context")
    missing = {"text": ["data.path=a.txt"], "hub": ["data.hub_id=a/b"]}.get(data, [])
    missing += ["pretrain.init_from=a/c"] if preset.startswith("hub") else []
    params = composed_params([f"preset={preset}", f"data={data}", "rounds=4", *missing], ROOT)
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


# Rooms, or parts of them, that dvc.yaml lists as a whole. Of the others each file is something to choose.
FOLDERS = (
    "data/packing", "data/texts", "data/tokens", "diffusion", "evaluation/lm_eval", "metrics", "model", "report",
    "tracking", "training",
)  # fmt: skip


def dependency_list(name: str) -> list[str]:
    """What dvc.yaml lists of the code that a stage watches: whole folders where there are such, else files."""
    listed = [f"stages/{name}.py"]
    for file in sorted((watched_files(name) | {*PLUGINS.get(name, [])}) - {listed[0]}):
        folder = next((f"src/halfstep/{part}" for part in FOLDERS if covers(f"src/halfstep/{part}", file)), file)
        if folder not in listed:
            listed.append(folder)
    return listed


def write_dependency_lists() -> None:
    """Rewrite the code among the dependencies in dvc.yaml, leaving everything else as it is."""
    lines: list[str] = []
    for line in (ROOT / "dvc.yaml").read_text(encoding="utf-8").splitlines():
        if script := re.match(r"( +)- stages/(\w+)\.py$", line):
            lines += [f"{script[1]}- {dep}" for dep in dependency_list(script[2])]
        elif not re.match(r" +- src/", line):
            lines.append(line)
    (ROOT / "dvc.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(write_dependency_lists())
