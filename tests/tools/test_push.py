"""A folder goes to the hub: against a stand-in of the hub's interface that keeps what it is sent."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from halfstep.model.config import DenoiserConfig
from halfstep.model.denoiser import Denoiser
from halfstep.run.errors import UserError
from halfstep.tools.cli import app
from halfstep.tools.push import push_model


class Hub(ThreadingHTTPServer):
    """Answers as the hub does where files are few and small; a status in place of an answer, if one is set."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, bytes] = {}
        self.created: list[dict[str, Any]] = []
        self.tokens: set[str | None] = set()
        self.status = 200


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.answer({}, 404)

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub = self.server
        hub.tokens.add(self.headers.get("Authorization"))
        if hub.status != 200:
            self.answer({"error": "no"}, hub.status)
        elif self.path == "/api/repos/create":
            hub.created.append(json.loads(body))
            self.answer({"url": f"{hub.address}/me/student"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.path == "/api/models/me/student/preupload/main":
            asked = [file["path"] for file in json.loads(body)["files"]]
            self.answer({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in asked]})
        elif self.path == "/api/models/me/student/commit/main":
            lines = [json.loads(line) for line in body.splitlines()]
            sent = [line["value"] for line in lines if line["key"] == "file"]
            hub.files |= {file["path"]: base64.b64decode(file["content"]) for file in sent}
            self.answer({"commitUrl": f"{hub.address}/me/student/commit/1", "commitOid": "1", "pullRequestUrl": None})
        else:
            self.answer({}, 404)

    def answer(self, values: dict[str, Any], status: int = 200) -> None:
        content = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield server
        server.shutdown()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A denoiser's folder, with what is not of the model beside it."""
    folder = tmp_path / "student"
    (folder / "cache").mkdir(parents=True)
    Denoiser(DenoiserConfig(12, 11, 8, 8, 1, 2, 8, 0.0, 1e-3)).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    for name in ("train_state.safetensors", "optimizer.pt", ".env", "cache/model.safetensors"):
        (folder / name).write_text("private")
    return folder


MODEL = {"config.json", "model.safetensors", "tokenizer.json"}


@pytest.mark.parametrize("arguments", [[], ["--private"]])
def test_the_hub_has_the_models_files_and_a_card(hub: Hub, model: Path, arguments: list[str]) -> None:
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    result = CliRunner().invoke(app, ["push", str(model), "me/student", *arguments])
    assert result.exit_code == 0, result.output
    assert result.output == f"{hub.address}/me/student/commit/1\n"
    card = hub.files.pop("README.md").decode()
    assert hub.files == {name: before[model / name] for name in MODEL}
    assert "library_name: halfstep" in card
    assert hub.tokens == {"Bearer hf_secret"}
    visibility = {"visibility": "private"} if arguments else {}
    assert hub.created == [{"name": "student", "organization": "me", **visibility}]
    # The folder, which may be an output of DVC, is left alone.
    assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == before


def test_a_card_that_is_there_is_the_one_that_is_sent(hub: Hub, model: Path) -> None:
    (model / "README.md").write_text("My own words.")
    push_model(model, "me/student", is_private=False)
    assert hub.files["README.md"] == b"My own words."


def test_what_goes_wrong_is_a_line(hub: Hub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(match: str, folder: Path = model, repo_id: str = "me/student") -> None:
        with pytest.raises(UserError, match=match) as caught:
            push_model(folder, repo_id, is_private=False)
        assert "\n" not in str(caught.value)

    refused(r"train is not a model's folder: it needs config\.json and weights", tmp_path / "train")
    hub.status = 403
    refused(
        r"^me/student was not sent to http://127\.0\.0\.1:.*403.*; give a token that may write there: hf auth login$"
    )
    hub.status = 200
    refused(r"^me/a/student was not sent .*; the same command tries again$", repo_id="me/a/student")
    # A port that nothing listens on.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    refused(r"^me/student was not sent to http://127\.0\.0\.1:9 .*; the same command tries again$")
    assert hub.files == {}
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    refused(r"^me/student needs a token that may write: hf auth login, or HF_TOKEN")
