"""Many small pictures in one WEBP file: tiles of one size in rows of 64, so that thousands of thumbnails cost one file and one request. Needs no torch.

A picture is shown whole, in the middle of its square tile, on grey where it is not square. Equal pictures give equal bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
from numpy.typing import NDArray

from pellucid.errors import RunError
from pellucid.files import replacing
from pellucid.records import read_picture

COLUMNS = 64  # tiles in a row
LONGEST = 16_383  # pixels of a side of a WEBP file
QUALITY = 80
GREY = (128, 128, 128)  # beside a picture that is not square


def most_tiles(side: int) -> int:
    """How many tiles of `side` x `side` pixels one atlas holds; ValueError where a row of them is too long for a file."""
    if not 0 < side * COLUMNS <= LONGEST:
        raise ValueError(f"tiles of an atlas have 1 to {LONGEST // COLUMNS} pixels, got {side}")
    return LONGEST // side * COLUMNS


def tile_of(image: NDArray[np.uint8] | PIL.Image.Image, side: int) -> PIL.Image.Image:
    """An RGB tile of `side` x `side` pixels of a picture, (h, w, 3) uint8 or of Pillow."""
    picture = image if isinstance(image, PIL.Image.Image) else PIL.Image.fromarray(image)
    return PIL.ImageOps.pad(picture.convert("RGB"), (side, side), PIL.Image.Resampling.BICUBIC, color=GREY)


def write_atlas(path: Path, images: Iterable[NDArray[np.uint8] | PIL.Image.Image], side: int) -> Path:
    """Write pictures as tiles of `side` pixels, in their order; returns the path. At least one picture, at most `most_tiles(side)`; ValueError for others."""
    most = most_tiles(side)
    tiles = [tile_of(image, side) for image in itertools.islice(images, most + 1)]
    if not 0 < len(tiles) <= most:
        raise ValueError(f"an atlas of tiles of {side} pixels holds 1 to {most:,} pictures, got {'more' if tiles else 'none'}")
    whole = PIL.Image.new("RGB", (side * min(COLUMNS, len(tiles)), side * -(-len(tiles) // COLUMNS)), GREY)
    for i, tile in enumerate(tiles):
        whole.paste(tile, (i % COLUMNS * side, i // COLUMNS * side))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        whole.save(file, "WEBP", quality=QUALITY, method=4)
    return path


def read_tiles(path: Path, side: int, indices: Sequence[int]) -> list[PIL.Image.Image]:
    """The tiles of `side` pixels at `indices`, counted from 0 in the order in which they were written.

    RunError where the file is missing, is no picture, or has no such tile.
    """
    try:
        whole = read_picture(path, side * COLUMNS * LONGEST).convert("RGB")
    except FileNotFoundError:
        raise RunError(f"{path}: expected an atlas of pictures, there is no such file; the run kept none or was changed") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: expected an atlas of pictures, cannot be read: {error}. The file was changed.") from None
    across, down = whole.width // side, whole.height // side
    if (whole.width, whole.height) != (across * side, down * side) or not 0 < across <= COLUMNS or (down > 1 and across < COLUMNS):
        raise RunError(f"{path}: expected tiles of {side} pixels in rows of {COLUMNS}, got a picture of {whole.width}x{whole.height}. The file was changed.")
    beyond = [index for index in indices if not 0 <= index < across * down]
    if beyond:
        raise RunError(f"{path}: expected at least {beyond[0] + 1:,} tiles, there is room for {across * down:,}. The file was changed.")
    boxes = [(index % COLUMNS * side, index // COLUMNS * side) for index in indices]
    return [whole.crop((left, top, left + side, top + side)) for left, top in boxes]
