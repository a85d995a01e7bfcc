"""Arrays as a page gets them, read back."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


def unpacked(array: dict[str, Any]) -> NDArray[Any]:
    """The array that `pellucid.views.encoding.array` sent."""
    raw = base64.b64decode(array["base64"])
    return np.frombuffer(zlib.decompress(raw, -15) if array.get("deflate") else raw, array["dtype"]).reshape(array["shape"])
