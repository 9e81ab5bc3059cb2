"""What is tried again, how often, and what is not."""

import errno
import importlib
from collections.abc import Callable

import pytest

from halfstep.run import retries
from halfstep.run.retries import may_pass, with_retries


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests run offline; these are about being online."""
    monkeypatch.setattr(retries, "_is_offline", lambda: False)


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds between tries, which do not pass."""
    seconds: list[float] = []
    monkeypatch.setattr("time.sleep", seconds.append)
    return seconds


class Read:
    """Fails as often as it has errors, then works."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.num_calls = 0

    def __call__(self) -> str:
        self.num_calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "read"


def _hub_error(name: str, status: int) -> Exception:
    import huggingface_hub.errors as errors

    class Response:
        status_code = status

    error = getattr(errors, name).__new__(getattr(errors, name))
    error.response = Response()
    return error


def _http_error() -> Exception:
    """A broken connection as the hub's library of HTTP raises it, behind an error of transformers'."""
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils import get_session

    transport = type(get_session()).__mro__[0].__module__.partition(".")[0]
    connect_error = importlib.import_module(transport).ConnectError("connection refused")
    not_found = LocalEntryNotFoundError("no copy on the disk")
    not_found.__cause__ = connect_error
    outer = OSError("We couldn't connect to the hub")
    outer.__cause__ = not_found
    return outer


@pytest.mark.parametrize(
    "make",
    [
        lambda: OSError(errno.EIO, "Input/output error"),
        lambda: ConnectionResetError(errno.ECONNRESET, "reset"),
        lambda: TimeoutError("timed out"),
        lambda: _hub_error("HfHubHTTPError", 503),
        lambda: _hub_error("HfHubHTTPError", 429),
        _http_error,
    ],
)
def test_a_read_that_fails_twice_and_then_works_works(make: Callable[[], Exception], slept: list[float]) -> None:
    assert with_retries("file", Read(make(), make())) == "read"
    assert slept == [1.0, 4.0]


def test_the_third_failure_is_the_last(slept: list[float], caplog: pytest.LogCaptureFixture) -> None:
    read = Read(*(OSError(errno.EIO, f"failure {i}") for i in (1, 2, 3)))
    with pytest.raises(OSError, match="failure 3"):
        with_retries("data set a/b", read)
    assert (read.num_calls, slept) == (3, [1.0, 4.0])
    assert len(caplog.messages) == 2
    assert caplog.messages[0] == "data set a/b: [Errno 5] failure 1; tried again in 1 s"


@pytest.mark.parametrize(
    "make",
    [
        lambda: FileNotFoundError(errno.ENOENT, "none"),
        lambda: OSError(errno.ENOSPC, "full"),
        lambda: ValueError("broken JSON"),
        lambda: _hub_error("RepositoryNotFoundError", 404),
        lambda: _hub_error("HfHubHTTPError", 403),
    ],
)
def test_what_would_fail_again_is_not_tried_again(make: Callable[[], Exception], slept: list[float]) -> None:
    read = Read(make())
    with pytest.raises(type(make())):
        with_retries("file", read)
    assert (read.num_calls, slept) == (1, [])


def test_an_answer_for_good_decides_over_a_broken_connection_behind_it() -> None:
    error = _hub_error("RevisionNotFoundError", 404)
    error.__cause__ = ConnectionResetError(errno.ECONNRESET, "reset")
    assert may_pass(error.__cause__)
    assert not may_pass(error)


def test_offline_nothing_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "_is_offline", lambda: True)
    assert not may_pass(ConnectionResetError(errno.ECONNRESET, "reset"))


@pytest.mark.parametrize("kind", ["data set", "cloze", "tokenizer", "denoiser", "baseline", "tokens", "json"])
def test_reads_of_hub_and_disk_go_through_it(
    kind: str, tmp_path, monkeypatch: pytest.MonkeyPatch, write_tokens: Callable[..., None]
) -> None:
    """Each read fails twice at its library's door; the third call gives an error that ends it."""
    import datasets
    import huggingface_hub
    import numpy as np
    import transformers

    from halfstep.data import tokenizer
    from halfstep.data.texts import cloze, hub
    from halfstep.data.tokens import packed as tokens
    from halfstep.model import gpt2 as autoregressive
    from halfstep.model import loading as checkpoint
    from halfstep.run import files

    class Reached(BaseException):
        """No Exception: readers take any of those for a broken file."""

    calls: list[int] = []

    def fail(*args: object, **kwargs: object) -> None:
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionResetError(errno.ECONNRESET, "reset")
        raise Reached

    write_tokens(tmp_path, {"train": np.zeros((2, 3), np.uint16)})
    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fail)
    options = {"config": None, "revision": None, "split": "train", "text_column": "text", "streaming": False}
    reads: dict[str, Callable[[], object]] = {
        "data set": lambda: list(hub.read_hub("a/b", **options)),
        "cloze": lambda: list(cloze.load_cloze("a/b")),
        "tokenizer": lambda: tokenizer.load_tokenizer("a/b"),
        "denoiser": lambda: checkpoint.locate_weights("a/b"),
        "baseline": lambda: autoregressive.load_autoregressive("a/b"),
        "tokens": lambda: tokens.load_tokens(tmp_path, "train")[:1],
        "json": lambda: files.read_json(tmp_path / "a.json"),
    }
    if kind == "tokens":
        monkeypatch.setattr(np, "load", fail)
    if kind == "json":
        monkeypatch.setattr("pathlib.Path.read_text", fail)
    with pytest.raises(Reached):
        reads[kind]()
    assert len(calls) == 3
