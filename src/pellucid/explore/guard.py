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
import re
import secrets
import socket
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_UPLOAD = 20_000_000  # bytes
METHODS = ("GET", "HEAD", "POST")
_HOST = re.compile(r"(?:\[(?P<six>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?", re.ASCII | re.IGNORECASE)
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
        self._once = ""  # another token, which opens the page one time

    @property
    def address(self) -> str:
        """The first address, with the token in it. A server on every address of the machine is reached at its name."""
        return self._address(self.token)

    def address_once(self) -> str:
        """An address that opens the page the next time that it is asked for, and never again; a browser has the cookie from then on."""
        self._once = secrets.token_urlsafe(24)
        return self._address(self._once)

    def _address(self, token: str) -> str:
        host = socket.gethostname() if is_everywhere(self.host) else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/?token={token}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        said = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0] if scope["path"] == "/" else ""
        once = self._once != "" and _same(said, self._once)
        entering = once or _same(said, self.token)
        refused = self._refused(scope["method"], headers, entering=entering)
        if once and refused is None:
            self._once = ""
        unread = refused is not None or (scope["method"] != "POST" and (headers.get("content-length", "0") != "0" or "transfer-encoding" in headers))

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    own[name] = value
                own.setdefault("Content-Security-Policy", NOTHING)
                if unread:  # a body that nobody asked for: the connection ends instead of taking it in
                    own["Connection"] = "close"
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
        if not entering and not any(_same(value, self.token) for value in self._cookies(headers)):
            return _no(403, "This explorer opens with the whole address that `pellucid explore` printed last, token included. Open that address.")
        if method == "POST" and (headers.getlist("origin") != [f"http://{host[0]}"] or headers.get("sec-fetch-site", "same-origin") != "same-origin"):
            return _no(403, "Only the explorer's own page may send a picture; this request came from elsewhere (its Origin says so, or is missing).")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:15]) > MOST_UPLOAD:
            return _no(413, too_large(), {"Connection": "close"})
        return None

    def is_own(self, host: str) -> bool:
        """Whether a Host header names this server. Bound to every address of the machine, any number of an address is taken, as no stranger's name is one."""
        found = _HOST.fullmatch(host)
        if found is None or int(found["port"] or 80) != self.port:
            return False
        name = (found["six"] or found["name"]).lower()
        if (found["six"] is not None) != (":" in name):  # brackets are for addresses of version 6
            return False
        if is_everywhere(self.host):
            return _is_number(name) or name in (socket.gethostname().lower(), "localhost")
        return name == self.host.lower() or (is_loopback(self.host) and name in ("127.0.0.1", "localhost"))

    def _cookies(self, headers: Headers) -> list[str]:
        """The values of this explorer's cookie; those of other servers at this host may be written in any way."""
        pairs = [pair.strip().partition("=") for header in headers.getlist("cookie") for pair in header.split(";")]
        return [value for name, _, value in pairs if name == self.cookie]


def _same(text: str, token: str) -> bool:
    return hmac.compare_digest(text.encode("utf-8", "surrogateescape"), token.encode())


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
