"""New pictures are looked at in a process of their own, which has torch and the model: what it takes, and how it may end, does not touch the server.

It starts with the first picture and keeps the model of the run that was asked last. It reaches no network: what a library does not find on this machine it
does not find. One picture at a time; who needs longer than LOOK_SECONDS is ended, and the next picture begins a new process. What is made for a picture lies
in a folder that this side makes and removes, however the process ends.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.resource_tracker
import os
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pellucid.errors import MissingError, PellucidError
from pellucid.explore.live import as_bytes
from pellucid.run import Run

LOOK_SECONDS = 180.0  # for one picture, with torch and the model to be loaded for the first
OVER = "The explorer was ended while this picture was looked at. Start `pellucid explore` again and send it once more.", 503
ENDED = "The process that looked at the picture ended, as it does where memory runs out. A smaller picture or model may do.", 422
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
        self._folder: str | None = None  # of the picture that is looked at
        self._over = False
        self._lock = threading.Lock()  # one thread looks, another one may end that

    def look(self, run: Run, picture: bytes, ending: str) -> bytes:
        """What `asking.Asker.look` finds, as JSON. LookError says why there is none."""
        folder = self._new_folder()
        try:
            line = self._started()
            line.send((str(run.path.resolve()), picture, ending, folder))
            found = line.recv() if line.poll(LOOK_SECONDS) else None
            if found is None:
                self._stop()
        except (EOFError, OSError):
            self._stop()
            raise LookError(*(OVER if self._over else ENDED)) from None
        except BaseException:
            self._stop()
            raise
        finally:
            self._clear()
        if found is None:
            raise LookError(f"The picture was not looked at within {LOOK_SECONDS:.0f} seconds, so that was ended. `pellucid inside` takes all its time.", 422)
        if isinstance(found, tuple):
            raise LookError(*found)
        return bytes(found)

    def end(self) -> None:
        """End the process, if there is one, with what it made; a picture that it looks at, or one that comes later, is told so."""
        self._over = True
        self._stop()
        self._clear()

    def _started(self) -> Connection:
        with self._lock:
            if self._over:
                raise LookError(*OVER)
            if self._process is not None and not self._process.is_alive():
                self._kill()
            if self._line is None:
                context = multiprocessing.get_context("spawn")  # a copy of a server with threads could lock up
                self._line, theirs = context.Pipe()
                self._process = context.Process(target=answer, args=(theirs,), daemon=True)
                with _without_interrupts():
                    self._process.start()
                theirs.close()
            return self._line

    def _new_folder(self) -> str:
        with self._lock:
            if self._over:
                raise LookError(*OVER)
            self._folder = tempfile.mkdtemp(prefix="pellucid-picture-")
            return self._folder

    def _clear(self) -> None:
        with self._lock:
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None

    def _stop(self) -> None:
        with self._lock:
            self._kill()

    def _kill(self) -> None:
        if self._process is not None and self._line is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
            self._line.close()
            self._process = self._line = None


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """What is started in the block is not reached by Ctrl-C, which a terminal sends to every process: this one ends it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    multiprocessing.resource_tracker.ensure_running()  # it would let the signal through again while it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def answer(line: Connection) -> None:
    """Look at pictures until the other end is closed: (run folder, bytes, ending, folder for what is made) come, JSON or (words, status) goes back."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's, which ends this
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported
    sys.addaudithook(_without_network)
    asker: Any = None
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            path, picture, ending, folder = line.recv()
            try:
                if asker is None:
                    from pellucid.explore.asking import Asker  # needs torch, which takes seconds

                    asker = Asker()
                found: bytes | tuple[str, int] = as_bytes(asker.look(Run(path), picture, ending, Path(folder)))
            except BaseException as error:  # a panic of a library in Rust is no Exception
                found = in_words(error)
            finally:
                shutil.rmtree(folder, ignore_errors=True)  # a server that was killed removes nothing
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
