"""A map on its photograph, pixel for pixel, and arrays as colours. Photos are (H, W, 3) uint8 RGB; needs neither torch nor a display.

A view is (top, left, height, width) in pixels of the photo, fractions allowed: the part that the model saw. A map (gh, gw) divides
its view evenly: patch (i, j) covers the rows top + i height / gh to top + (i + 1) height / gh, and the columns likewise.

Colours come from matplotlib's "inferno" for maps and "viridis" for similarities: lightness rises evenly with the value, so that both
read the same in grey and to colour-blind eyes.
"""

from __future__ import annotations

import matplotlib
import numpy as np
import PIL.Image
from numpy.typing import ArrayLike, NDArray

from pellucid.errors import UsageError

View = tuple[float, float, float, float]

MAP_COLOURS, SIMILARITY_COLOURS = "inferno", "viridis"
LIGHT, STRONG = 0.35, 0.8  # weight of the colour over the photo where the map is 0, and where it is highest
DIMMED = 0.25  # brightness of what the model did not see
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


def overlay(photo: NDArray[np.uint8], values: ArrayLike, view: View | None = None) -> NDArray[np.uint8]:
    """The photo with a map over it, (H, W, 3) uint8 at the photo's own resolution. `view` None is the whole photo.

    values: (gh, gw), >= 0. v is the map over its maximum, stretched by `stretched` and clipped to [0, 1]; a map of zeros is v = 0.
    Inside the view a pixel is (1 - w) * grey + w * colour(v) with w = LIGHT + (STRONG - LIGHT) * v; grey is the photo's lightness, so
    that every colour in the result is the map's. Outside the view a pixel is the photo at DIMMED of its brightness.
    """
    photo, values = _checked_photo(photo), _checked_map(values)
    height, width = photo.shape[:2]
    top, left, view_height, view_width = _checked_view(view, (height, width))
    rows, columns = _covered(top, view_height, height), _covered(left, view_width, width)
    result = np.rint(photo * np.float32(DIMMED)).astype(np.uint8)
    inside = (rows, columns)
    most = float(values.max())
    scaled = values / most if most > 0 else values
    share = np.clip(stretched(scaled, (height, width), view)[inside], 0.0, 1.0)
    weight = (LIGHT + (STRONG - LIGHT) * share)[..., None]
    grey = (photo[inside] @ _LUMA)[..., None]
    result[inside] = np.rint((1 - weight) * grey + weight * coloured(share, MAP_COLOURS)).astype(np.uint8)
    return result


def stretched(values: NDArray[np.float64], size: tuple[int, int], view: View | None = None) -> NDArray[np.float32]:
    """A map (gh, gw) at each pixel of a photo of this size (H, W), (H, W) float32; a pixel outside the view has what its nearest edge has.

    Bicubic (Keys 1981, a = -0.5) at pixel centres, taps beyond the map left out and the others renormalised: what Pillow's BICUBIC
    gives where it enlarges to a whole rectangle, but for views whose edges fall between pixels as well.
    """
    top, left, height, width = _checked_view(view, size)
    down = _weights(size[0], top, height, values.shape[0])  # (H, gh)
    across = _weights(size[1], left, width, values.shape[1])  # (W, gw)
    return down @ values.astype(np.float32) @ across.T


def coloured(share: NDArray[np.floating], colours: str) -> NDArray[np.uint8]:
    """(…, 3) uint8: the colour of each value in [0, 1]; NaN is white."""
    table = np.rint(255 * matplotlib.colormaps[colours](np.arange(256))[:, :3]).astype(np.uint8)  # (256, 3)
    index = np.rint(255 * np.clip(np.nan_to_num(share), 0.0, 1.0)).astype(np.uint8)
    result = table[index]
    result[np.isnan(share)] = 255
    return result


def grid_of_grids(similarity: ArrayLike) -> NDArray[np.float32]:
    """(gh, gw, gh, gw) as one array (gh (gh + 1) - 1, gw (gw + 1) - 1): at (i, j) the map of position (i, j), one NaN line between two."""
    values = np.asarray(similarity, dtype=np.float32)
    if values.ndim != 4 or values.shape[:2] != values.shape[2:] or not values.size:
        raise UsageError(f"expected similarities of each position with each other, (gh, gw, gh, gw); got shape {values.shape}")
    gh, gw = values.shape[:2]
    apart = np.full((gh, gh + 1, gw, gw + 1), np.nan, dtype=np.float32)
    apart[:, :gh, :, :gw] = values.transpose(0, 2, 1, 3)  # (row, row of its map, column, column of its map)
    return apart.reshape(gh * (gh + 1), gw * (gw + 1))[:-1, :-1]


def reduced(photo: NDArray[np.uint8], view: View | None, side: int) -> tuple[NDArray[np.uint8], View]:
    """The photo with its long side at most `side` pixels, and the same view in the new pixels."""
    photo = _checked_photo(photo)
    height, width = photo.shape[:2]
    seen = _checked_view(view, (height, width))
    if max(height, width) <= side:
        return photo, seen
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = np.asarray(PIL.Image.fromarray(photo).resize(size, PIL.Image.Resampling.BOX if scale < 0.25 else PIL.Image.Resampling.LANCZOS))
    down, across = size[1] / height, size[0] / width
    return small, (seen[0] * down, seen[1] * across, seen[2] * down, seen[3] * across)


def _weights(num_pixels: int, start: float, length: float, num_patches: int) -> NDArray[np.float32]:
    """(pixels, patches): what each patch along one side gives to each pixel; rows sum to 1."""
    centres = (np.arange(num_pixels) + 0.5 - start) * num_patches / length  # of pixels, in patches; patch i spans i to i + 1
    distance = np.abs(np.clip(centres, 0.0, num_patches)[:, None] - (np.arange(num_patches) + 0.5))
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1  # Keys 1981, eq. 4 with a = -1/2
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    normal: NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return normal


def _covered(start: float, length: float, num_pixels: int) -> slice:
    """The pixels whose centres lie in [start, start + length)."""
    first, last = np.ceil(start - 0.5), np.ceil(start + length - 0.5)
    return slice(int(np.clip(first, 0, num_pixels)), int(np.clip(last, 0, num_pixels)))


def _checked_photo(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or not photo.size:
        raise UsageError(f"expected a photo of shape (H, W, 3) in uint8, got {photo.dtype} {photo.shape}")
    return photo


def _checked_map(values: ArrayLike) -> NDArray[np.float64]:
    checked = np.asarray(values, dtype=np.float64)
    if checked.ndim != 2 or not checked.size or not np.isfinite(checked).all() or checked.min() < 0:
        low = f", lowest {checked.min()}" if checked.size else ""
        raise UsageError(f"expected a map (gh, gw) of finite numbers >= 0, got shape {checked.shape}{low}")
    return checked


def _checked_view(view: View | None, size: tuple[int, int]) -> View:
    top, left, height, width = (0.0, 0.0, float(size[0]), float(size[1])) if view is None else view
    overlaps = top < size[0] and left < size[1] and top + height > 0 and left + width > 0
    if not (np.isfinite([top, left, height, width]).all() and height > 0 and width > 0 and overlaps):
        raise UsageError(f"expected a view (top, left, height, width) that overlaps a photo of {size[0]} x {size[1]} pixels, got {view}")
    return top, left, height, width
