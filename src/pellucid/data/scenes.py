"""Drawn scenes: an embedded data set of any size, with a class, a pixel mask and a caption for each picture.

A scene holds a large and a small object of different shape and colour on a plain or textured background, one above or to the
left of the other. Its class is the shape of the large object; its caption reads "a small red circle above a large blue square".

A scene is a function of (split, index, image size, seed) alone, with the same bits on any machine: random numbers are the raw
words of a Philox generator (whose stream NumPy fixes) keyed by a hash of those four, and everything after them, from places to
antialiased edges, is integer arithmetic. No photograph-like realism is meant: no light, no occlusion, no perspective.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pellucid.errors import DataError

SIZES = ("large", "small")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (216, 48, 44),
    "orange": (242, 134, 32),
    "yellow": (250, 214, 56),
    "green": (44, 158, 76),
    "cyan": (56, 192, 204),
    "blue": (48, 96, 216),
    "purple": (140, 68, 184),
    "pink": (240, 128, 176),
}
BACKGROUNDS: tuple[tuple[int, int, int], ...] = (
    (236, 232, 222), (222, 230, 238), (206, 204, 200), (28, 30, 38), (48, 42, 40), (36, 52, 48), (62, 62, 72), (120, 116, 110),
)  # fmt: skip

DRAWING_VERSION = 1  # goes up with any change of a drawn bit, so that hashes and stores of older drawings are not taken for these
SMALLEST_SIDE = 16  # pixels; below it the small object has no shape any more

_SAMPLES = 4  # by _SAMPLES: subsamples of a pixel, whose share inside a shape is its coverage
_FULL = _SAMPLES * _SAMPLES
_UNIT = 2 * _SAMPLES  # places are integers of 1/8 pixel: subsample centres are the odd ones
_CONTRAST = 150  # least sum of absolute RGB differences between an object and its background


@dataclass(frozen=True)
class Object:
    """One thing of a scene. `box` is (top, left, bottom, right) in pixels, half open, around every pixel that it touches."""

    shape: str
    color: str
    size: str
    box: tuple[int, int, int, int]

    def __str__(self) -> str:
        return _phrase(self.size, self.color, self.shape)


def _phrase(size: str, color: str, shape: str) -> str:
    return f"a {size} {color} {shape}"


@dataclass(frozen=True)
class Scene:
    """A drawn picture and all that is true of it.

    image: (H, W, 3) uint8 RGB. label: index into SHAPES of the large object. mask: (H, W) uint8, 0 background, 1 + index into
    SHAPES where at least half a pixel belongs to an object. objects: in the order of the caption.
    """

    image: np.ndarray
    label: int
    mask: np.ndarray
    caption: str
    objects: tuple[Object, Object]


def draw(index: int, *, split: str, image_size: tuple[int, int], seed: int = 0) -> Scene:
    """The scene of an index in a split, `image_size` = (H, W) in pixels. Six scenes in a row hold each class once."""
    words = _Words(_key(index, split, image_size, seed))
    plan = _planned(words, index, image_size)
    image = _background(words, image_size, plan.colors)
    mask = np.zeros(image_size, np.uint8)
    drawn = []
    for size, shape, color, (row, column, radius) in zip(SIZES, plan.shapes, plan.colors, plan.places, strict=True):
        name = list(COLORS)[color]
        drawn.append(Object(SHAPES[shape], name, size, _paint(image, mask, shape, COLORS[name], row, column, radius)))
    first, second = (drawn[one] for one in plan.order)
    return Scene(image, plan.shapes[0], mask, plan.caption, (first, second))


def caption(index: int, *, split: str, image_size: tuple[int, int], seed: int = 0) -> str:
    """The caption of a scene; nothing is drawn."""
    return _planned(_Words(_key(index, split, image_size, seed)), index, image_size).caption


def name(index: int, *, split: str) -> str:
    """The file name that a scene goes by."""
    return f"scenes-{split}-{index:06d}.png"


def content_hash(index: int, *, split: str, image_size: tuple[int, int], seed: int = 0) -> str:
    """What decides a scene's bits, as 32 hex digits; cheap, nothing is drawn."""
    return _key(index, split, image_size, seed).hex()


