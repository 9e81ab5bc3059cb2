"""`halfstep try`: what a browser is answered."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPResponse
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from starlette.applications import Starlette
from typer.testing import CliRunner

from halfstep.run.errors import UserError
from halfstep.samplers import SAMPLERS
from halfstep.samplers.base import Samples
from halfstep.settings.plugins import plugin_names
from halfstep.tools import generate
from halfstep.tools.cli import app
from halfstep.tools.try_page import HOST, MAX_BODY_BYTES, app_of, models_beside, settings_example

pytestmark = pytest.mark.stage
TIMEOUT = 60.0
"""Seconds until what should happen is given up."""
ASKED = {
    "model": "denoiser", "prompt": "the cat", "chat": False, "sampler": None, "settings": "", "evaluations": 4,
    "temperature": None, "length": None, "seed": 5,
}  # fmt: skip


class Client:
    def __init__(self, port: int) -> None:
        self.port = port

    def open(self, method: str, path: str, body: str = "", **headers: str | None) -> tuple[HTTPConnection, Any]:
        connection = HTTPConnection(HOST, self.port, timeout=TIMEOUT)
        usual = {"Host": f"{HOST}:{self.port}", "Origin": f"http://{HOST}:{self.port}"}
        named = {name: value for name, value in {**usual, **headers}.items() if value is not None}
        connection.request(method, path, body, named)
        return connection, connection.getresponse()

    def write(self, **changes: Any) -> tuple[HTTPConnection, HTTPResponse]:
        return self.open("POST", "/write", json.dumps({**ASKED, **changes}))

    def answer(self, **changes: Any) -> tuple[int, str]:
        _, response = self.write(**changes)
        return response.status, response.read().decode()

    def events(self, **changes: Any) -> list[dict[str, Any]]:
        status, text = self.answer(**changes)
        assert status == 200, text
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[[Starlette], Client]]:
    started = []

    def start(served: Starlette) -> Client:
        listener = socket.create_server((HOST, 0))
        server = uvicorn.Server(uvicorn.Config(served, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        started.append((server, thread))
        return Client(listener.getsockname()[1])

    yield start
    for server, _ in started:
        server.should_exit = True
    for _, thread in started:
        thread.join()


@pytest.fixture(scope="module")
def client(folders: dict[str, Path], serve: Callable[[Starlette], Client]) -> Client:
    return serve(app_of(folders["denoiser"], "cpu", lambda: False))


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


WAYS = [
    {"sampler": None},
    {"model": "causal", "temperature": 0.5},
    {"sampler": "ancestral", "evaluations": 20, "prompt": "", "length": 30},
    {"sampler": "remask", "settings": "--schedule rescale --eta 1", "evaluations": 30, "chat": True},
    *({"sampler": name, "settings": settings_example(name)} for name in plugin_names(SAMPLERS)),
]


@pytest.mark.parametrize("changes", WAYS, ids=str)
def test_what_is_shown_is_what_generate_prints(changes: dict[str, Any], client: Client, folders: dict) -> None:
    asked = {**ASKED, **changes}
    before = tree(folders["denoiser"].parents[1])
    *frames, last = client.events(**changes)
    assert tree(folders["denoiser"].parents[1]) == before
    options = ["--model", folders[asked["model"]], "--prompt", asked["prompt"], "--seed", asked["seed"]]
    options += [word for name in ("temperature", "length") if asked[name] for word in (f"--{name}", asked[name])]
    if asked["sampler"]:
        options += ["--sampler", asked["sampler"], *asked["settings"].split()]
        takes_steps = asked["sampler"] in ("ancestral", "ordered", "remask")
        options += ["--num-steps", asked["evaluations"]] if takes_steps else []
    else:
        options += ["--evaluations", asked["evaluations"]]
    printed = CliRunner().invoke(app, ["generate", *map(str, options), *(["--chat"] if asked["chat"] else [])])
    assert printed.exit_code == 0, printed.output
    assert last["text"] == printed.stdout.removesuffix("\n")
    # Masks become tokens, of which the last frame has all; what is not new was there, or masked again.
    assert None not in frames[-1]["tokens"]
    for old, now in pairwise(frames):
        places = [i for i, (a, b) in enumerate(zip(old["tokens"], now["tokens"], strict=True)) if a is None != b]
        assert now["new"] == [i for i in places if now["tokens"][i] is not None]
        assert now["step"] > old["step"]
        assert now["evaluations"] - old["evaluations"] == (len(now["new"]) > 0)
        assert now["seconds"] >= old["seconds"]
    # As the sampler itself counts them.
    assert frames[-1]["evaluations"] == last["evaluations"] > 0


class SlowDraw:
    """In place of `draw`: writes a token, waits until it may go on, writes another, and so on."""

    def __init__(self) -> None:
        self.may_go_on, self.has_ended, self.last_step = threading.Event(), threading.Event(), 0

    def __call__(self, model: Any, sampler: Any, x_init: torch.Tensor, **options: Any) -> Samples:
        try:
            xt = x_init.clone()
            places = (x_init[0] == options["mask_token_id"]).nonzero()[:, 0]
            for step, place in enumerate(places, 1):
                xt[0, place] = x_init[0, 0]
                self.last_step = step
                options["on_step"](step, xt)
                assert self.may_go_on.wait(TIMEOUT)
            counts = torch.tensor([len(places)])
            return Samples(xt, counts, xt, counts)
        finally:
            self.has_ended.set()


def test_one_text_is_written_at_a_time(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowDraw()
    monkeypatch.setattr(generate, "draw", slow)
    _, first = client.write()
    # It is shown while it is written.
    assert [json.loads(first.readline())["step"] for _ in range(2)] == [0, 1]
    assert client.answer() == (429, "another text is being written: try again when it is done")
    slow.may_go_on.set()
    assert "text" in json.loads(first.read().splitlines()[-1])
    assert "text" in client.events()[-1]


def test_a_page_that_is_closed_ends_the_writing(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowDraw()
    monkeypatch.setattr(generate, "draw", slow)
    connection, response = client.write(length=1000)
    response.readline()
    response.close()
    connection.close()
    slow.may_go_on.set()
    assert slow.has_ended.wait(TIMEOUT)
    assert slow.last_step < 900
    monkeypatch.undo()
    while (answer := client.answer())[0] == 429:
        pass
    assert answer[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "halfstep.example", "Origin": "http://halfstep.example"}, 400),
        ({"Host": "127.0.0.1.example:80", "Origin": "http://127.0.0.1.example:80"}, 400),
        ({"Origin": "http://other.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": None}, 403),
        ({"Origin": f"http://{HOST}"}, 403),
    ],
)
def test_other_pages_are_refused(headers: dict[str, str | None], status: int, client: Client) -> None:
    _, response = client.open("POST", "/write", json.dumps(ASKED), **headers)
    assert response.status == status
    assert len(response.read().splitlines()) == 1
    if status == 400:
        assert client.open("GET", "/", **headers)[1].status == 400


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model": "../models/denoiser"}, "there is no model '../models/denoiser'; there are causal, denoiser"),
        ({"model": "<b>\n"}, "there is no model"),
        ({"sampler": "surest"}, "halfstep.samplers has no 'surest': it should be 'ancestral'"),
        ({"sampler": "../sampler"}, "halfstep.samplers has no"),
        ({"sampler": "confidence"}, "sampler: confidence needs threshold"),
        ({"sampler": "confidence", "settings": "--threshold 7"}, "threshold of confidence is 7"),
        ({"sampler": "confidence", "settings": "threshold 1"}, "threshold 1 is not understood"),
        ({"sampler": "confidence", "settings": "--threshold 2001-99-99"}, "is not understood"),
        ({"sampler": "confidence", "settings": "--threshold [1]"}, "settings: String should match pattern"),
        ({"settings": "x" * 201}, "settings: String should have at most 200 characters"),
        ({"evaluations": 0}, "evaluations: Input should be greater than or equal to 1, not 0"),
        ({"evaluations": 1025}, "evaluations: Input should be less than or equal to 1024, not 1025"),
        ({"evaluations": "4"}, "evaluations: Input should be a valid integer, not '4'"),
        ({"length": 4097}, "length: Input should be less than or equal to 4096"),
        ({"length": 3}, "--prompt has 3 tokens with BOS, which leaves nothing of the 3 tokens to write"),
        ({"model": "causal", "length": 13}, "has 12 positions: give 12 or less"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"temperature": -0.1}, "temperature: Input should be greater than or equal to 0"),
        ({"temperature": float("nan")}, "temperature: Input should be"),
        ({"prompt": "a" * 20_001}, "prompt: String should have at most 20000 characters"),
        ({"prompt": "\ud800"}, "Invalid JSON"),
        ({"paths": "/etc"}, "paths: Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_asked_is_one_line(changes: dict[str, Any], line: str, client: Client) -> None:
    status, text = client.answer(**changes)
    assert (status, len(text.splitlines())) == (422, 1)
    assert line in text


def test_what_goes_wrong_while_a_text_is_written_is_said_at_its_end(client: Client) -> None:
    settings = f"{settings_example('ordered')} --drawing speculative"
    assert "the model has no joint head" in client.events(sampler="ordered", settings=settings)[-1]["error"]
    assert "text" in client.events()[-1]


def test_what_is_no_question_is_refused(client: Client) -> None:
    for body, status in (("{", 422), ("[]", 422), ("", 422), ("x" * (MAX_BODY_BYTES + 1), 413)):
        _, response = client.open("POST", "/write", body)
        assert (response.status, len(response.read().splitlines())) == (status, 1), body[:9]
    assert client.open("GET", "/write")[1].status == 405
    assert client.open("GET", "/models/denoiser/config.json")[1].status == 404


def test_the_page_lists_models_as_text_and_loads_nothing(
    folders: dict[str, Path], tmp_path: Path, serve: Callable[[Starlette], Client]
) -> None:
    models = tmp_path / "models"
    for name in ("10", "2", "<i>x"):
        (models / name).mkdir(parents=True)
        (models / name / "tokenizer.json").write_text("{}")
    (models / "empty").mkdir()
    for name in ("0", "1"):
        shutil.copytree(folders["denoiser"], models / name)
    client = serve(app_of(models / "1", "cpu", lambda: False))
    _, response = client.open("GET", "/")
    page = response.read().decode()
    listed = [line.strip() for line in page.partition("</select>")[0].splitlines() if line.startswith("<option")]
    names = ["<option>0", "<option selected>1", "<option>2", "<option>10", "<option>&lt;i&gt;x"]
    assert listed == [f"{name}</option>" for name in names]
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert policy.partition("'nonce-")[2].partition("'")[0] in page
    assert not any(word in page for word in ("http:", "https:", "innerHTML", "insertAdjacentHTML", "document.write"))
    # What lies there but cannot be opened says why.
    assert client.answer(model="2")[0] == 422
    assert "text" in client.events(model="0")[-1]


def test_a_model_of_no_project_is_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["denoiser"].parent, tmp_path / "others")
    assert models_beside(tmp_path / "others" / "causal") == {"causal": tmp_path / "others" / "causal"}


def test_a_bad_folder_or_port_is_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["try", str(tmp_path / "absent"), "--port", "0"])
    assert isinstance(result.exception, UserError)
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["try", str(folders["denoiser"]), "--port", str(port)])
    assert f"cannot listen on {HOST}:{port}" in str(result.exception)
    assert "choose another with --port" in str(result.exception)


@pytest.mark.system
def test_ctrl_c_ends_it_while_it_writes(folders: dict[str, Path]) -> None:
    # What a shell starts in the background ignores Ctrl-C.
    command = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        " from halfstep.tools.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", command, "try", str(folders["denoiser"]), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    client = Client(int(process.stdout.readline().partition(f"http://{HOST}:")[2].split()[0]))
    # At one token a step this would take minutes.
    _, response = client.write(length=1500, sampler="confidence", settings="--threshold 1")
    for _ in range(3):
        response.readline()
    process.send_signal(signal.SIGINT)
    rest = response.read().splitlines()
    assert all("text" not in json.loads(line) for line in rest)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, errors.strip()) == (130, "")
