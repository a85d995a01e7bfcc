"""Bytes of an image file -> an upright RGB picture, the faults found on the way, and the stored form of one size.

How each kind of file becomes 8-bit RGB (every one but plain 8-bit grey and RGB is told as a finding):

  16_bit       grey: round(value / 257), the whole range and not a clipped part; colour: the high byte, as Pillow reads it
  palette      each index by its palette colour
  transparent  composed over black, which is also what `fit: pad` and rotation fill with
  cmyk         Pillow's plain conversion; an embedded colour profile is not applied
  exif_rotated turned upright by the EXIF orientation (of an image with a mask: exif_rotated_masked, the mask is not turned)
  wrong_extension, corrupt_metadata   the picture is read by its content; its name or side information is wrong

Fatal, because no picture or no single picture is meant: zero_size, unreadable, truncated, too_large (more pixels than
Pillow's limit against decompression bombs) and animated (which frame would be meant is not ours to guess).
Formats are a closed list: none of them runs a program to decode, as EPS would.
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from pellucid.errors import DataError, MissingError

# Pillow's name of each format that is read -> endings of its files.
FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),  # a JPEG with further pictures behind it, as phones write; the first is the photograph
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k"),
    "AVIF": (".avif",),
}
ENDINGS = frozenset(ending for endings in FORMATS.values() for ending in endings)

FATAL = frozenset({"zero_size", "unreadable", "truncated", "too_large", "animated"})

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG_SIDE_INFORMATION = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")  # where a PNG may say its orientation
# What Pillow's decoders raise on bad bytes. MemoryError is not among them: that is the machine's fault, not the file's.
_BROKEN = (
    OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, AssertionError, struct.error, zlib.error,
)  # fmt: skip
Box = tuple[float, float, float, float]  # top, left, height, width
MOST_RESAMPLED = 1 << 28  # pixels of one picture: 800 MB
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Finding:
    """Something about one file that its owner should know; `fatal` when there is no picture to use."""

    kind: str
    detail: str
    fatal: bool


class _FaultError(Exception):
    """A fatal finding on its way out of the decoder."""

    def __init__(self, kind: str, detail: str) -> None:
        self.finding = Finding(kind, detail, fatal=True)


def image_files(entry: str | Path) -> list[Path]:
    """A file as it is; of a folder its images, searched below it too, in the order of their names. MissingError, or DataError for a folder without one."""
    path = Path(entry)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in ENDINGS and not p.name.startswith("."))
        if not files:
            raise DataError(f"{path}: there is no image in this folder (endings: {', '.join(sorted(ENDINGS))})")
        return files
    if path.is_file():
        return [path]
    raise MissingError(f"{path}: no such image or folder")


def opened(images: Any) -> list[tuple[str, Callable[[], Image.Image]]]:
    """(name, how to open it as RGB) of what stands for images: paths, folders (searched for images) and PIL images, one or a list of them."""
    found: list[tuple[str, Callable[[], Image.Image]]] = []
    for entry in images if isinstance(images, (list, tuple)) else [images]:
        if isinstance(entry, Image.Image):
            found.append(("<image>", lambda entry=entry: as_rgb(entry)))  # type: ignore[misc]
        else:
            found += [(str(file), lambda file=file: decode(file.read_bytes(), str(file))) for file in image_files(entry)]  # type: ignore[misc]
    return found


def decode(data: bytes, name: str) -> Image.Image:
    """The picture of a file's bytes: mode RGB, upright, original size, pixels alone. DataError names the file and its fault."""
    try:
        picture, _ = _decode(data, name)
    except _FaultError as fault:
        raise DataError(f"{name}: {fault.finding.kind}: {fault.finding.detail}") from None
    return picture


def as_rgb(image: Image.Image, name: str = "<image>") -> Image.Image:
    """An image in memory as `decode` would give it: mode RGB, upright, pixels alone. DataError for pixels whose range is not fixed."""
    try:
        return _pixels_alone(_rgb(ImageOps.exif_transpose(image), []))
    except _FaultError as fault:
        raise DataError(f"{name}: {fault.finding.kind}: {fault.finding.detail}") from None


def upright_size(data: bytes, name: str) -> tuple[int, int]:
    """(height, width) of the picture that `decode` gives, from the header and EXIF: no pixel is decoded. DataError names the file and its fault."""
    try:
        with pillow_warnings() as told:
            image = _opened(data)
            plain = image.format == "PNG" and not any(word in data for word in _PNG_SIDE_INFORMATION)  # else Pillow decodes a PNG to look behind its pixels
            upright = plain or image.format == "TIFF"  # whose size Pillow gives as it will turn the pixels
            turned = not upright and _orientation(image, told) in (5, 6, 7, 8)
            return (image.width, image.height) if turned else (image.height, image.width)
    except _FaultError as fault:
        raise DataError(f"{name}: {fault.finding.kind}: {fault.finding.detail}") from None


