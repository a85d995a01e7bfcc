"""Decoded pixels: each image is decoded and resized once and kept as uint8 in one file.

A store is keyed by the content of its images, their order, the resizing and the versions that decide the pixels, so a
changed image or setting never meets an old store. A split larger than the limit streams: decoded when it is
needed, by the same function, hence the same pixels.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import PIL

from pellucid.data.dataset import Dataset, Split
from pellucid.data.images import resize, resized_mask
from pellucid.errors import DataError
from pellucid.palettes import IGNORED, MaskFormat

FORMAT = 1
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Resizing:
    """How a decoded image becomes what is stored; `size` is (height, width) of what the model will see."""

    size: tuple[int, int]
    fit: str
    resize_size: int | None
    interpolation: str


class Pixels(Protocol):
    """Random access to the decoded images of a split."""

    note: str | None

    def __len__(self) -> int: ...

    def image(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8, RGB."""
        ...


class Stream:
    """Decodes when asked; nothing is kept."""

    channels = 3

    def __init__(self, split: Split, resizing: Resizing, note: str | None) -> None:
        self._split, self._resizing, self.note = split, resizing, note

    def __len__(self) -> int:
        return len(self._split)

    def image(self, index: int) -> np.ndarray:
        r = self._resizing
        return resize(self._split.open(index), r.size, r.fit, r.resize_size, r.interpolation)


class MaskStream(Stream):
    """Masks of a split as its images are stored, (H, W) uint8, decoded when asked; bars around an image are ignored."""

    channels = 1

    def image(self, index: int) -> np.ndarray:
        r = self._resizing
        assert self._split.masks is not None
        return resized_mask(self._split.masks.open(index), r.size, r.fit, r.resize_size, bars=IGNORED)


