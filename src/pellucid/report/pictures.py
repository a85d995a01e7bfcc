"""Pictures inside the page: thumbnails and matrices as data URIs, so that the report stays one file."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pellucid.records import read_picture

SIDE = 192  # pixels of a thumbnail's long side; sixteen of them stay far below the report's 5 MB
MATRIX_SIDE = 400  # classes beyond it share a pixel
_INK = (0, 114, 178)  # Okabe-Ito blue


def thumbnail(path: Path) -> str | None:
    """A WebP data URI of at most SIDE pixels, or None when the file is not a readable picture."""
    try:
        image = read_picture(path).convert("RGB")
    except (OSError, ValueError, SyntaxError):  # what Pillow raises on damaged files; the page says so in its place
        return None
    image.thumbnail((SIDE, SIDE))
    return data_uri(image, "WEBP", quality=80, method=4)


def matrix(confusion: NDArray[np.int64]) -> str:
    """A PNG data URI of a confusion matrix: opacity is the square root of the share of each label's samples.

    One pixel a cell (a block of cells beyond MATRIX_SIDE classes), transparent at 0, so that it stands on light and dark paper.
    """
    block = -(-len(confusion) // MATRIX_SIDE)
    counts = np.pad(confusion, (0, -len(confusion) % block))
    side = len(counts) // block
    counts = counts.reshape(side, block, side, block).sum(axis=(1, 3))
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    pixels = np.zeros((side, side, 4), dtype=np.uint8)
    pixels[..., :3] = _INK
    pixels[..., 3] = np.rint(255 * np.sqrt(share))  # the root lets rare confusions be seen
    return data_uri(PIL.Image.fromarray(pixels, "RGBA"), "PNG", optimize=True)


def data_uri(image: PIL.Image.Image, kind: str, **options: int | bool) -> str:
    """A picture as a data URI of a WEBP or PNG file; options are those of Pillow's `save`."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
