"""How a damaged input is judged: within time and memory, by an error that names it; and pickles that would run code."""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from damaged import Damaged
from pellucid.errors import PellucidError

SECONDS, BYTES = 15.0, 2_000_000_000  # for one input: an ordinary one takes milliseconds, a shared machine may be slow


def counts(slice_: int, all_: int) -> pytest.MarkDecorator:
    """`count` of a test: a slice for every day, all for `make proof`."""
    return pytest.mark.parametrize("count", [slice_, pytest.param(all_, marks=pytest.mark.proof)])


class TookTooLongError(BaseException):
    """Not an Exception, so that nothing on the way can take it for a fault of the file."""


@contextmanager
def judged(case: Damaged) -> Iterator[None]:
    """Whatever goes wrong inside says which input it was. An input has SECONDS and BYTES."""

    def stop(*_: object) -> None:
        raise TookTooLongError

    # A decoder that hangs in C hears no signal: the whole process then ends, with the stacks of its threads.
    faulthandler.dump_traceback_later(4 * SECONDS, exit=True)
    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else None
    if pages is not None:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, limits[1]))
    try:
        yield
    except (Exception, TookTooLongError) as error:
        raise AssertionError(f"{case}: {type(error).__name__}: {str(error)[:500]}") from error
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def refused(action: Callable[[], object], *names: str) -> str | None:
    """The message of the error that an action ends in, which must hold one of `names`; None when it works. Any other error passes through."""
    try:
        action()
    except PellucidError as error:
        message = str(error)
    else:
        return None
    assert any(name in message for name in names), f"none of {names} stands in: {message}"
    return message


class Malicious:
    """What pickle would run on loading."""

    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call, self.arguments


def malicious(marker: Path) -> list[Malicious]:
    return [
        Malicious(os.system, f"touch {marker}"),
        Malicious(exec, f"open({str(marker)!r}, 'w').close()"),
        Malicious(os.mkdir, str(marker)),
        Malicious(subprocess.check_call, ["touch", str(marker)]),
    ]
