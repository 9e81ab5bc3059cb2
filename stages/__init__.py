"""One thin command per DVC stage: parse, call the library, write.

Python runs this file before every stage. It has the stage run the code beside it, and says so where this Python is too
old for that or lacks the packages; a Python too old can read it.
"""

import os
import sys

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_SOURCE = os.path.join(_ROOT, "src")

# 1. A Python that can run the stages.
_lack = ""
if sys.version_info < (3, 11):  # noqa: UP036
    _lack = "is older than 3.11"
elif sys.argv[:1] == ["-m"]:  # a stage is about to run; who imports one has packages of their own
    import re
    import tomllib
    from importlib.metadata import PackageNotFoundError, distribution

    _missing = []
    with open(os.path.join(_ROOT, "pyproject.toml"), "rb") as _file:
        for _requirement in tomllib.load(_file)["project"]["dependencies"]:
            _name = re.split(r"[^\w.-]", _requirement)[0]
            try:
                distribution(_name)
            except PackageNotFoundError:
                _missing.append(_name)
    if _missing:
        _lack = "lacks " + ", ".join(_missing[:3])
        if len(_missing) > 3:
            _lack += " and " + str(len(_missing) - 3) + " more packages"
if _lack:
    sys.stderr.write("error: " + sys.executable + " (Python " + sys.version.split()[0] + ") " + _lack)
    sys.stderr.write(": give `make setup`, then `. .venv/bin/activate`, then the same command\n")
    sys.exit(2)

# 2. The code beside this file, whatever copy is installed or in PYTHONPATH; also for the processes that a stage starts.
from importlib.util import find_spec  # noqa: E402

_spec = find_spec("halfstep")
_found = os.path.dirname(os.path.dirname(_spec.origin)) if _spec and _spec.origin else _SOURCE
sys.path.insert(0, _SOURCE)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_SOURCE, os.environ.get("PYTHONPATH")]))
if os.path.realpath(_found) != os.path.realpath(_SOURCE):
    if "halfstep" in sys.modules:
        raise ImportError("halfstep was imported from " + _found + " before the stages of " + _ROOT)
    sys.stderr.write("runs the code in " + _SOURCE + "; this Python's own halfstep, in " + _found + ", is not used\n")
