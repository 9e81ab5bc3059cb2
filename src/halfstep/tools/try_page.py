"""`halfstep try`: a page on this machine, on which models write while a person looks on."""

import asyncio
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from functools import lru_cache, partial
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from pydantic import BaseModel, Field, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from torch import Tensor

from halfstep.report.records import describe_drawn
from halfstep.report.render import render
from halfstep.report.samples import token_pieces
from halfstep.run.errors import UserError, one_line, shown
from halfstep.run.faults import fault_line
from halfstep.samplers import SAMPLERS
from halfstep.samplers.sampler import sampler_of
from halfstep.settings.base import MAX_SEED
from halfstep.settings.plugins import plugin_module, plugin_names
from halfstep.tools.generate import Opened, Writing, open_on, prepare, settings_in

HOST = "127.0.0.1"
MAX_EVALUATIONS = 1024
MAX_BODY_BYTES = 2**17

Event = dict[str, Any]


class Asked(BaseModel, frozen=True, extra="forbid", strict=True, allow_inf_nan=False):
    """What the page asks for: options of `halfstep generate`.

    `model` is one of those that were listed; `settings` are those of `sampler`, as on the command line, beside its
    `num_steps`, which are `evaluations`; null is the best sampler for so many.
    """

    model: str
    prompt: Annotated[str, Field(max_length=20_000)]
    chat: bool
    sampler: str | None
    settings: Annotated[str, Field(max_length=200, pattern=r"^[\w\s.=+-]*$")]
    evaluations: Annotated[int, Field(ge=1, le=MAX_EVALUATIONS)]
    temperature: Annotated[float, Field(ge=0, le=100)] | None
    length: Annotated[int, Field(ge=2, le=4096)] | None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)]


def serve(model: Path, port: int, device: str) -> None:
    """Serve the page until a signal comes; port 0 is any that is free.

    Raises:
        UserError: the model cannot be opened, or the port is taken.
    """
    app = app_of(model, device, lambda: server.should_exit)
    try:
        listener = socket.create_server((HOST, port))
    except OSError as error:
        raise UserError(f"halfstep try cannot listen on {HOST}:{port} ({error}): choose another with --port") from None
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", ws="none"))
    print(f"http://{HOST}:{listener.getsockname()[1]} (Ctrl-C stops it)", flush=True)
    server.run(sockets=[listener])


def app_of(model: Path, device: str, is_over: Callable[[], bool]) -> Starlette:
    """The page, on a model that is opened at once; where `is_over`, a text that is being written is given up."""
    # One at a time is in memory.
    opened = lru_cache(maxsize=1)(partial(open_on, device=device))
    opened(model)
    models = models_beside(model)
    content = {
        "models": list(models),
        "given": model.resolve().name,
        "samplers": [(name, settings_example(name), _has_steps(name)) for name in plugin_names(SAMPLERS)],
        "max_evaluations": MAX_EVALUATIONS,
    }

    def page(request: Request) -> Response:
        nonce = secrets.token_urlsafe()
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'unsafe-inline'; img-src data:;"
            " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        html = render("try.html.j2", {**content, "nonce": nonce})
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    return Starlette(
        routes=[Route("/", page), Route("/write", Write(models, opened, is_over), methods=["POST"])],
        # A name that others resolve to this address would make the page theirs.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"], www_redirect=False)],
        max_body_size=MAX_BODY_BYTES,
    )


def models_beside(model: Path) -> dict[str, Path]:
    """The models that may be chosen, by name: all of `models/` where the one given is of it, or that one alone."""
    given = model.resolve()
    found = {given.name: model}
    if given.parent.name == "models":
        found |= {path.name: path for path in given.parent.iterdir() if (path / "tokenizer.json").is_file()} | found
    return dict(sorted(found.items(), key=lambda item: (not item[0].isdigit(), len(item[0]), item[0])))


def _has_steps(sampler: str) -> bool:
    return "num_steps" in plugin_module(SAMPLERS, sampler).Settings.model_fields


def settings_example(sampler: str) -> str:
    """Values that fit the settings, beside `num_steps`, that a sampler has to be given, as on the command line."""
    schema = plugin_module(SAMPLERS, sampler).Settings.model_json_schema()
    needed = {key: schema["properties"][key]["items"] for key in schema["required"] if key not in ("name", "num_steps")}
    values = {key: one["enum"][0] if "enum" in one else 0.5 if "maximum" in one else 1.0 for key, one in needed.items()}
    return " ".join(f"--{key.replace('_', '-')} {value}" for key, value in values.items())


