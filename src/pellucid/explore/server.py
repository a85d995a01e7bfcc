"""The server of `pellucid explore`: a page, what it asks for, and nothing else.

    GET  /                          the page                       GET  /api/compare?runs=0,1     runs side by side
    GET  /api/runs                  the runs and their state       POST /api/runs/<id>/look       a picture: what the model says of it
    GET  /api/runs/<id>/views/<v>   a view as JSON                 GET  /api/offline              the parts of a page that is saved

Runs are numbers and views are names of a fixed list: no part of an address is ever a path. A failure is `{"error": words}` with the status 404 (no such
thing), 409 (busy), 413 (too large), 422 (a damaged run, a picture that cannot be used), 500 (a fault of ours, whose trace goes to stderr) or 503 (the explorer
is ended).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jinja2
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

import pellucid
from pellucid.errors import UsageError
from pellucid.explore import uploads
from pellucid.explore.apart import Apart, LookError, in_words
from pellucid.explore.guard import Guard, TooLargeError, too_large
from pellucid.explore.live import Shelf, as_bytes, safe
from pellucid.views import bundle

if TYPE_CHECKING:
    import uvicorn

UPLOAD_SECONDS = 60.0  # that a picture may take to arrive
MOST_READING = 4  # pictures that arrive at once; they are looked at one by one
Answer = Callable[[Request], Awaitable[Response]]
_T = TypeVar("_T")


class BusyError(Exception):
    """A picture is being looked at; another one has to wait."""


class Desk:
    """The endpoints, over the runs of one shelf."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self._apart = Apart()
        self._reading, self._looking = 0, False

    def application(self) -> Starlette:
        routes = [
            Route("/", self.page),
            Route("/api/runs", _told(self.runs)),
            Route("/api/runs/{run}/views/{view}", _told(self.view)),
            Route("/api/runs/{run}/look", _told(self.look), methods=["POST"]),
            Route("/api/compare", _told(self.compare)),
            Route("/api/offline", _told(self.offline)),
        ]
        found = Starlette(routes=routes, exception_handlers={HTTPException: _unknown})
        found.router.redirect_slashes = False  # it would write what the Host header says into an address
        return found

    async def page(self, request: Request) -> Response:
        script = bundle.script("explore")
        policy = (
            f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {bundle.integrity(script)}; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return HTMLResponse(shell(script), headers={"Content-Security-Policy": policy})

    async def runs(self, request: Request) -> Response:
        return _json({"pellucid": pellucid.__version__, "runs": await run_in_threadpool(self.shelf.listed)})

    async def view(self, request: Request) -> Response:
        return Response(await run_in_threadpool(self.shelf.view, request.path_params["run"], request.path_params["view"]), media_type="application/json")

    async def compare(self, request: Request) -> Response:
        return Response(await run_in_threadpool(self.shelf.comparison, request.query_params.get("runs", "")), media_type="application/json")

    async def offline(self, request: Request) -> Response:
        return _json({"parts": offline_parts()})

    async def look(self, request: Request) -> Response:
        run = self.shelf.of(request.path_params["run"])
        if self._looking or self._reading >= MOST_READING:
            raise BusyError
        self._reading += 1
        try:
            data = await asyncio.wait_for(_body(request), UPLOAD_SECONDS)
        finally:
            self._reading -= 1
        if self._looking:
            raise BusyError
        self._looking = True
        try:
            picture, ending = await run_in_threadpool(uploads.checked, data)
            return Response(await run_in_threadpool(self._asked, run, picture, ending), media_type="application/json")
        finally:
            self._looking = False

    def _asked(self, run: Any, picture: bytes, ending: str) -> bytes:
        return self._apart.look(safe(run), picture, ending)

    def end(self) -> None:
        """End what was started for the answers."""
        self._apart.end()


async def _body(request: Request) -> bytes:
    """What was sent; the guard counts it on its way."""
    found = bytearray()
    async for part in request.stream():
        found += part
    return bytes(found)


def _told(answer: Answer) -> Answer:
    """An endpoint whose failures are words with a status, none of which ends the server."""

    @functools.wraps(answer)
    async def answering(request: Request) -> Response:
        try:
            return await answer(request)
        except TooLargeError:
            return _json({"error": too_large()}, 413, {"Connection": "close"})
        except (TimeoutError, ClientDisconnect):
            return _json({"error": f"The picture did not arrive within {UPLOAD_SECONDS:.0f} seconds."}, 408, {"Connection": "close"})
        except BusyError:
            return _json({"error": "Another picture is being looked at: busy. Send this one again in a moment."}, 409)
        except LookError as error:
            return _json({"error": str(error)}, error.status)
        except asyncio.CancelledError:  # by a server that ends; whoever awaits more here is cancelled again
            return _json({"error": "The explorer was ended before this was answered. Start `pellucid explore` again."}, 503, {"Connection": "close"})
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of a library in Rust is no Exception
            words, status = in_words(error)
            return _json({"error": words}, status)

    return answering


def _json(found: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(as_bytes(found), status, headers, media_type="application/json")


async def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": f"There is nothing at this address: {error.detail}."}, error.status_code, error.headers)


# ── pages ────────────────────────────────────────────────────────────────────────────────────────────────────────


@functools.cache
def shell(script: str) -> str:
    """The page of the explorer with a script in it; what it shows it asks for."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    text = resources.files("pellucid.explore").joinpath("shell.html").read_text(encoding="utf-8")
    style = resources.files("pellucid.report").joinpath("style.css").read_text(encoding="utf-8") + bundle.style()
    return environment.from_string(text).render(script=Markup(script), style=Markup(style))


@functools.cache
def offline_parts() -> list[str]:
    """The four parts of a report's page between which go, as markup: title, body, and the script element of the data of a view."""
    from pellucid.report.template import render_template

    whole, parts = render_template("page.html", views={"@": {}}), []
    for beginning, end in (("<title>", "</title>"), ("content</a>\n", "<footer>"), ('<script type="application/json" id="data-@">', "</script>")):
        before, found, rest = whole.partition(beginning)
        _, also, after = rest.partition(end)
        if not found or not also:
            raise UsageError(f"report/page.html: expected {beginning} and {end}; mend explore.server.offline_parts")
        kept = beginning.startswith("<script")
        parts.append(before if kept else before + found)
        whole = after if kept else also + after
    return [*parts, whole]


# ── starting ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Explorer:
    """A server that is bound and not yet started: its `address` can be shown, `serve` answers until it is told to end."""

    def __init__(self, paths: Sequence[str | Path], *, host: str = "127.0.0.1", port: int = 0) -> None:
        """port: 0 for a free one. UsageError where host and port cannot be had; RunError where a path is no run."""
        self.shelf = Shelf(paths)
        self.socket = _bound(host, port)
        self._desk = Desk(self.shelf)
        self.guard = Guard(self._desk.application(), host=host, port=self.socket.getsockname()[1])
        self._server: uvicorn.Server | None = None

    @property
    def address(self) -> str:
        return self.guard.address

    @property
    def address_once(self) -> str:
        """The address for a browser that this machine's list of processes shows it to: it opens the page once."""
        return self.guard.address_once()

    def serve(self) -> None:
        """Answer until `end` is called, or Ctrl-C, which raises KeyboardInterrupt."""
        import uvicorn

        from pellucid.explore.connections import IDLE_SECONDS, Ending, Patient

        config = uvicorn.Config(
            self.guard, log_config=None, access_log=False, log_level="error", lifespan="off", ws="none", http=Patient, server_header=False, proxy_headers=False,
            timeout_keep_alive=IDLE_SECONDS, timeout_graceful_shutdown=2,
        )  # fmt: skip
        self._server = Ending(config, self._desk.end)
        try:
            with contextlib.closing(self.socket):
                self._server.run(sockets=[self.socket])
        finally:
            self._desk.end()

    def end(self) -> None:
        """Let `serve` return soon; from another thread."""
        if self._server is not None:
            self._server.should_exit = True


def _bound(host: str, port: int) -> socket.socket:
    """A socket that listens at host and port."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with contextlib.ExitStack() as failing:
            found = failing.enter_context(socket.socket(family, kind, protocol))
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
            found.listen(128)
            failing.pop_all()  # it stays open
    except (OSError, OverflowError, UnicodeError) as error:
        remedy = "Give another --port, or none for a free one." if port else "Give another --host; 127.0.0.1 is this machine alone."
        raise UsageError(f"cannot listen at {host}, port {port or 'any'}: {getattr(error, 'strerror', None) or error}. {remedy}") from None
    return found