def _key(index: int, split: str, image_size: tuple[int, int], seed: int) -> bytes:
    text = f"scenes {DRAWING_VERSION}|{split}|{index}|{image_size[0]}x{image_size[1]}|{seed}"
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class _Words:
    """Raw 64-bit words of a Philox generator. Only the raw stream is promised to stay; numpy's distributions may change."""

    def __init__(self, key: bytes) -> None:
        self._generator = np.random.Philox(key=int.from_bytes(key, "little"))
        self._words: list[int] = self._generator.random_raw(16).tolist()

    def below(self, n: int) -> int:
        """A whole number in [0, n); the bias of the modulo is under n / 2^64."""
        if not self._words:
            self._words = self._generator.random_raw(16).tolist()
        return self._words.pop() % n

    def bytes(self, n: int) -> np.ndarray:
        """(n,) uint8."""
        return self._generator.random_raw(-(-n // 8)).astype("<u8").view(np.uint8)[:n]


# ── where things are ──────────────────────────────────────────────────────────────────────────────────────────

Place = tuple[int, int, int]  # row and column of the centre, radius; all in 1/8 pixel


@dataclass(frozen=True)
class _Plan:
    """What a scene holds, before it is drawn: of the large and the small object the shape and the color by index, and the place. order: of the caption."""

    shapes: tuple[int, int]
    colors: tuple[int, int]
    places: tuple[Place, Place]
    relation: str
    order: tuple[int, int]

    @property
    def caption(self) -> str:
        first, second = (_phrase(SIZES[one], list(COLORS)[self.colors[one]], SHAPES[self.shapes[one]]) for one in self.order)
        return f"{first} {self.relation} {second}"


def _planned(words: _Words, index: int, image_size: tuple[int, int]) -> _Plan:
    """The first draws of a scene; those of its background come behind them."""
    if min(image_size) < SMALLEST_SIDE:
        raise DataError(f"scenes: image_size is at least {SMALLEST_SIDE} pixels on both sides, got {image_size[0]} x {image_size[1]}")
    large_shape = index % len(SHAPES)
    small_shape = (large_shape + 1 + words.below(len(SHAPES) - 1)) % len(SHAPES)
    large_color = words.below(len(COLORS))
    small_color = (large_color + 1 + words.below(len(COLORS) - 1)) % len(COLORS)
    relation = ("above", "left of")[words.below(2)]
    large, small, small_first = _places(words, image_size, vertical=relation == "above")
    return _Plan((large_shape, small_shape), (large_color, small_color), (large, small), relation, (1, 0) if small_first else (0, 1))


def _places(words: _Words, image_size: tuple[int, int], *, vertical: bool) -> tuple[Place, Place, bool]:
    """Places of the large and the small object, one behind the other along the axis of the relation; whether the small is first.

    Diameters are 45 to 60 % and 18 to 25 % of the short side. Along the axis the two never touch; across it the small object's
    centre stays within the extent of the large one, so that the relation is plain to see.
    """
    height, width = (side * _UNIT for side in image_size)
    along, across = (height, width) if vertical else (width, height)
    short = min(height, width)
    large = short * (450 + words.below(151)) // 2000  # radius
    small = short * (180 + words.below(71)) // 2000
    small_first = words.below(2) == 1
    margin = short // 50
    slack = along - 2 * large - 2 * small - 3 * margin  # at least 9 % of the side
    before = words.below(slack + 1)
    gap = margin + words.below(slack - before + 1)
    one, two = (small, large) if small_first else (large, small)
    first = margin + before + one
    second = first + one + gap + two
    large_along, small_along = (second, first) if small_first else (first, second)
    large_across = margin + large + words.below(across - 2 * large - 2 * margin + 1)
    least, most = max(margin + small, large_across - large), min(across - margin - small, large_across + large)
    small_across = least + words.below(most - least + 1)
    if vertical:
        return (large_along, large_across, large), (small_along, small_across, small), small_first
    return (large_across, large_along, large), (small_across, small_along, small), small_first


# ── how things look ───────────────────────────────────────────────────────────────────────────────────────────

_RGB = tuple(COLORS.values())


def _contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> int:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True))


# (color, color) -> indices of the backgrounds that both stand out from.
_FITTING = {
    (a, b): tuple(i for i, ground in enumerate(BACKGROUNDS) if min(_contrast(ground, _RGB[a]), _contrast(ground, _RGB[b])) >= _CONTRAST)
    for a in range(len(_RGB))
    for b in range(len(_RGB))
}


