"""Order, windows and reading ahead.

An epoch is a sequence of windows (one optimiser step each); a window is cut into packs (micro-batches). Which sample
stands where is a function of seed and epoch alone, so any position can be returned to, and neither the number of
threads nor the size of the packs changes it.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

from pellucid.data.augment import Images
from pellucid.data.draws import permutation, uniforms
from pellucid.data.store import Pixels, Store
from pellucid.distributed import ALONE, Processes


@dataclass(frozen=True)
class Window:
    """The samples of one step. rows: (n,) indices into the split; draws: (n,) the sample numbers that key random draws."""

    epoch: int
    index: int
    rows: np.ndarray
    draws: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Pack:
    """Decoded images of positions `start` to `stop` of a window.

    With partners (mixup, CutMix) there is one image more, in front: that of position start - 1 (the last of the window
    for start 0), because the partner of a position is the one before it.

    An idle pack (start = stop) belongs to a process without images of its own: it holds one that does not count, because
    the layers of a synchronised model wait for every process.
    """

    window: Window
    start: int
    stop: int
    images: Images
    rows: np.ndarray
    draws: np.ndarray

    @property
    def idle(self) -> bool:
        return self.start == self.stop

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Cutting:
    """How a window becomes the packs of this process.

    no_single (BatchNorm): no pack of one image, where there are two to be had. together (synchronised BatchNorm): every
    process gets the same number of packs, idle ones among them.
    """

    processes: Processes = ALONE
    no_single: bool = False
    together: bool = False

    def __call__(self, n: int, micro_batch_size: int) -> list[tuple[int, int]]:
        """(start, stop) of each pack in a window of n samples."""
        start, stop = self.processes.share(n, least=2 if self.no_single and not self.together else 1)
        if not self.together:
            return [(start + a, start + b) for a, b in _cuts(stop - start, micro_batch_size, self.no_single)] if stop > start else []
        number = len(_cuts(n, self.processes.size * micro_batch_size, self.no_single))  # as one process cuts it
        edges = [start + (stop - start) * k // number for k in range(number + 1)]
        return list(itertools.pairwise(edges))


def _cuts(n: int, size: int, no_single: bool) -> list[tuple[int, int]]:
    """(start, stop) of n things in pieces of `size`; a last piece of one joins the piece before when `no_single`."""
    edges = [*range(0, n, size), n]
    if no_single and len(edges) > 2 and n - edges[-2] == 1:
        del edges[-2]
    return list(itertools.pairwise(edges))


def num_windows(n: int, batch_size: int, *, no_single: bool) -> int:
    """Steps of an epoch over n samples."""
    return len(_cuts(n, batch_size, no_single))


def epoch_windows(labels: np.ndarray, *, batch_size: int, seed: int, epoch: int, balanced: bool, no_single: bool = False) -> list[Window]:
    """All windows of an epoch; the last one may be short, but with `no_single` (BatchNorm) not of one sample.

    balanced: n draws with replacement, each class with the same probability. A sample drawn for the k-th time in an
    epoch keys its random draws with sample + k n, so that repeats are augmented differently.
    """
    n = len(labels)
    if balanced:
        rows = _balanced_rows(labels, seed, epoch)
        order = np.argsort(rows, kind="stable")
        first = np.searchsorted(rows[order], rows[order], side="left")
        repeat = np.empty(n, np.int64)
        repeat[order] = np.arange(n) - first
        draws = rows + repeat * n
    else:
        rows = permutation(seed, epoch, n)
        draws = rows
    return [Window(epoch, index, rows[start:stop], draws[start:stop]) for index, (start, stop) in enumerate(_cuts(n, batch_size, no_single))]


def ordered_windows(n: int, batch_size: int) -> list[Window]:
    """Windows over a split in its own order, for evaluation."""
    rows = np.arange(n)
    return [Window(0, i, rows[s : s + batch_size], rows[s : s + batch_size]) for i, s in enumerate(range(0, n, batch_size))]


def smaller(windows: Iterable[Window], batch_size: int) -> list[Window]:
    """The same samples in the same order, in windows of at most `batch_size`."""
    return [
        replace(window, rows=window.rows[start:stop], draws=window.draws[start:stop])
        for window in windows
        for start, stop in _cuts(len(window), batch_size, no_single=False)
    ]


def _balanced_rows(labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    n = len(labels)
    by_class = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    u = uniforms(seed, epoch, np.arange(n), "balanced_sampling", 2)
    chosen = (u[:, 0] * len(by_class)).astype(np.int64)
    return np.array([by_class[c][int(v * len(by_class[c]))] for c, v in zip(chosen, u[:, 1], strict=True)], dtype=np.int64)


class Reader:
    """Packs of windows, read ahead by threads in the order in which they will be asked for.

    Use as a context manager: leaving it ends the threads.
    """

    def __init__(self, pixels: Pixels, *, workers: int, partners: bool = False, pin: bool = False, cutting: Cutting = Cutting(), ahead: int = 4) -> None:
        self._pixels, self._partners, self._pin, self._cut = pixels, partners, pin, cutting
        self._pool = ThreadPoolExecutor(workers) if workers else None
        self._depth = max(ahead, 2 * workers)
        self._queue: deque[tuple[tuple[int, int, int, int], Future[Pack]]] = deque()
        self._plan: Iterator[tuple[Window, int, int]] = iter(())
        self._windows: list[Window] = []

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc: object) -> None:
        self._drop()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def plan(self, windows: list[Window], micro_batch_size: int) -> None:
        """Announce what will be asked for, in order; reading starts at once."""
        self._drop()
        self._windows = windows
        self._plan = ((w, *cut) for w in windows for cut in self._cut(len(w), micro_batch_size))
        self._fill()

    def shrink(self, micro_batch_size: int, *, after: Window) -> None:
        """Read what was announced behind a window in packs of another size."""
        self.plan([w for w in self._windows if w.index > after.index], micro_batch_size)

    def packs(self, window: Window, micro_batch_size: int) -> Iterator[Pack]:
        """The packs of one window. What was announced is ready; anything else is read now."""
        for start, stop in self._cut(len(window), micro_batch_size):
            yield self._get(window, start, stop)

    def _get(self, window: Window, start: int, stop: int) -> Pack:
        key = (window.epoch, window.index, start, stop)
        if self._queue and self._queue[0][0] == key:
            future = self._queue.popleft()[1]
            self._fill()
            return future.result()
        return self._read(window, start, stop)

    def _fill(self) -> None:
        while self._pool is not None and len(self._queue) < self._depth:
            following = next(self._plan, None)
            if following is None:
                return
            window, start, stop = following
            self._queue.append(((window.epoch, window.index, start, stop), self._pool.submit(self._read, window, start, stop)))

    def _drop(self) -> None:
        self._plan = iter(())
        while self._queue:
            self._queue.popleft()[1].cancel()

    def _read(self, window: Window, start: int, stop: int) -> Pack:
        if start == stop:  # idle
            start, stop = min(start, len(window) - 1), min(start, len(window) - 1) + 1
            return replace(self._read(window, start, stop), stop=start)
        positions = np.arange(start - 1 if self._partners else start, stop)
        rows, draws = window.rows[positions], window.draws[positions]
        return Pack(window, start, stop, _packed(self._pixels, rows, self._pin), rows, draws)


def _packed(pixels: Pixels, rows: np.ndarray, pin: bool) -> Images:
    """The images of `rows` behind each other; out of a store they are read straight to their places."""
    if not isinstance(pixels, Store):
        return pack_images([pixels.image(int(row)) for row in rows], pin=pin)
    shapes = pixels.shapes(rows)
    flat = torch.empty(sum(height * width * 3 for height, width in shapes), dtype=torch.uint8, pin_memory=pin)
    pixels.read_into(rows, flat.numpy())
    return Images(flat, shapes)


def pack_images(arrays: list[np.ndarray], *, pin: bool = False) -> Images:
    """Decoded (H, W, 3) uint8 images behind each other in one flat tensor, so that one copy brings them to the device."""
    flat = torch.empty(sum(a.size for a in arrays), dtype=torch.uint8, pin_memory=pin)
    if arrays:
        np.concatenate([a.reshape(-1) for a in arrays], out=flat.numpy())
    return Images(flat, [a.shape[:2] for a in arrays])
