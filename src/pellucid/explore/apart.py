"""New pictures are looked at in a process of their own, which has torch and the model: what it takes, and how it may end, does not touch the server.

It starts with the first picture and keeps the model of the run that was asked last. It reaches no network: what a library does not find on this machine it
does not find. One picture at a time; who needs longer than LOOK_SECONDS is ended, and the next picture begins a new process.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

from pellucid.errors import MissingError, PellucidError
from pellucid.explore.live import as_bytes
from pellucid.run import Run

LOOK_SECONDS = 180.0  # for one picture, with torch and the model to be loaded for the first
NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")  # events that ask somebody else


class LookError(Exception):
    """A picture that was not looked at: why, in words, and the status of the answer."""

    def __init__(self, words: str, status: int) -> None:
        super().__init__(words)
        self.status = status


class Apart:
    """The process that looks, from the side of the server."""

    def __init__(self) -> None:
        self._process: Any = None
        self._line: Connection | None = None

    def look(self, run: Run, picture: bytes, ending: str) -> bytes:
        """What `asking.Asker.look` finds, as JSON. LookError says why there is none."""
        line = self._started()
        try:
            line.send((str(run.path.resolve()), picture, ending))
            found = line.recv() if line.poll(LOOK_SECONDS) else None
        except (EOFError, OSError):
            self.end()
            raise LookError("The process that looked at the picture ended, as it does where memory runs out. A smaller picture or model may do.", 422) from None
        except BaseException:
            self.end()
            raise
        if found is None:
            self.end()
            raise LookError(f"The picture was not looked at within {LOOK_SECONDS:.0f} seconds, so that was ended. `pellucid inside` takes all its time.", 422)
        if isinstance(found, tuple):
            raise LookError(*found)
        return bytes(found)

    def end(self) -> None:
        """End the process, if there is one."""
        if self._process is not None and self._line is not None:
            self._line.close()
            self._process.kill()
            self._process.join()
            self._process.close()
            self._process = self._line = None

    def _started(self) -> Connection:
        if self._process is not None and not self._process.is_alive():
            self.end()
        if self._line is None:
            context = multiprocessing.get_context("spawn")  # a copy of a server with threads could lock up
            self._line, theirs = context.Pipe()
            self._process = context.Process(target=answer, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
        return self._line


def answer(line: Connection) -> None:
    """Look at the pictures that come, (run folder, bytes, ending), until the other end is closed: JSON goes back, or (words, status)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's, which ends this
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported
    sys.addaudithook(_without_network)
    asker: Any = None
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            path, picture, ending = line.recv()
            try:
                if asker is None:
                    from pellucid.explore.asking import Asker  # needs torch, which takes seconds

                    asker = Asker()
                found: bytes | tuple[str, int] = as_bytes(asker.look(Run(path), picture, ending))
            except BaseException as error:  # a panic of a library in Rust is no Exception
                found = in_words(error)
            line.send(found)


def _without_network(event: str, arguments: tuple[Any, ...]) -> None:
    if event in NETWORK:
        raise MissingError(
            "The model of this run cannot be built from what is on this machine: a library asked for the network, which the explorer does not use. "
            "`pellucid inside RUN PICTURE` may."
        )


def in_words(error: BaseException) -> tuple[str, int]:
    """(what a failure says to a person, the status of the answer); of a fault of ours the trace goes to stderr."""
    if isinstance(error, PellucidError):
        return str(error), 404 if isinstance(error, MissingError) else 422
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "torch" in sys.modules and _ran_out(error)):
        return "Memory ran out. A smaller picture, run or model may do.", 422
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or error}", 422
    traceback.print_exception(error, file=sys.stderr)
    return f"Pellucid failed here: {type(error).__name__}: {str(error)[:300]}. The terminal shows where. Please report it.", 500


def _ran_out(error: RuntimeError) -> bool:
    from pellucid.runtime import out_of_memory

    return out_of_memory(error)