def findings(data: bytes, name: str) -> list[Finding]:
    """What is to be said about a file, after decoding it once fully; empty for a plain image. At most one is fatal, the last."""
    try:
        _, notes = _decode(data, name)
    except _FaultError as fault:
        return [fault.finding]
    return notes


def resize(image: Image.Image, size: tuple[int, int], fit: str, resize_size: int | None, interpolation: str) -> np.ndarray:
    """The stored form of an RGB picture for a model input of `size` (H, W): uint8 (H', W', 3), resampled once with antialiasing.

    fit, as in the recipe. crop: aspect kept, the smallest size that covers `size`, whose short side is first scaled to
    `resize_size` when given; the long side is rounded down as torchvision does. The crop itself comes later (centre or random).
    stretch: exactly `size`. pad: the largest picture inside `size`, centred on black, exactly `size`. native: as it is, whatever `size`.
    interpolation: bilinear or bicubic. A picture of the right size is not resampled.
    """
    height, width = _resized(image.size, size, fit, resize_size)
    if image.size != (width, height):
        if height * width > MOST_RESAMPLED:
            shape = f"{image.width:,} x {image.height:,}"
            raise DataError(f"a picture of {shape} pixels would be resampled to {width:,} x {height:,}, the limit is {MOST_RESAMPLED:,} pixels; cut it")
        image = image.resize((width, height), _FILTERS[interpolation])
    return _barred(np.asarray(image), size, 0) if fit == "pad" else np.asarray(image)


def resized_mask(mask: np.ndarray, size: tuple[int, int], fit: str, resize_size: int | None, *, bars: int) -> np.ndarray:
    """The stored form (H', W') of the mask (H, W) of a picture, which has the shape of `resize(picture, ...)`; values are never mixed.

    Each pixel has the value in the middle of what it covers, the lower or right one where that lies on an edge; the bars of `fit: pad` are `bars`.
    """
    own_height, own_width = mask.shape
    height, width = _resized((own_width, own_height), size, fit, resize_size)
    rows, columns = (2 * np.arange(height) + 1) * own_height // (2 * height), (2 * np.arange(width) + 1) * own_width // (2 * width)
    values = mask[rows[:, None], columns]  # whole numbers: Pillow's NEAREST takes the other side where the middle lies on an edge
    return _barred(values, size, bars) if fit == "pad" else values


def _barred(pixels: np.ndarray, size: tuple[int, int], bars: int) -> np.ndarray:
    """Pixels (H', W', ...) in the middle of `size`, which is at least as large, with this value around them."""
    height, width = pixels.shape[:2]
    if (height, width) == size:
        return pixels
    canvas = np.full((*size, *pixels.shape[2:]), bars, pixels.dtype)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    canvas[top : top + height, left : left + width] = pixels
    return canvas


