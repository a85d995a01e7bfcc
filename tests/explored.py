"""An explorer that answers in a thread, and a client that asks it over a real connection."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pellucid.explore.guard import Guard
from pellucid.explore.server import Explorer


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass(frozen=True)
class Client:
    """Asks as the explorer's own page would, where nothing else is said."""

    guard: Guard

    @property
    def port(self) -> int:
        return self.guard.port

    def headers(self) -> dict[str, str]:
        return {"Cookie": f"{self.guard.cookie}={self.guard.token}", "Origin": f"http://127.0.0.1:{self.port}"}

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str | None] | None = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        wanted = {name: value for name, value in (self.headers() | (headers or {})).items() if value is not None}
        connection.putrequest(method, path, skip_host="Host" in wanted)
        if body is not None:
            wanted["Content-Length"] = str(len(body))
        for name, value in wanted.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        found = Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode())
        connection.close()
        return found

    def get(self, path: str, *, cookie: str | None = "", host: str | None = None) -> Answer:
        headers: dict[str, str | None] = {} if host is None else {"Host": host}
        return self.ask("GET", path, headers=headers if cookie == "" else headers | {"Cookie": cookie})

    def post(self, path: str, body: bytes, *, origin: str | None = "") -> Answer:
        return self.ask("POST", path, body, {} if origin == "" else {"Origin": origin})

    def json(self, path: str) -> Any:
        return self.get(path).json

    def raw(self, text: str) -> bytes:
        """The first bytes that come back for these."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as stream:
            stream.sendall(text.encode("latin-1"))
            return stream.recv(4096)


def stubborn(line: Any) -> None:
    """A process that looks at a picture for ever, and has written it into its folder."""
    path, picture, ending, folder = line.recv()
    (Path(folder) / f"picture{ending}").write_bytes(picture)
    (Path(path).parent / "begun").touch()
    threading.Event().wait()


@contextmanager
def serving(*runs: Path) -> Iterator[Client]:
    """A client of an explorer of these runs that answers while the block runs."""
    explorer = Explorer(runs)
    thread = threading.Thread(target=explorer.serve, daemon=True)
    thread.start()
    client = Client(explorer.guard)
    try:
        client.get("/api/runs")
        yield client
    finally:
        explorer.end()
        thread.join(10)
        assert not thread.is_alive()
