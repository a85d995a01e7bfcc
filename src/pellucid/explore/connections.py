"""Connections that hold nobody up: one that says nothing is closed soon, and many of them leave room for the next."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0  # that the head of a request may take to arrive, from when the connection was made or the answer before it was given
IDLE_SECONDS = 5  # that a connection is kept for a next request
MOST_WAITING = 128  # connections without a whole head; the oldest is closed for one more, so that whoever comes with a request is served


class Patient(H11Protocol):
    """HTTP/1.1 of uvicorn, which itself waits for the head of a request as long as it is told nothing."""

    _patience: asyncio.TimerHandle | None = None
    _since = 0.0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()
        waiting = [other for other in self.connections if isinstance(other, Patient) and other.waits]
        if len(waiting) > MOST_WAITING:
            min(waiting, key=lambda other: other._since)._give_up()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.waits:
            self._stop()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    @property
    def waits(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        self._stop()
        if self.waits and not self.transport.is_closing():
            self._since = self.loop.time()
            self._patience = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _stop(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        self._stop()
        self.transport.close()


class Ending(uvicorn.Server):
    """A server that says when it begins to end, so that what its answers wait for ends too, and they are given instead of cancelled."""

    def __init__(self, config: uvicorn.Config, ending: Callable[[], None]) -> None:
        super().__init__(config)
        self._ending = ending

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._ending()
        await super().shutdown(sockets)