class Store:
    """Decoded images behind each other in one file; any number of threads may read.

    Read and not memory-mapped: mapped pages would count as memory of the process until the whole store is in it, a file that
    is cut meanwhile would kill the process instead of raising, and an image reaches its place in a batch with one copy either way.
    """

    note: str | None = None

    def __init__(self, folder: Path, channels: int = 3) -> None:
        self._shapes, self._channels = np.load(folder / "shapes.npy"), channels
        sizes = self._shapes.astype(np.int64).prod(axis=1) * channels
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._path = folder / "pixels.bin"
        self._file = os.open(self._path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        if os.fstat(self._file).st_size != self._starts[-1]:
            raise ValueError(f"{folder}: pixels and shapes do not belong together")

    def __len__(self) -> int:
        return len(self._shapes)

    def image(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8, RGB, or (H, W) of masks; the caller's own. DataError when the file was changed after it was opened."""
        (height, width), start, stop = self._shapes[index], int(self._starts[index]), int(self._starts[index + 1])
        pixels = np.empty(stop - start, np.uint8)
        self._read(pixels.data, start)
        return pixels.reshape((height, width, 3) if self._channels == 3 else (height, width))

    def shapes(self, rows: np.ndarray) -> list[tuple[int, int]]:
        """(height, width) of each image of `rows`, (n,) integers."""
        return [(height, width) for height, width in self._shapes[rows].tolist()]

    def read_into(self, rows: np.ndarray, packed: np.ndarray) -> None:
        """Fill `packed`, flat uint8 of exactly their size, with the images of `rows` behind each other. DataError as `image`."""
        view, begin = packed.data, 0
        for start, stop in zip(self._starts[rows].tolist(), self._starts[rows + 1].tolist(), strict=True):
            end = begin + stop - start
            self._read(view[begin:end], start)
            begin = end
        assert begin == len(packed), f"expected a place for {begin} bytes, got one for {len(packed)}"

    def _read(self, place: memoryview, start: int) -> None:
        while len(place):
            count = os.preadv(self._file, [place], start)
            if not count:
                raise DataError(f"{self._path}: the file was changed while it was in use: {len(place)} bytes are missing. Remove its folder and run again.")
            place, start = place[count:], start + count


def open_pixels(split: Split, resizing: Resizing, *, limit_bytes: float, directory: str | None, workers: int, progress: Progress | None = None) -> Pixels:
    """The split's pixels: an existing store, a new one, or a stream when they would exceed `limit_bytes`.

    `note` of the result says why it streams.
    """
    return _open(Stream, split, resizing, _key(split, resizing), split.name, limit_bytes, directory, workers, progress)


def open_targets(
    dataset: Dataset, resizing: Resizing, *, limit_bytes: float, directory: str | None, workers: int, progress: Progress | None = None
) -> Pixels | None:
    """The masks of the training images, (H, W) uint8 each, as `open_pixels` gives the images; None where they have none."""
    split = dataset.splits["train"]
    if split.masks is None or dataset.mask_format is None:
        return None
    key = _key(split, resizing, dataset.mask_format)
    return _open(MaskStream, split, resizing, key, "masks of train", limit_bytes, directory, workers, progress)


def _open(
    kind: type[Stream], split: Split, resizing: Resizing, key: str, name: str, limit_bytes: float, directory: str | None, workers: int,
    progress: Progress | None,
) -> Pixels:  # fmt: skip
    stream = kind(split, resizing, None)
    needed = _estimated_bytes(stream)
    if needed > limit_bytes:
        note = f"{name}: {needed / 1e9:.2f} GB decoded exceed data.store.limit_gb {limit_bytes / 1e9:g}; images are decoded in every epoch"
        return kind(split, resizing, note)
    folder = Path(directory) if directory else cache_folder() / "store"
    target = folder / key
    try:
        if not _is_whole(target, kind.channels):
            shutil.rmtree(target, ignore_errors=True)
            _build(stream, target, workers, name, progress)
        return Store(target, kind.channels)
    except OSError as error:  # a full disk or a read-only folder: the same pixels can be had without the store
        return kind(split, resizing, f"{name}: no store could be kept in {folder} ({error.strerror or error}); images are decoded in every epoch")


def channel_statistics(pixels: Pixels) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of R, G, B over all pixels, scaled to [0, 1]; sums are exact integers."""
    total, squares, count = np.zeros(3, np.int64), np.zeros(3, np.int64), 0
    for index in range(len(pixels)):
        histogram = [np.bincount(pixels.image(index)[..., c].ravel(), minlength=256) for c in range(3)]
        values = np.arange(256, dtype=np.int64)
        total += [int(h @ values) for h in histogram]
        squares += [int(h @ values**2) for h in histogram]
        count += int(histogram[0].sum())
    mean = total / count
    std = np.sqrt(squares / count - mean**2)
    return (mean / 255).tolist(), (np.maximum(std, 1e-3) / 255).tolist()


def cache_folder() -> Path:
    """Where Pellucid keeps what can be made again: XDG_CACHE_HOME/pellucid."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pellucid"


def _key(split: Split, resizing: Resizing, mask_format: MaskFormat | None = None) -> str:
    """The name of a store: of images, or of their masks as a format reads them."""
    digest = hashlib.blake2b(digest_size=16)
    said = [FORMAT, PIL.__version__, asdict(resizing)] + ([asdict(mask_format)] if mask_format is not None else [])
    digest.update(json.dumps(said).encode())
    contents = split.hashes if mask_format is None else (content for _, _, content in split.rows())
    for content in contents:
        digest.update(content.encode())
    return digest.hexdigest()


def _is_whole(target: Path, channels: int) -> bool:
    """Whether a store is there and can be opened; a torn one is built again."""
    if not target.exists():
        return False
    try:
        Store(target, channels)
    except (OSError, ValueError, EOFError):
        return False
    return True


def _estimated_bytes(stream: Stream) -> float:
    """Bytes of the decoded split, from up to 32 of its images."""
    chosen = np.unique(np.linspace(0, len(stream) - 1, 32).astype(int))
    return float(np.mean([stream.image(int(i)).nbytes for i in chosen]) * len(stream))


def _build(stream: Stream, target: Path, workers: int, name: str, progress: Progress | None) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".building-", dir=target.parent))
    try:
        shapes = np.empty((len(stream), 2), np.int32)
        with (temporary / "pixels.bin").open("wb") as file:
            for index, image in enumerate(_in_order(stream, max(1, workers))):
                shapes[index] = image.shape[:2]
                file.write(image.tobytes())
                if progress is not None:
                    progress(f"decoding {name}", index + 1, len(stream))
            file.flush()
            os.fsync(file.fileno())
        np.save(temporary / "shapes.npy", shapes)
        if not target.exists():
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _in_order(stream: Stream, workers: int) -> Iterator[np.ndarray]:
    """All images, decoded by threads, never more than a few ahead."""
    with ThreadPoolExecutor(workers) as pool:
        ahead = [pool.submit(stream.image, i) for i in range(min(4 * workers, len(stream)))]
        for index in range(len(stream)):
            following = index + len(ahead)
            future = ahead[index % len(ahead)]
            yield future.result()
            if following < len(stream):
                ahead[index % len(ahead)] = pool.submit(stream.image, following)
