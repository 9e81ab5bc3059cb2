"""What pip-audit knows of the pinned dependencies, and what bandit finds in our code: reports, which fail nothing.

pip-audit asks an index for vulnerabilities; if it has none, or is not reached, a line says so.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PIP_AUDIT = (
    "pip_audit", "--requirement", "constraints.txt", "--no-deps", "--disable-pip", "--timeout", "5",
    "--progress-spinner", "off", "--format", "json",
)  # fmt: skip
BANDIT = ("bandit", "--quiet", "--configfile", "pyproject.toml", "--recursive", "src", "stages", "pipeline", "scripts")
LIMIT_SECONDS = 25


def report(module: str, *arguments: str) -> subprocess.CompletedProcess[str] | None:
    """Run a tool; None, and a line that says why, where it is not there or takes too long."""
    command = [sys.executable, "-m", module, *arguments]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"{module}: no answer within {LIMIT_SECONDS} s, nothing reported")
        return None
    if f"No module named {module}" in done.stderr:
        print(f"{module}: not installed, nothing reported; install it with: pip install -c constraints.txt '.[audit]'")
        return None
    return done


def report_dependencies() -> None:
    done = report(*PIP_AUDIT)
    if done is None:
        return
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        print(f"pip-audit: no report ({lines[-1].strip()[:200] if lines else 'it said nothing'})")
        return
    known = [entry for entry in found if "vulns" in entry]
    print(f"pip-audit: the index knows {len(known)} of {len(found)} pinned dependencies")
    for entry in known:
        for problem in entry["vulns"]:
            fixed = ", ".join(problem["fix_versions"]) or "no version"
            print(f"pip-audit: {entry['name']} {entry['version']}: {problem['id']}, fixed in {fixed}")


def report_code() -> None:
    done = report(*BANDIT)
    if done is not None:
        # On stderr it speaks of its own workings, which matter only where it found no end.
        print(done.stdout.strip() or ("bandit: nothing found" if not done.returncode else done.stderr.strip()))


if __name__ == "__main__":
    report_dependencies()
    report_code()
