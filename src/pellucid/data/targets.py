"""The masks of a training batch under the geometry of its augmentation: nearest neighbour, and ignored where the image does not reach.

Each pixel takes the class in the middle of what it covers. Crops, flips and rotation are those of `augment.Augment` for the same samples and epoch; colour
changes and erasing leave a mask as it is. torchvision.transforms.v2 on its own `Mask` type is the oracle of the tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pellucid.data.augment import Augment, Plan
from pellucid.data.draws import Integers
from pellucid.palettes import IGNORED


def augmented_masks(augment: Augment, masks: Sequence[np.ndarray], *, samples: Integers, epoch: int) -> np.ndarray:
    """(B, H, W) uint8 of masks (H', W') uint8 in the form in which their images are stored; samples: (B,) the numbers that key the draws."""
    plan = augment.plan([mask.shape[:2] for mask in masks], samples, epoch)
    out = np.empty((len(masks), *augment.size), np.uint8)
    for i, mask in enumerate(masks):
        out[i] = _moved(augment, plan, i, mask)
    return out


def _moved(augment: Augment, plan: Plan, i: int, mask: np.ndarray) -> np.ndarray:
    box = plan.boxes[i].tolist()
    moved = _resized_crop(mask, box, augment.size) if augment.random_resized_crop is not None else _cropped(mask, box)
    if plan.horizontal_flip is not None and plan.horizontal_flip[i]:
        moved = moved[:, ::-1]
    if plan.vertical_flip is not None and plan.vertical_flip[i]:
        moved = moved[::-1]
    if plan.degrees is not None:
        moved = _rotated(moved, float(plan.degrees[i]))
    return moved


def _cropped(mask: np.ndarray, box: Sequence[int]) -> np.ndarray:
    """The box (top, left, height, width) of a mask; what lies outside of it is ignored."""
    top, left, height, width = box
    inside = mask[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
    if inside.shape == (height, width):
        return inside
    out = np.full((height, width), IGNORED, np.uint8)
    down, right = max(-top, 0), max(-left, 0)
    out[down : down + inside.shape[0], right : right + inside.shape[1]] = inside
    return out


def _resized_crop(mask: np.ndarray, box: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """The box of a mask at another size: pixel i takes the value at (i + 1/2) height / H, in whole numbers."""
    top, left, height, width = box
    rows = top + (2 * np.arange(size[0]) + 1) * height // (2 * size[0])
    columns = left + (2 * np.arange(size[1]) + 1) * width // (2 * size[1])
    return mask[rows[:, None], columns]


def _rotated(mask: np.ndarray, degrees: float) -> np.ndarray:
    """Turned counter-clockwise about the centre, as `augment.rotate_` turns images; uncovered pixels are ignored."""
    H, W = mask.shape
    angle = np.deg2rad(degrees)
    x = np.arange(W) - (W - 1) / 2
    y = (np.arange(H) - (H - 1) / 2)[:, None]
    columns = np.floor(np.cos(angle) * x - np.sin(angle) * y + W / 2).astype(np.int64)  # + (W - 1) / 2 to the corner, + 1/2 to round
    rows = np.floor(np.sin(angle) * x + np.cos(angle) * y + H / 2).astype(np.int64)
    there = (rows >= 0) & (rows < H) & (columns >= 0) & (columns < W)
    return np.where(there, mask[rows.clip(0, H - 1), columns.clip(0, W - 1)], np.uint8(IGNORED))
