"""Who may ask the explorer, and how much: everything that is decided before a request reaches an endpoint.

The page shows private pictures and can start a model, and any web page that is open in the same browser can send requests to this machine. Therefore:

- the address holds a random token; the browser then keeps it in a cookie that no script can read and no other site's request carries;
- the Host header must be the address that was bound, so that a name of somebody else's that leads here (DNS rebinding) gets nothing;
- what changes something (POST) must come from this page: its Origin is checked;
- methods are GET, HEAD and POST, and a body has at most MOST_UPLOAD bytes, counted while it arrives.

Not kept out: other programs of the same user, who can read the runs anyway, and pages of another server on the same loopback address,
because browsers send cookies to every port of a host.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_UPLOAD = 20_000_000  # bytes
METHODS = ("GET", "HEAD", "POST")
NOTHING = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"  # the policy of what is no page
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class TooLargeError(Exception):
    """A body grew beyond what may be sent."""


class Guard:
    """An ASGI application in front of another: it lets through what belongs to the page and answers everything else in words.

    host, port: what the server is bound to. token: what the first address holds.
    """

    def __init__(self, app: ASGIApp, *, host: str, port: int, token: str | None = None) -> None:
        self.app, self.host, self.port = app, host, port
        self.token = secrets.token_urlsafe(24) if token is None else token
        self.cookie = f"pellucid_{port}"  # two explorers of one browser keep theirs apart

    @property
    def address(self) -> str:
        """The first address, with the token in it. A server on every address of the machine is reached at its name."""
        host = socket.gethostname() if is_everywhere(self.host) else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/?token={self.token}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        entering = scope["path"] == "/" and self._is_token(parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0])
        refused = self._refused(scope["method"], headers, entering=entering)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    own[name] = value
                own.setdefault("Content-Security-Policy", NOTHING)
                if entering and refused is None:
                    own.append("Set-Cookie", f"{self.cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict")
            await send(message)

        if refused is not None:
            await refused(scope, receive, sending)
            return
        await self.app(scope, _bounded(receive), sending)

    def _refused(self, method: str, headers: Headers, *, entering: bool) -> Response | None:
        """The answer to a request that may not go on; None to one that may."""
        host = headers.getlist("host")
        if len(host) != 1 or not self.is_own(host[0]):
            return _no(421, f"This is a Pellucid explorer at {self.host}, port {self.port}; it answers to no other name. Use the address that it printed.")
        if method not in METHODS:
            return _no(405, f"expected one of {', '.join(METHODS)}, got {method[:20]}", {"Allow": ", ".join(METHODS)})
        if not entering and not any(self._is_token(value) for value in self._cookies(headers)):
            return _no(403, "This explorer opens with the whole address that `pellucid explore` printed last, token included. Open that address.")
        if method == "POST" and (headers.getlist("origin") != [f"http://{host[0]}"] or headers.get("sec-fetch-site", "same-origin") != "same-origin"):
            return _no(403, "Only the explorer's own page may send a picture; this request came from elsewhere (its Origin says so, or is missing).")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:15]) > MOST_UPLOAD:
            return _no(413, too_large(), {"Connection": "close"})
        return None

    def is_own(self, host: str) -> bool:
        """Whether a Host header names this server. Bound to every address of the machine, any number of an address is taken, as no stranger's name is one."""
        name, colon, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
        if not colon:
            name, port = host, "80"
        name = name.strip("[]").lower()
        if port != str(self.port):
            return False
        if is_everywhere(self.host):
            return _is_number(name) or name in (socket.gethostname().lower(), "localhost")
        return name == self.host.lower() or (is_loopback(self.host) and name in ("127.0.0.1", "localhost"))

    def _cookies(self, headers: Headers) -> list[str]:
        found = []
        for header in headers.getlist("cookie"):
            try:
                found += [morsel.value for name, morsel in SimpleCookie(header).items() if name == self.cookie]
            except CookieError:
                continue
        return found

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode("utf-8", "surrogateescape"), self.token.encode())


def too_large() -> str:
    return f"A picture has at most {MOST_UPLOAD // 1_000_000} MB; this one is larger. Scale it down and send it again."


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that is bound to `host`."""
    return host == "localhost" or (_is_number(host) and ipaddress.ip_address(host).is_loopback)


def is_everywhere(host: str) -> bool:
    """Whether a server that is bound to `host` is reached at every address of the machine."""
    return _is_number(host) and ipaddress.ip_address(host).is_unspecified


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _bounded(receive: Receive) -> Receive:
    """The messages of a request until its body has more than MOST_UPLOAD bytes: TooLargeError then, whatever the headers said."""
    taken = 0

    async def receiving() -> Any:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > MOST_UPLOAD:
            raise TooLargeError
        return message

    return receiving


def _no(status: int, words: str, headers: dict[str, str] | None = None) -> Response:
    """A refusal: words for people who see it as a page, JSON for the script of one."""
    if status in (403, 421):
        return PlainTextResponse(words + "\n", status, headers)
    return JSONResponse({"error": words}, status, headers)
