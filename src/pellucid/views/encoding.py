"""Numbers, arrays and pictures as JSON that the scripts of a page read: the data format of report and explorer."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pellucid.run import Measurement, rounded
from pellucid.views import size

LONGEST, SHORTEST = 200, 16  # letters of a name in a view
DTYPES = ("uint8", "int16", "uint16", "int32", "uint32", "float32")  # those of JavaScript's typed arrays that are sent


def number(measurement: Measurement | None) -> dict[str, Any] | None:
    """A measurement as a page shows it: its name and texts that are rounded already, and its value, to draw with."""
    if measurement is None:
        return None
    m = measurement
    low_high = None if m.interval is None else [rounded(end, m.unit) for end in m.interval]
    return {
        "name": m.name,
        "text": str(m),
        "interval": "" if low_high is None else f"{low_high[0]} – {low_high[1]}",
        "unit": m.unit,
        "split": m.split,
        "n": rounded(m.n, "count"),
        "how": "; ".join(part for part in (m.how, m.interval_how) if part),
        "value": m.value if np.isfinite(m.value) else None,
    }


def name(text: str, most: int = LONGEST) -> str:
    """A name of a file or a class as a page shows it: of more than `most` letters its beginning and its end."""
    half = most // 2
    return text if len(text) <= most else f"{text[: most - half - 1]}…{text[-half:]}"


def names(texts: Sequence[str], room: int) -> list[str]:
    """Names that take at most `room` bytes together where SHORTEST letters of each do: the longer ones get fewer letters."""
    most = LONGEST
    while True:
        found = [name(text, most) for text in texts]
        if most <= SHORTEST or size(found) <= room:
            return found
        most = max(SHORTEST, most * 2 // 3)


def array(values: NDArray[Any], *, at_once: bool = False) -> dict[str, Any]:
    """An array of one of DTYPES as base64 of its little-endian bytes in C order, deflated (RFC 1951) where that is shorter by a tenth.

    at_once: never deflated, for what the first picture of a page needs, as a browser draws a frame without it while it inflates.
    """
    if values.dtype.name not in DTYPES:
        raise TypeError(f"expected one of {', '.join(DTYPES)}, got {values.dtype}")
    raw = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    small = packer.compress(raw) + packer.flush()
    deflated = not at_once and len(small) < 0.9 * len(raw)
    found = {"dtype": values.dtype.name, "shape": list(values.shape), "base64": base64.b64encode(small if deflated else raw).decode("ascii")}
    return {**found, "deflate": True} if deflated else found


def picture(image: PIL.Image.Image, kind: str = "WEBP", **options: int | bool) -> str:
    """A picture as a data URI of a WEBP or PNG file; options are those of Pillow's `save`."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **(options or ({"quality": 80, "method": 4} if kind == "WEBP" else {"optimize": True})))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
