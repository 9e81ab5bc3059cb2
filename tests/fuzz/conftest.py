"""Bad input, tried by the hundred.

`HALFSTEP_FUZZ=30 python -m pytest tests/fuzz` tries thirty times as many random examples as the suite does, other ones
each time, and the cases that are too large for it; at the end it says how many inputs of each kind were tried.
"""

import os
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from halfstep.run import console
from halfstep.run.errors import UserError

FACTOR = int(os.environ.get("HALFSTEP_FUZZ", "1"))
TRIED: Counter[str] = Counter()
"""Inputs by kind and by what became of them."""

WAY_OUT = re.compile(
    r"\b(give|set|take|correct|make|write|unpack|convert|put|name|compose it|use|train|say|narrower"
    r"|dvc (exp run|repro))\b"
)
MAX_MESSAGE = 1500

Snapshot = dict[str, bytes | str]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if FACTOR > 1:
        terminalreporter.section("inputs tried")
        for kind, count in sorted(TRIED.items()):
            terminalreporter.write_line(f"{count:7} {kind}")


@pytest.fixture(scope="session")
def examples() -> Callable[[int], Any]:
    """A decorator's settings: so many examples in the suite."""
    return _examples


def _examples(count: int) -> Any:
    return settings(
        max_examples=count * FACTOR,
        derandomize=FACTOR == 1,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def is_one_line(message: str) -> bool:
    """Whether a message is one line that a terminal shows as it is, of bearable length."""
    return message.isprintable() and len(message) <= MAX_MESSAGE


@pytest.fixture(scope="session")
def attempt() -> Callable[..., Any]:
    """Try an input of a kind: what the function returns, or None where it was refused as a user's mistake is.

    A refusal is one line, which has all of `named` in it and a way out; any other exception fails the test.
    """

    def attempt(kind: str, function: Callable[[], Any], *named: str) -> Any:
        try:
            result = function()
        except UserError as error:
            message = str(error)
            assert is_one_line(message), message
            assert WAY_OUT.search(message), message
            for name in named:
                assert name in message, message
            TRIED[f"{kind}: refused"] += 1
            return None
        TRIED[f"{kind}: accepted"] += 1
        return result

    return attempt


@pytest.fixture(scope="session")
def refuse(attempt: Callable[..., Any]) -> Callable[..., None]:
    """`attempt` for an input that must be refused."""
    accepted = object()

    def refuse(kind: str, function: Callable[[], Any], *named: str) -> None:
        assert attempt(kind, lambda: (function(), accepted), *named) is None, f"{kind}: was accepted"

    return refuse


def snapshot_of(folder: Path) -> Snapshot:
    """Every file, link and folder with what is in it, but for the project's own scratch space."""
    found: Snapshot = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.split("/")[0] == ".halfstep":
            continue
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[name] = path.read_bytes()
        elif not path.is_dir():
            found[name] = "neither file nor folder"
    return found


@pytest.fixture
def run_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., str]]:
    """Run a stage's command in this process, in `tmp_path`; it must refuse its input and leave the folder as it was.

    Returns the one line it wrote.
    """
    import signal

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))

    def run(kind: str, main: Callable[..., None], *arguments: str, named: tuple[str, ...] = ()) -> str:
        before = snapshot_of(tmp_path)
        monkeypatch.setattr(sys, "argv", ["stage", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            console.run(main)
        output = capfd.readouterr()
        text = output.out + output.err
        assert left.value.code == console.EXIT_USER_ERROR, text
        assert "Traceback" not in text
        assert "Exception ignored" not in text
        line = text.strip().splitlines()[-1]
        assert line.startswith("error: ")
        assert text.count("error: ") == 1, text
        assert is_one_line(line), line
        assert WAY_OUT.search(line), line
        for name in named:
            assert name in line, line
        assert snapshot_of(tmp_path) == before
        scratch = tmp_path / ".halfstep"
        assert [path for path in scratch.rglob("*") if path.is_file() and path.suffix != ".lock"] == []
        TRIED[f"{kind}, through a stage: refused"] += 1
        return line

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def mutated() -> Callable[[bytes, int], bytes]:
    """Bytes with a few of them changed, cut off, doubled or thrown in, decided by a seed."""

    def mutated(data: bytes, seed: int) -> bytes:
        draw = random.Random(seed)
        changed = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(changed) + 1)
            match draw.randrange(5):
                case 0 if at < len(changed):
                    changed[at] ^= 1 << draw.randrange(8)
                case 1:
                    changed[at:at] = draw.randbytes(draw.randint(1, 8))
                case 2:
                    del changed[at : at + draw.randint(1, 64)]
                case 3:
                    changed[at:at] = changed[at : at + draw.randint(1, 64)]
                case _ if draw.random() < 0.3:
                    del changed[at:]
        return bytes(changed)

    return mutated