def centre(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle (height, width) of pixels (H', W', ...): what the model sees of a stored form. Half pixels round to even.

    A side that is shorter, as `fit: native` leaves it, has 0 on both sides.
    """
    larger = (max(pixels.shape[0], size[0]), max(pixels.shape[1], size[1]))
    pixels = _barred(pixels, larger, 0)
    top, left = (int(np.rint((there - wanted) / 2)) for there, wanted in zip(larger, size, strict=True))
    return pixels[top : top + size[0], left : left + size[1]]


def view_mask(mask: np.ndarray, size: tuple[int, int], fit: str, resize_size: int | None) -> np.ndarray:
    """What belongs to `centre(resize(picture, ...))` of the mask of a picture, both (H, W) before: (height, width), bars are 0."""
    return centre(resized_mask(mask, size, fit, resize_size, bars=0), size)


def view_box(photo: tuple[int, int], size: tuple[int, int], fit: str, resize_size: int | None, seen: tuple[int, int] | None = None) -> Box:
    """(top, left, height, width) in pixels of a photo (H, W): what `centre(resize(photo, size, ...), seen)` shows of it; `seen` is by default `size`.

    Pixel (y, x) of the view (VH, VW) covers height / VH x width / VW pixels from (top + y height / VH, left + x width / VW) on. With `fit: pad`, and
    where a photo in `fit: native` is smaller than the view, the box is larger than the photo and begins above or left of it.
    """
    seen = size if seen is None else seen
    resized = _resized((photo[1], photo[0]), size, fit, resize_size)
    if fit == "pad":
        top, left = (-((there - own) // 2) for there, own in zip(seen, resized, strict=True))
    else:  # a native photo may be smaller than the view, whose bars `_barred` places
        top, left = (-((there - own) // 2) if there > own else int(np.rint((own - there) / 2)) for there, own in zip(seen, resized, strict=True))
    down, across = photo[0] / resized[0], photo[1] / resized[1]
    return top * down, left * across, seen[0] * down, seen[1] * across


def content_box(photo: tuple[int, int], size: tuple[int, int], fit: str, resize_size: int | None) -> tuple[int, int, int, int]:
    """(top, left, height, width) in pixels: where a photo (H, W) lies in its stored form, which is all of it but for the bars of `pad`."""
    height, width = _resized((photo[1], photo[0]), size, fit, resize_size)
    return ((size[0] - height) // 2, (size[1] - width) // 2, height, width) if fit == "pad" else (0, 0, height, width)


def _resized(width_height: tuple[int, int], size: tuple[int, int], fit: str, resize_size: int | None) -> tuple[int, int]:
    """(height, width) that a picture is resampled to, bars of `pad` not counted."""
    if fit == "stretch":
        return size
    if fit == "native":
        return width_height[1], width_height[0]
    return _covering(width_height, size, resize_size) if fit == "crop" else _inside(width_height, size)


def _covering(width_height: tuple[int, int], size: tuple[int, int], resize_size: int | None) -> tuple[int, int]:
    """(height, width) with the picture's aspect that covers `size` scaled so that its short side is `resize_size`."""
    width, height = width_height
    short = min(size)
    side = short if resize_size is None else resize_size
    need_h, need_w = (-(-side * length // short) for length in size)  # rounded up: the crop must find its pixels
    if need_h * width >= need_w * height:  # the height asks for the larger scale
        return need_h, max(need_w, need_h * width // height)
    return max(need_h, need_w * height // width), need_w


def _inside(width_height: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) with the picture's aspect, as large as fits into `size`."""
    width, height = width_height
    if size[0] * width <= size[1] * height:  # the height is the tighter side
        return size[0], min(size[1], max(1, round(width * size[0] / height)))
    return min(size[0], max(1, round(height * size[1] / width))), size[1]


def _decode(data: bytes, name: str) -> tuple[Image.Image, list[Finding]]:
    """The RGB picture and the findings that are not fatal; _FaultError for those that are."""
    if not data:
        raise _FaultError("zero_size", "the file is empty (0 bytes)")
    with pillow_warnings() as told:
        image = _opened(data)
        notes = _format_notes(image, data, name)
        _refuse_frames(image)
        before = _orientation(image, told)
        try:
            image.load()
        except _BROKEN as error:
            raise _load_fault(error, len(data)) from None
        after = _orientation(image, told)  # TIFF turns itself upright while loading; PNG may hold its EXIF behind the pixels
        if before in _UPRIGHT or after in _UPRIGHT:
            notes.append(_note("exif_rotated", f"EXIF orientation {before if before in _UPRIGHT else after}: turned upright"))
        picture = _rgb(image, notes)
    if after in _UPRIGHT:
        picture = picture.transpose(_UPRIGHT[after])
    notes += [_note("corrupt_metadata", message) for message in dict.fromkeys(told)]
    return _pixels_alone(picture), notes


def _pixels_alone(picture: Image.Image) -> Image.Image:
    """The picture without what its file said beside the pixels: an orientation (EXIF, XMP) that was followed must not be followed again."""
    picture.info = {}
    return picture


def _note(kind: str, detail: str) -> Finding:
    return Finding(kind, detail, fatal=False)


def _opened(data: bytes) -> Any:
    """The file with its header read. (Any: Pillow's types leave out what the plugins add.)"""
    try:
        image = Image.open(io.BytesIO(data), formats=_readable())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _FaultError("too_large", f"{str(error).split(',')[0].rstrip('.')}; scale the image down") from None
    except UnidentifiedImageError:
        raise _FaultError("unreadable", f"not an image of a known format ({', '.join(FORMATS)})") from None
    except _BROKEN as error:
        raise _FaultError("unreadable", f"the header cannot be read: {_said(error)}") from None
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise _FaultError("too_large", f"{image.width} x {image.height} pixels, the limit is {limit:,} pixels; scale the image down")
    return image


@cache
def _readable() -> tuple[str, ...]:
    """Those of FORMATS that this build of Pillow opens; MPO comes out of the reader of JPEG."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _format_notes(image: Any, data: bytes, name: str) -> list[Finding]:
    """What the header says: a wrong ending, 16 bits, CMYK, a palette."""
    notes = []
    ending = PurePosixPath(name).suffix.lower()
    if ending and ending not in FORMATS[image.format]:
        notes.append(_note("wrong_extension", f"the content is {image.format}, the name ends in {ending}"))
    if _sixteen_bit(image, data):
        notes.append(_note("16_bit", "16 bits a channel: scaled to 8"))
    if image.mode == "CMYK":
        notes.append(_note("cmyk", "CMYK: converted to RGB without its colour profile"))
    if image.mode in ("P", "PA") and image.format != "GIF":  # a GIF always has a palette
        notes.append(_note("palette", "palette: converted to RGB"))
    return notes


def _sixteen_bit(image: Any, data: bytes) -> bool:
    if image.format == "PNG":
        return data[24] == 16  # bit depth in the IHDR chunk, which the format puts first
    if image.format == "TIFF":
        return 16 in image.tag_v2.get(258, ())  # BitsPerSample
    return image.mode.startswith("I")  # PPM with a maximum above 255 and JPEG 2000


def _refuse_frames(image: Any) -> None:
    try:
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    except _BROKEN as error:  # GIF and TIFF walk through the file to count
        raise _FaultError("unreadable", f"its frames cannot be counted: {_said(error)}") from None
    if frames > 1:
        raise _FaultError("animated", f"{frames} frames or pages; keep the one that is meant")


def _orientation(image: Any, told: list[str]) -> int:
    """The EXIF orientation, 1 where there is none; broken EXIF is told and taken as 1."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _BROKEN as error:
        told.append(f"EXIF cannot be read: {_said(error)}")
        return 1


def _load_fault(error: Exception, num_bytes: int) -> _FaultError:
    message = _said(error)
    cut = isinstance(error, EOFError) or any(word in message.lower() for word in ("truncated", "eof", "not enough data", "buffer overrun", "unexpected end"))
    if cut:
        return _FaultError("truncated", f"the file ends too early ({num_bytes} bytes): {message}")
    return _FaultError("unreadable", f"decoding fails: {message}")


def _said(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def _rgb(image: Any, notes: list[Finding]) -> Image.Image:
    """The loaded picture as 8-bit RGB."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG")):
        return _from_16_bit(image)
    if image.mode in ("I", "F"):
        numbers = "32-bit integers" if image.mode == "I" else "floats"
        raise _FaultError("unreadable", f"pixels are {numbers}, whose range is not fixed; save the image with 8 or 16 bits")
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        if layers.getchannel("A").getextrema()[0] == 255:
            return layers.convert("RGB")
        notes.append(_note("transparent", "transparent pixels: composed over black"))
        return Image.alpha_composite(Image.new("RGBA", layers.size, (0, 0, 0, 255)), layers).convert("RGB")
    try:
        return image if type(image) is Image.Image and image.mode == "RGB" else image.convert("RGB")
    except ValueError as error:  # LAB and others without a conversion
        raise _FaultError("unreadable", f"colour mode {image.mode}: {_said(error)}; save the image as RGB") from None


def _from_16_bit(image: Any) -> Image.Image:
    values = np.asarray(image).astype(np.uint32)
    grey = ((values + 128) // 257).astype(np.uint8)  # round(value / 257): 0..65535 to 0..255
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 0
    return Image.fromarray(grey).convert("RGB")


# ── Pillow's warnings ─────────────────────────────────────────────────────────────────────────────────────────

_lock = threading.Lock()
_inside_count = 0
_filters: Any = None
_told = threading.local()


@contextmanager
def pillow_warnings() -> Iterator[list[str]]:
    """The messages that Pillow warns with in this thread while the block runs; none of them reaches the user's screen.

    `warnings.catch_warnings` alone swaps global state and is not safe with several decoding threads before Python 3.14, so
    the first thread in installs it and the last one out removes it. Warnings of other modules and threads pass through.
    """
    global _inside_count, _filters
    with _lock:
        _inside_count += 1
        if _inside_count == 1:
            _filters = warnings.catch_warnings()
            _filters.__enter__()
            shown = warnings.showwarning
            warnings.filterwarnings("always", module=r"PIL(\.|$)")

            def keep(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: str | None = None) -> None:
                messages = getattr(_told, "messages", None)
                if messages is None:
                    shown(message, category, filename, lineno, file, line)
                elif not issubclass(category, Image.DecompressionBombWarning):  # measured in _opened, and fatal
                    messages.append(" ".join(str(message).split()))

            warnings.showwarning = keep
    messages: list[str] = []
    _told.messages = messages
    try:
        yield messages
    finally:
        _told.messages = None
        with _lock:
            _inside_count -= 1
            if _inside_count == 0:
                _filters.__exit__(None, None, None)