def _background(words: _Words, image_size: tuple[int, int], colors: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8: one muted colour, plain or varied by a texture of at most 14 grey levels either way."""
    fitting = _FITTING[colors]
    color = np.array(BACKGROUNDS[fitting[words.below(len(fitting))]], np.int16)
    texture = (_plain, _stripes, _checks, _speckle, _slope)[words.below(5)](words, image_size)
    return (color + texture[:, :, None]).astype(np.uint8)  # backgrounds keep 14 levels from both ends


def _plain(words: _Words, image_size: tuple[int, int]) -> np.ndarray:
    return np.zeros(image_size, np.int16)


def _stripes(words: _Words, image_size: tuple[int, int]) -> np.ndarray:
    down, right = ((1, 0), (0, 1), (1, 1), (1, -1))[words.below(4)]
    period = max(2, min(image_size) * (6 + words.below(7)) // 100)
    level = (np.arange(image_size[0])[:, None] * down + np.arange(image_size[1]) * right) // period % 2
    return np.where(level == 1, 9, -9).astype(np.int16)


def _checks(words: _Words, image_size: tuple[int, int]) -> np.ndarray:
    period = max(2, min(image_size) * (8 + words.below(9)) // 100)
    level = (np.arange(image_size[0])[:, None] // period + np.arange(image_size[1]) // period) % 2
    return np.where(level == 1, 8, -8).astype(np.int16)


def _speckle(words: _Words, image_size: tuple[int, int]) -> np.ndarray:
    height, width = image_size
    return words.bytes(height * width).reshape(height, width).astype(np.int16) * 29 // 256 - 14


def _slope(words: _Words, image_size: tuple[int, int]) -> np.ndarray:
    height, width = image_size
    rows, columns = np.arange(height)[:, None] * 28 // height, np.arange(width) * 28 // width
    slope = (rows + 0 * columns, 0 * rows + columns, (rows + columns) // 2, (rows + columns[::-1]) // 2)[words.below(4)]
    return (slope - 14).astype(np.int16)


# ── shapes ────────────────────────────────────────────────────────────────────────────────────────────────────
# Each gives the inside of a shape at grid points (rows y downwards, columns x, from the centre) for a radius r: bool (h, w).


def _circle(y: np.ndarray, x: np.ndarray, r: int) -> np.ndarray:
    return y * y + x * x <= r * r


def _square(y: np.ndarray, x: np.ndarray, r: int) -> np.ndarray:
    side = r * 88 // 100  # about the area of the circle
    return (abs(y) <= side) & (abs(x) <= side)


def _triangle(y: np.ndarray, x: np.ndarray, r: int) -> np.ndarray:
    """Apex up, base at the bottom of the box."""
    return (y <= r * 85 // 100) & (y * 4 >= abs(x) * 8 - r * 4 + r * 15 // 100)


def _star(y: np.ndarray, x: np.ndarray, r: int) -> np.ndarray:
    """Pentagram: the points inside at least four of the five half planes of its lines. (cos, sin) of the normals, times 1024, cos 72° = 316."""
    count = sum((ny * y + nx * x <= r * 316).astype(np.uint8) for ny, nx in _NORMALS)
    return np.asarray(count >= 4)


def _cross(y: np.ndarray, x: np.ndarray, r: int) -> np.ndarray:
    arm, reach = r * 32 // 100, r * 96 // 100
    y, x = abs(y), abs(x)
    return ((y <= arm) & (x <= reach)) | ((x <= arm) & (y <= reach))


def _ring(y: np.ndarray, x: np.ndarray, r: int) -> np.ndarray:
    distance, hole = y * y + x * x, r * 58 // 100
    return (distance <= r * r) & (distance >= hole * hole)


_NORMALS = ((-1024, 0), (-316, 974), (-316, -974), (828, 602), (828, -602))  # point up: normals at 90 degrees and every 72 from there
_INSIDE: tuple[Callable[[np.ndarray, np.ndarray, int], np.ndarray], ...] = (_circle, _square, _triangle, _star, _cross, _ring)


def _paint(image: np.ndarray, mask: np.ndarray, shape: int, color: tuple[int, int, int], row: int, column: int, radius: int) -> tuple[int, int, int, int]:
    """Draw a shape into image and mask; returns the box of the pixels it touches."""
    top, left = (row - radius) // _UNIT, (column - radius) // _UNIT
    bottom, right = -(-(row + radius) // _UNIT), -(-(column + radius) // _UNIT)
    y = np.arange(top * _UNIT + 1, bottom * _UNIT, 2, dtype=np.int32)[:, None] - row
    x = np.arange(left * _UNIT + 1, right * _UNIT, 2, dtype=np.int32) - column
    inside = _INSIDE[shape](y, x, radius).view(np.uint8)
    rows = inside[0::4] + inside[1::4] + inside[2::4] + inside[3::4]
    coverage = rows[:, 0::4] + rows[:, 1::4] + rows[:, 2::4] + rows[:, 3::4]  # 0..16

    window = (slice(top, bottom), slice(left, right))
    share = coverage.astype(np.int16)[:, :, None]
    image[window] = (image[window] * (_FULL - share) + np.array(color, np.int16) * share + _FULL // 2) // _FULL
    mask[window][coverage * 2 >= _FULL] = 1 + shape
    touched_rows, touched_columns = np.flatnonzero(coverage.any(axis=1)), np.flatnonzero(coverage.any(axis=0))
    return top + int(touched_rows[0]), left + int(touched_columns[0]), top + int(touched_rows[-1]) + 1, left + int(touched_columns[-1]) + 1
