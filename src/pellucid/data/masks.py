"""Which pixels of an image are the thing that it shows: masks of drawn scenes and masks in files, read as the recipe says.

A mask is (H, W) uint8 at the image's own size: 1 target, 0 not, 255 neither. In a file it is a PNG with one value a pixel: grey values or palette
indices are taken as they are, never as colours. The image is upright, so its mask has to be.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from pellucid.data import scenes
from pellucid.data.dataset import Masks as ClassMasks
from pellucid.data.dataset import Split
from pellucid.data.inspection import listed
from pellucid.errors import DataError, UsageError, did_you_mean
from pellucid.palettes import orientation_of, turned_words
from pellucid.schema import DataSection, InsideSection

TARGET, IGNORED = 1, 255
Masks = Callable[[int], np.ndarray]

_SCENE = re.compile(r"scenes-(\w+)-(\d+)\.png")


def masks_of(inside: InsideSection, data: DataSection, split: Split, rows: Sequence[int]) -> Masks | None:
    """row of the split -> its mask, (H, W) uint8 of 0, 1 and 255; None where the data has no masks.

    DataError names those of `rows` that have none, before one is read, and while reading a file that is no mask of its image.
    """
    target = None if inside.mask_target is None else np.array(inside.mask_target)
    ignored = np.array(inside.mask_ignore, np.int64)
    if data.source == "scenes":
        return lambda row: _scene_mask(split.names[row], data.size, target, ignored)
    if inside.masks is None:
        return None
    files = _files(Path(inside.masks), split, rows)

    def read(row: int) -> np.ndarray:
        picture = split.open(row)
        return marked_values(read_mask(files(row), (picture.height, picture.width)), inside.mask_target, inside.mask_ignore)

    return read


def mask_beside(inside: InsideSection, photograph: str, size: tuple[int, int]) -> np.ndarray | None:
    """(H, W) uint8 of a photograph that is no image of the split: <stem>.png in the folder of masks, None where there is none."""
    file = None if inside.masks is None else Path(inside.masks) / f"{Path(photograph).stem}.png"
    return marked_values(read_mask(file, size), inside.mask_target, inside.mask_ignore) if file is not None and file.is_file() else None


def class_masks(inside: InsideSection, classes: Sequence[str], masks: ClassMasks, rows: Sequence[int | None]) -> tuple[list[np.ndarray | None], list[int]]:
    """([(H, W) uint8 mask of 1, 0 and 255], [class whose pixels are the target]) of rows of a split with masks; None and -1 where there is no row or class.

    The class is the largest of inside.classes in the picture, without them the largest that is not called background. UsageError for an unknown one.
    """
    for name in inside.classes or ():
        if name not in classes:
            raise UsageError(f"inside.classes: the data has no class {name!r}.{did_you_mean(name, classes)} Known: {', '.join(classes[:20])}.")
    wanted = [classes.index(name) for name in inside.classes] if inside.classes else [c for c, name in enumerate(classes) if name.lower() != "background"]
    found: list[np.ndarray | None] = []
    labels = []
    for row in rows:
        counts = np.zeros(len(classes), np.int64) if row is None else masks.pixels[row, :-1]
        largest = max(wanted, key=lambda c: counts[c])
        there = row is not None and counts[largest] > 0
        labels.append(largest if there else -1)
        found.append(_of_class(masks.open(row), largest) if there and row is not None else None)
    return found, labels


def _of_class(mask: np.ndarray, c: int) -> np.ndarray:
    return np.where(mask == IGNORED, IGNORED, np.where(mask == c, TARGET, 0)).astype(np.uint8)


def one_sided(masks: Sequence[np.ndarray]) -> str | None:
    """What is wrong where masks say nothing about a map: not one has a target, or none has anything else. None where all is well or there are none."""
    if masks and all((mask != 0).all() for mask in masks):
        return f"every pixel of {len(masks)} masks is target or ignored, so that any map would be right"
    return f"of {len(masks)} masks none has a target" if masks and not any((mask == TARGET).any() for mask in masks) else None


def without_target(masks: Sequence[np.ndarray], inside: InsideSection) -> str | None:
    """`one_sided` in the words of a recipe."""
    fault = one_sided(masks)
    if fault is None:
        return None
    wanted = "every value above 0" if inside.mask_target is None else f"inside.mask_target {inside.mask_target}"
    return (
        f"{inside.masks or 'scenes'}: {fault}; now the target is {wanted}. Set inside.mask_target to the values that mark the target, "
        "inside.mask_ignore to those that count neither way."
    )


def marked_values(values: np.ndarray, target: Sequence[int] | None, ignored: Sequence[int]) -> np.ndarray:
    """(H, W) uint8 of a mask's values: 1 where they are of `target` (None: above 0), 255 where of `ignored`, else 0."""
    return _marked(values, values > 0 if target is None else np.isin(values, target), np.array(ignored, np.int64))