class Write:
    """Writes a text for who asks, one at a time: a line of JSON for each step that changes it, and one for the end."""

    def __init__(self, models: dict[str, Path], opened: Callable[[Path], Opened], is_over: Callable[[], bool]) -> None:
        self._models, self._opened, self._is_over = models, opened, is_over
        self._is_free = threading.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        # Any page may send a form here, and a browser says which did.
        if request.headers.get("origin") != f"http://{request.headers['host']}":
            return await PlainTextResponse("only the page itself may ask for texts", 403)(scope, receive, send)
        try:
            asked = Asked.model_validate_json(await request.body())
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            line = f"{': '.join(map(str, (*first['loc'], first['msg'])))}, not {shown(first['input'])}"
            return await PlainTextResponse(one_line(line), 422)(scope, receive, send)
        if not self._is_free.acquire(blocking=False):
            line = "another text is being written: try again when it is done"
            return await PlainTextResponse(line, 429)(scope, receive, send)
        loop, events, is_left = asyncio.get_running_loop(), asyncio.Queue[Event | None](), threading.Event()

        def put(event: Event | None) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        loop.run_in_executor(None, self._write, asked, put, lambda: is_left.is_set() or self._is_over())
        try:
            first_event = await events.get() or {"error": "nothing was written: see the terminal"}
            response: Response = StreamingResponse(_lines(first_event, events), media_type="application/x-ndjson")
            if "error" in first_event:
                response = PlainTextResponse(first_event["error"], 422)
            await response(scope, receive, send)
        finally:
            is_left.set()

    def _write(self, asked: Asked, put: Callable[[Event | None], None], is_left: Callable[[], bool]) -> None:
        """Put the events of a text, what is wrong, if anything, and None."""
        end: Event | None = None
        try:
            if asked.model not in self._models:
                raise UserError(f"there is no model {shown(asked.model)}; there are {', '.join(self._models)}")
            sampler = None
            if asked.sampler is not None:
                steps = {"num_steps": asked.evaluations} if _has_steps(asked.sampler) else {}
                sampler = sampler_of(asked.sampler, settings_in(asked.settings.split()) | steps, "sampler")
            options = asked.model_dump(exclude={"model", "sampler", "settings"})
            opened = self._opened(self._models[asked.model])
            write(opened, prepare(opened, sampler, num_samples=1, **options), put, is_left)
        except Left:
            pass
        except Exception as error:
            line = str(error) if isinstance(error, UserError) else fault_line(error)
            if line is None:
                raise
            end = {"error": line}
        finally:
            # Who has read the end may ask again.
            self._is_free.release()
            put(end)
            put(None)


async def _lines(first: Event, events: "asyncio.Queue[Event | None]") -> AsyncIterator[str]:
    event: Event | None = first
    while event is not None:
        yield dumps(event) + "\n"
        event = await events.get()


class Left(Exception):
    """The page was closed."""


def write(opened: Opened, writing: Writing, put: Callable[[Event], None], is_left: Callable[[], bool]) -> None:
    """Write a text, and put an event before the first step, one after each step that changes it, and one at the end.

    An event has the step; the text of each token, null where it is masked; the places of those that are new; network
    evaluations and seconds, of writing alone, so far. The first says how it is written, the last has the whole text.

    Raises:
        Left: `is_left` after a step.
    """
    tokenizer, mask_token_id = opened.tokenizer, opened.tokenizer.mask_token_id
    before, evaluations, seconds, started = writing.x_init[0].tolist(), 0, 0.0, 0.0

    def event(step: int, ids: list[int], new: list[int]) -> Event:
        pieces = zip(ids, token_pieces(ids, tokenizer.decode), strict=True)
        tokens = [None if token_id == mask_token_id else piece for token_id, piece in pieces]
        return {"step": step, "tokens": tokens, "new": new, "evaluations": evaluations, "seconds": seconds}

    def on_step(step: int, tokens: Tensor) -> None:
        nonlocal before, evaluations, seconds, started
        ids = tokens[0].tolist()
        seconds += time.perf_counter() - started
        if is_left():
            raise Left
        if ids != before:
            new = [place for place, old in enumerate(before) if old == mask_token_id != ids[place]]
            # Every evaluation writes a token, and nothing else does.
            evaluations += bool(new)
            put(event(step, ids, new))
            before = ids
        started = time.perf_counter()

    way = describe_drawn(writing.sampler.name, writing.sampler.setting).replace(",", ", ")
    put({**event(0, before, []), "way": f"{way}, temperature {writing.temperature:.3g}"})
    started = time.perf_counter()
    samples = writing.draw(on_step)
    put({"text": writing.text(samples.tokens[0].tolist()), "evaluations": int(samples.nfe[0]), "seconds": seconds})
