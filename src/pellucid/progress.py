"""Progress on stderr: a live bar with ETA on a terminal, a plain line every few seconds otherwise."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Self

from pellucid.tables import duration

INTERVAL = 5.0  # seconds between plain lines
LIVE = 0.5  # seconds between drawings of a bar; each costs 3 ms of CPU


class Progress:
    """Tells a person how far a job is. `quiet` says nothing; bars close when the block ends."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._live = not quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._last = time.monotonic()
        self._started: dict[str, tuple[float, int]] = {}
        self._bars: dict[str, int] = {}
        self._rich: object | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def due(self, done: int, total: int) -> bool:
        """Whether a call now would say something, for callers whose text takes time to make."""
        return not self._quiet and (done in (1, total) or time.monotonic() - self._last >= (LIVE if self._live else INTERVAL))

    def __call__(self, what: str, done: int, total: int, detail: str = "") -> None:
        """`done` of `total` of the job named `what`; cheap enough to call at every step."""
        if self._quiet:
            return
        now = time.monotonic()
        started, before = self._started.setdefault(what, (now, done))
        finished = done >= total
        if finished:
            del self._started[what]  # the next job of that name starts its own clock
        if not finished and now - self._last < (LIVE if self._live else INTERVAL):
            return
        if not self._live and now - started < 1.0:
            return  # done before anybody would have looked
        self._last = now
        if self._live:
            self._bar(what, done, total, detail)
        else:
            left = (now - started) / max(done - before, 1) * (total - done)
            eta = "" if finished else f", {duration(left)} left"
            print(f"{what} {done:,}/{total:,}{eta}{'  ' + detail if detail else ''}", file=sys.stderr, flush=True)

    def line(self, text: str) -> None:
        """One line that stays, above the bars."""
        if self._quiet:
            return
        if self._rich is not None:
            self._rich.console.print(text, highlight=False, markup=False)  # type: ignore[attr-defined]
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._rich is not None:
            self._rich.stop()  # type: ignore[attr-defined]
            self._rich = None
            self._bars.clear()

    def _bar(self, what: str, done: int, total: int, detail: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        if self._rich is None:
            self._rich = RichProgress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[detail]}"),
                console=Console(stderr=True), transient=True, auto_refresh=False,
            )  # fmt: skip
            self._rich.start()
        bars: RichProgress = self._rich  # type: ignore[assignment]
        if what not in self._bars:
            self._bars[what] = bars.add_task(what, total=total, detail="")
        bars.update(self._bars[what], completed=done, total=total, detail=detail, refresh=True)  # type: ignore[arg-type]
        if done >= total:
            bars.remove_task(self._bars.pop(what))  # type: ignore[arg-type]
