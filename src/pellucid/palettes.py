"""How a file of a mask writes classes: grey values, palette indices or colours <-> class indices. Needs no torch.

In memory a mask is (H, W) uint8 at its image's own size: 0 .. C-1 are classes, `IGNORED` is a pixel of which nothing is said. In a file a pixel is a
code: its grey value (mode L), its palette index (P) or its colour red << 16 | green << 8 | blue (RGB). Grey of 1, 2 or 4 bits in a PNG is the shade in
0 .. 255 that it stands for, so that one bit (mode 1) is 0 and 255. A pixel whose code is nobody's is an error with its value and count, never a class.
Predictions are written in the format of the training masks, so that they can be read back by whoever reads those.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from pydantic import ConfigDict

from pellucid.errors import DataError

IGNORED = 255  # in memory: a pixel that counts neither way
MAX_CLASSES = 255
MODES = ("1", "L", "P", "RGB")
LISTED = 8  # offending codes that an error names

# Okabe and Ito (2008), then lighter and darker companions: classes of masks without colours of their own.
_COLOURS = (
    (0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (213, 94, 0), (86, 180, 233), (240, 228, 66), (110, 64, 30), (150, 150, 150), (0, 60, 90),
    (120, 190, 60), (90, 40, 120), (255, 190, 180), (20, 90, 50), (200, 230, 250), (130, 0, 30), (190, 180, 90), (60, 60, 60),
)  # fmt: skip
_FORMATS = ("PNG", "BMP", "DIB", "TIFF", "GIF", "JPEG", "WEBP", "PPM")  # none of them runs a program to decode, as EPS would
_MODES = {"1": "1", "L": "L", "I;16": "", "I": "", "P": "P", "RGB": "RGB", "RGBA": "RGB"}


@dataclass(frozen=True)
class MaskFormat:
    """How the masks of a data set are written.

    mode: one of MODES, that of the first training mask. codes: the code of each class, in class order. ignored: codes that count neither way.
    threshold: of an RGB mask, channels of at least this are 255 and others 0 before they are looked up; None takes them as they are. palette: mode P, up to
    768 numbers r, g, b, r, g, b ... names: (image, mask) patterns of file names without endings, `{}` for what both have in common.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    mode: str
    codes: list[int]
    ignored: list[int] = field(default_factory=list)
    threshold: int | None = None
    palette: list[int] = field(default_factory=list)
    names: tuple[str, str] = ("{}", "{}")

    def indices(self, codes: np.ndarray) -> np.ndarray:
        """int16 of the shape of `codes`: class index, IGNORED, or -1 for a code that is nobody's."""
        known = np.array([*self.codes, *self.ignored], np.int64)
        values = np.array([*range(len(self.codes)), *[IGNORED] * len(self.ignored)], np.int16)
        if self.mode != "RGB":  # a table is some ten times faster than a search
            table = np.full(256, -1, np.int16)
            table[known] = values
            return table[codes]
        order = np.argsort(known, kind="stable")
        known, values = known[order], values[order]
        place = np.minimum(np.searchsorted(known, codes), len(known) - 1)
        return np.where(known[place] == codes, values[place], np.int16(-1))

    def mask(self, codes: np.ndarray, name: str) -> np.ndarray:
        """(H, W) uint8 class indices and IGNORED of codes (H, W). DataError names the codes that are nobody's, with their counts."""
        values = self.indices(codes)
        odd = values < 0
        if odd.any():
            found, counts = np.unique(codes[odd], return_counts=True)
            raise DataError(f"{name}: {self.fault(dict(zip(found.tolist(), counts.tolist(), strict=True)), codes.size)}")
        return values.astype(np.uint8)

    def read(self, data: bytes, name: str) -> np.ndarray:
        """(H, W) uint8 of the bytes of a mask file. DataError for a file that is no mask of this format."""
        mode, codes = codes_of(data, name, self.threshold)
        if (mode == "RGB") != (self.mode == "RGB"):
            raise DataError(f"{name}: expected a mask {_said(self.mode)}, got one {_said(mode)}")
        return self.mask(codes, name)

    def write(self, mask: np.ndarray) -> bytes:
        """The PNG file of a mask (H, W) uint8 that `read` reads back equal; IGNORED becomes the first ignored code."""
        if not self.ignored and (mask == IGNORED).any():
            raise DataError("the mask has ignored pixels, and its format has no code for them")
        codes = np.zeros(256, np.int64)
        codes[: len(self.codes)] = self.codes
        codes[IGNORED] = self.ignored[0] if self.ignored else 0
        values = codes[mask]
        if self.mode == "RGB":
            image = Image.fromarray(np.stack([values >> 16, values >> 8 & 255, values & 255], axis=-1).astype(np.uint8))
        else:
            # Where other masks of the set are grey, 1 bit cannot hold the codes that are theirs alone.
            one_bit = self.mode == "1" and {*self.codes, *self.ignored} <= {0, 255}
            image = Image.fromarray(values == 255 if one_bit else values.astype(np.uint8))
            if self.mode == "P":
                palette = self.palette or [value for grey in range(256) for value in (grey, grey, grey)]
                missing = 3 * (max(self.codes + self.ignored) + 1) - len(palette)  # Pillow writes as few bits as the palette needs: a longer index would be cut
                image.putpalette(palette + [0] * missing)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()

    def file_of(self, image: str) -> str:
        """The name of the mask of an image: `0001_mask.png` of `0001_sat.jpg`; folders in front of it stay."""
        path = PurePosixPath(image)
        common = matched(path.stem, self.names[0])
        stem = self.names[1].replace("{}", common) if common is not None else path.stem
        return str(path.with_name(f"{stem}.png"))

    @property
    def colours(self) -> np.ndarray:
        """(C, 3) uint8: a colour for each class, the masks' own where they have some, else of a fixed list that tells neighbours apart."""
        if self.mode == "RGB":
            return np.array([[code >> 16, code >> 8 & 255, code & 255] for code in self.codes], np.uint8).reshape(-1, 3)
        if self.mode == "P" and len(self.palette) >= 3 * (max(self.codes) + 1):
            own = np.array(self.palette, np.uint8).reshape(-1, 3)[self.codes]
            if len(np.unique(own, axis=0)) == len(own):
                return own
        shades = np.array([_COLOURS[i % len(_COLOURS)] for i in range(len(self.codes))], np.int64)
        rounds = np.arange(len(self.codes))[:, None] // len(_COLOURS)
        return np.asarray((shades * 3 ** np.minimum(rounds, 3) // 4 ** np.minimum(rounds, 3)).astype(np.uint8))

    def code(self, value: int) -> str:
        """A code as people write it: a number, or [r, g, b]."""
        return f"[{value >> 16}, {value >> 8 & 255}, {value & 255}]" if self.mode == "RGB" else str(value)

    def fault(self, found: dict[int, int], pixels: int) -> str:
        """The sentence about codes that are nobody's: {code: pixels} of a mask of so many pixels."""
        most = sorted(found, key=lambda code: (-found[code], code))
        listed = ", ".join(f"{self.code(code)} ({found[code]:,} pixels)" for code in most[:LISTED])
        more = f" and {len(most) - LISTED} more" if len(most) > LISTED else ""
        kind = ("colour" if self.mode == "RGB" else "value") + (" that is" if len(found) == 1 else "s that are")
        return f"{len(found)} {kind} no class, on {sum(found.values()):,} of {pixels:,} pixels: {listed}{more}"


@dataclass(frozen=True)
class Tally:
    """What one mask file holds. mode: one of MODES. codes: ascending; counts: the pixels of each. colours: mode P, the colour code of each, -1 for none."""

    mode: str
    height: int
    width: int
    codes: list[int]
    counts: list[int]
    colours: list[int]


def tally(data: bytes, name: str, threshold: int | None = None) -> Tally:
    """The codes of the bytes of a mask file, counted. DataError as `codes_of`."""
    mode, pixels, palette = _opened(data, name)
    if mode == "RGB":
        found, counts = np.unique(_colour_codes(pixels, threshold), return_counts=True)
    else:
        every = np.bincount(pixels.ravel(), minlength=256)
        found = np.flatnonzero(every)
        counts = every[found]
    codes = found.tolist()
    colours = [colour_code(palette[3 * code : 3 * code + 3]) if 3 * code + 3 <= len(palette) else -1 for code in codes] if mode == "P" else []
    return Tally(mode, pixels.shape[0], pixels.shape[1], codes, counts.tolist(), colours)


def codes_of(data: bytes, name: str, threshold: int | None = None) -> tuple[str, np.ndarray]:
    """(mode, codes (H, W): uint8, of colours int32) of the bytes of a mask file. DataError where it is no image of 8 bits a channel without transparency."""
    mode, pixels, _ = _opened(data, name)
    return mode, _colour_codes(pixels, threshold) if mode == "RGB" else pixels


def _colour_codes(pixels: np.ndarray, threshold: int | None) -> np.ndarray:
    """(H, W) int32 of (H, W, 3) uint8."""
    if threshold is not None:
        pixels = np.where(pixels >= threshold, np.uint8(255), np.uint8(0))
    wide = pixels.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def palette_of(data: bytes, name: str) -> list[int]:
    """The palette of a mask file in mode P, r, g, b of each index; [] of other files."""
    return _opened(data, name)[2]


def _opened(data: bytes, name: str) -> tuple[str, np.ndarray, list[int]]:
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _refuse(image, name)
            mode = _MODES[image.mode]
            pixels = np.asarray(image.convert("L") if image.mode == "1" else image)
            palette = list(image.getpalette() or []) if mode == "P" else []
            turned = orientation_of(image)
    except UnidentifiedImageError:  # its own words name an address in memory
        raise DataError(f"{name}: cannot be read as a mask: no image of a known format ({', '.join(_FORMATS)})") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: cannot be read as a mask: {str(error).splitlines()[0] if str(error) else type(error).__name__}") from None
    if turned != 1:
        raise DataError(turned_words(name, turned))
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        if (pixels[..., 3] != 255).any():
            raise DataError(f"{name}: the mask has transparent pixels, of which it is not said what they are; save it without transparency")
        pixels = pixels[..., :3]
    return mode, pixels, palette


def orientation_of(image: Image.Image) -> int:
    """The orientation that a loaded mask's file asks for, in EXIF or XMP; 1 for none, for one that cannot be read, and for TIFF, which Pillow turns itself."""
    try:
        return 1 if image.format == "TIFF" else int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error):
        return 1


def turned_words(name: str, orientation: int) -> str:
    """Why a mask with an orientation is refused: its image is turned upright, and which way the mask was drawn is not known."""
    return f"{name}: the mask is turned by its EXIF orientation {orientation}; save it upright, as its image is seen"


def _refuse(image: Image.Image, name: str) -> None:
    """DataError for a file that has no one meaning as a mask, before its pixels are decoded."""
    if not _MODES.get(image.mode):
        raise DataError(f"{name}: expected a mask with 8 bits a channel (modes 1, L, P, RGB), got mode {image.mode}; save it as indices or RGB")
    if (frames := getattr(image, "n_frames", 1)) > 1:
        raise DataError(f"{name}: expected one picture, got {frames} frames or pages; keep the one that is meant")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise DataError(f"{name}: the mask has {image.width} x {image.height} pixels, the limit is {limit:,}; cut it and its image into tiles")


def matched(stem: str, pattern: str) -> str | None:
    """What `{}` of a pattern stands for in a name; None where the name is not of that form. "0001" of 0001_sat and {}_sat."""
    before, _, behind = pattern.partition("{}")
    if len(stem) <= len(before) + len(behind) or not stem.startswith(before) or not stem.endswith(behind):
        return None
    return stem[len(before) : len(stem) - len(behind)]


def colour_code(colour: int | Sequence[int]) -> int:
    """The code of what a recipe writes: a number, or [r, g, b]."""
    return colour if isinstance(colour, int) else colour[0] << 16 | colour[1] << 8 | colour[2]


def coloured(mask: np.ndarray, colours: np.ndarray, ignored: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    """(H, W, 3) uint8 picture of a mask (H, W) uint8."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colours)] = colours
    table[IGNORED] = ignored
    return table[mask]


def _said(mode: str) -> str:
    return {"1": "of one bit", "L": "of grey values", "P": "of palette indices", "RGB": "of colours (RGB)"}[mode]
