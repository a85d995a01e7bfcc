"""Images as evaluations take them, window by window, and as plain numbers without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch import nn

from pellucid.data.augment import Images, evaluate_view
from pellucid.data.loader import Pack, Reader, Window
from pellucid.data.store import Pixels

PIXEL_SIDE = 16  # raw pixels are compared at this size: 768 numbers an image


def packs(pixels: Pixels, windows: Sequence[Window], workers: int, told: Callable[[int, int], None] | None = None) -> Iterator[Pack]:
    """Each window as one pack, read ahead. told(done, total) after each."""
    with Reader(pixels, workers=workers) as reader:
        reader.plan(list(windows), max(map(len, windows), default=1))
        for number, window in enumerate(windows, 1):
            yield from reader.packs(window, len(window))
            if told is not None:
                told(number, len(windows))


def raw_pixels(images: Images, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """(B, 3 s s) float32: normalised images, averaged to s x s pixels."""
    inputs = evaluate_view(images, size=size, mean=mean, std=std)
    return nn.functional.adaptive_avg_pool2d(inputs, PIXEL_SIDE).flatten(1).numpy()