def _marked(values: np.ndarray, target: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    return np.where(np.isin(values, ignored), IGNORED, np.where(target, TARGET, 0)).astype(np.uint8)


def _scene_mask(name: str, size: tuple[int, int], target: np.ndarray | None, ignored: np.ndarray) -> np.ndarray:
    """The mask of a drawn scene by its name, which says how it was drawn; by default of the large object, whose shape is the class."""
    found = _SCENE.fullmatch(name)
    assert found is not None, f"{name} is not the name of a scene"
    scene = scenes.draw(int(found[2]), split=found[1], image_size=size)
    return _marked(scene.mask, scene.mask == 1 + scene.label if target is None else np.isin(scene.mask, target), ignored)


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _files(folder: Path, split: Split, rows: Sequence[int]) -> Callable[[int], Path]:
    """row -> file of its mask: <path of the image without ending>.png, or <stem>.png where one stem means one image."""
    if not folder.is_dir():
        raise DataError(f"{folder}: expected the folder of inside.masks, there is none")

    def places(row: int) -> tuple[Path, Path]:
        name = PurePosixPath(split.names[row])
        return folder / name.with_suffix(".png"), folder / f"{name.stem}.png"

    def place(row: int) -> Path:
        own, flat = places(row)
        return own if own.is_file() else flat

    missing = [split.names[row] for row in rows if not place(row).is_file()]
    if missing:
        raise DataError(
            f"{folder}: expected <stem>.png for each image, {len(missing)} of {len(rows)} have none:{listed(missing)}\n"
            "Add the masks, take fewer inside.samples, or leave inside.masks out: maps are then drawn and scored without masks."
        )
    flat = {place(row) for row in rows} - {places(row)[0] for row in rows}
    if flat:
        stems = Counter(PurePosixPath(name).stem for name in split.names)
        shared = [split.names[row] for row in rows if place(row) in flat and stems[PurePosixPath(split.names[row]).stem] > 1]
        if shared:
            raise DataError(f"{folder}: other images of {split.name} have the same stem, so that it is not said whose mask it is:{listed(shared)}")
    return place


def read_mask(file: Path, size: tuple[int, int]) -> np.ndarray:
    """(H, W) int64 values of a mask for an image of `size` (H, W), without any conversion. DataError for another size, an EXIF orientation, or colours."""
    try:
        with Image.open(file, formats=("PNG",)) as image:
            (height, width), (own_width, own_height) = size, image.size
            if (own_height, own_width) != size:
                raise DataError(f"{file}: expected a mask of {height}x{width} pixels (height x width) as its image, got one of {own_height}x{own_width}")
            values = np.asarray(image)
            turned = orientation_of(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{file}: cannot be read as PNG: {error}") from None
    if turned != 1:
        raise DataError(turned_words(str(file), turned))
    if values.ndim != 2:
        raise DataError(f"{file}: expected one value a pixel (grey or palette), got {values.shape[2]} channels; save the mask as indices")
    return values.astype(np.int64)
