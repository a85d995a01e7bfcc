"""What may be sent as a picture: one file of a known format, with a bounded number of pixels, of which the first frame counts.

Its size is read from its header before a pixel is decoded, so that a small file cannot grow into the machine's memory.
"""

from __future__ import annotations

import io

import PIL.Image
from PIL import ImageOps

from pellucid.data.images import decode, pillow_warnings
from pellucid.errors import DataError

FORMATS = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "GIF": ".gif", "TIFF": ".tif"}
MOST_PIXELS = 50_000_000
MOST_TIMES = 20  # as long as it is wide: a model sees the short side at its own size, and the long one grows with it
NAME = "your picture"
_ANY_FAULT = (OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError)


def checked(data: bytes) -> tuple[bytes, str]:
    """The bytes of a picture that can be decoded and the ending of its file; of several frames the first, as PNG. DataError says in words what is wrong.

    Of one frame the bytes are as they came: a run knows a picture of its data by them.
    """
    if not data:
        raise DataError("Nothing was sent: expected the bytes of a picture.")
    with pillow_warnings():
        try:
            PIL.Image.init()
            image = PIL.Image.open(io.BytesIO(data), formats=tuple(name for name in FORMATS if name in PIL.Image.OPEN))
        except PIL.Image.DecompressionBombError:
            raise DataError(_too_many("so many")) from None
        except _ANY_FAULT:
            raise DataError(f"This is no picture that can be read. Known are {', '.join(name for name in FORMATS if name != 'MPO')}.") from None
        if image.width * image.height > MOST_PIXELS:
            raise DataError(_too_many(f"{image.width:,} x {image.height:,}"))
        if max(image.size) > MOST_TIMES * min(image.size):
            shape = f"{image.width:,} x {image.height:,}"
            raise DataError(f"The picture has {shape} pixels; a long side of at most {MOST_TIMES} times the short one is taken. Cut it and send it again.")
        try:
            if image.format in ("GIF", "PNG", "WEBP", "TIFF") and getattr(image, "n_frames", 1) > 1:
                image.seek(0)
                first = io.BytesIO()
                upright = ImageOps.exif_transpose(image)  # what is written has no orientation
                mode = "RGBA" if "transparency" in upright.info or upright.mode in ("RGBA", "LA") else "RGB"
                upright.convert(mode).save(first, "PNG", compress_level=1)
                return first.getvalue(), ".png"
        except _ANY_FAULT as error:
            raise DataError(f"The picture cannot be decoded: {' '.join(str(error).split())[:200]}.") from None
    ending = FORMATS[image.format or "PNG"]
    decode(data, NAME + ending)  # says what is wrong with it
    return data, ending


def _too_many(pixels: str) -> str:
    return f"The picture has {pixels} pixels; at most {MOST_PIXELS // 1_000_000} million are taken. Scale it down and send it again."
