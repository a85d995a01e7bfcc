"""Seeded damage to good files. The same seed and number give the same bytes again, on any machine with the same libraries."""

from __future__ import annotations

import io
import itertools
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

HUGE = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)


@dataclass(frozen=True)
class Damaged:
    """One input. `seed` is what `random.Random` was started with, or the name of a case made by hand."""

    seed: str
    how: str
    name: str
    data: bytes

    def __str__(self) -> str:
        return f"{self.seed} ({self.how}): {len(self.data)} bytes as {self.name}"


# ── bytes ─────────────────────────────────────────────────────────────────────────────────────────────────────


def damage(data: bytes, rng: random.Random, others: Sequence[bytes]) -> tuple[str, bytes]:
    """(what was done, the damaged bytes): one to three of the changes below."""
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        change = rng.choice(_CHANGES)
        data = change(bytearray(data), rng, others)
        done.append(change.__name__.strip("_"))
    return " and ".join(done), data


def _span(data: bytes, rng: random.Random) -> tuple[int, int]:
    """A stretch of at least one byte, half of them within the first 256."""
    if not data:
        return 0, 0
    start = rng.randrange(min(len(data), 256)) if rng.random() < 0.5 else rng.randrange(len(data))
    return start, min(len(data), start + rng.choice((1, 2, 4, 8, 64, 500)))


def _flip(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytes:
    for _ in range(rng.choice((1, 1, 4, 16)) if data else 0):
        data[_span(data, rng)[0]] ^= 1 << rng.randrange(8)
    return bytes(data)


def _overwrite(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytes:
    start, stop = _span(data, rng)
    data[start:stop] = rng.choice((bytes(stop - start), b"\xff" * (stop - start), rng.randbytes(stop - start)))
    return bytes(data)


def _cut(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytes:
    place = rng.choice((0, 1, len(data) // 2, len(data) - 1, rng.randrange(len(data) + 1)))
    return bytes(data[place:] if rng.random() < 0.2 else data[: max(place, 0)])


def _insert(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytes:
    start, _ = _span(data, rng)
    return bytes(data[:start]) + rng.randbytes(rng.choice((1, 3, 64))) + bytes(data[start:])


def _delete(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytes:
    start, stop = _span(data, rng)
    return bytes(data[:start] + data[stop:])


def _repeat(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytes:
    start, stop = _span(data, rng)
    return bytes(data[:stop] + data[start:])


def _number(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """A field of 2, 4 or 8 bytes, often a length or a size, becomes an extreme."""
    size = rng.choice((2, 4, 4, 8))
    start, _ = _span(data, rng)
    data[start : start + size] = (rng.choice(HUGE) % (1 << 8 * size)).to_bytes(size, rng.choice(("little", "big")))
    return bytes(data)


def _header(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """The beginning of another file."""
    size = rng.choice((2, 4, 12, 64))
    return rng.choice(others)[:size] + bytes(data[size:])


def _splice(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others)
    return bytes(data[: len(data) // 2]) + other[len(other) // 2 :]


def _garbage(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytes:
    return bytes(data) + rng.randbytes(rng.choice((1, 100, 5000)))


def _noise(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytes:
    return rng.randbytes(len(data)) if rng.random() < 0.3 else bytes(data[:16]) + rng.randbytes(len(data))


_CHANGES: tuple[Callable[[bytearray, random.Random, Sequence[bytes]], bytes], ...] = (
    _flip, _flip, _flip, _overwrite, _overwrite, _cut, _insert, _delete, _repeat, _number, _number, _number, _header, _splice, _garbage, _noise,
)  # fmt: skip


# ── images ────────────────────────────────────────────────────────────────────────────────────────────────────


def picture(seed: int, size: tuple[int, int] = (26, 18)) -> Image.Image:
    """A smooth RGB picture of (width, height), another one for each seed."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    return Image.fromarray(np.stack([x * 9 + 7 * seed, y * 13 + 31 * seed, (x + y) * 5 + 3 * seed], axis=2).astype(np.uint8))


def good_images() -> list[tuple[str, bytes]]:
    """(ending, bytes) of pictures of every format that Pillow writes here, in the modes and with the side information that decoders differ in."""
    rgb, exif = picture(3), Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a described picture"
    clear = rgb.copy()
    clear.putalpha(Image.linear_gradient("L").resize(rgb.size))
    deep = Image.fromarray(np.arange(26 * 18, dtype=np.uint16).reshape(18, 26) * 140)
    palette, grey = rgb.quantize(16), rgb.convert("L")
    made = [
        (".jpg", rgb, "JPEG", {"exif": exif}), (".jpg", grey, "JPEG", {}), (".jpg", rgb.convert("CMYK"), "JPEG", {}), (".jpg", rgb, "JPEG", {"progressive": True}),
        (".jpg", rgb, "MPO", {"save_all": True, "append_images": [picture(4)]}),
        (".png", rgb, "PNG", {"exif": exif}), (".png", palette, "PNG", {"transparency": 3}), (".png", clear, "PNG", {}), (".png", deep, "PNG", {}),
        (".png", grey, "PNG", {"transparency": 90}), (".png", rgb, "PNG", {"save_all": True, "append_images": [picture(4)]}),
        (".webp", rgb, "WEBP", {"exif": exif}), (".webp", clear, "WEBP", {"lossless": True}), (".webp", rgb, "WEBP", {"save_all": True, "append_images": [picture(4)]}),
        (".gif", palette, "GIF", {}), (".gif", palette, "GIF", {"save_all": True, "append_images": [picture(4).quantize(16)]}),
        (".bmp", rgb, "BMP", {}), (".bmp", palette, "BMP", {}), (".bmp", clear, "BMP", {}),
        (".tif", rgb, "TIFF", {"exif": exif}), (".tif", palette, "TIFF", {"compression": "tiff_lzw"}), (".tif", rgb, "TIFF", {"compression": "jpeg"}), (".tif", deep, "TIFF", {}),
        (".tif", rgb.convert("CMYK"), "TIFF", {"compression": "tiff_adobe_deflate"}), (".tif", rgb, "TIFF", {"save_all": True, "append_images": [picture(4)]}),
        (".ppm", rgb, "PPM", {}), (".pgm", deep, "PPM", {}), (".pbm", grey.convert("1"), "PPM", {}),
        (".jp2", rgb, "JPEG2000", {}), (".j2k", clear, "JPEG2000", {"no_jp2": True}), (".avif", rgb, "AVIF", {}), (".avif", clear, "AVIF", {}),
    ]  # fmt: skip
    Image.init()
    return [(ending, _encoded(image, kind, options)) for ending, image, kind, options in made if kind in Image.SAVE]


def _encoded(image: Image.Image, kind: str, options: dict) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def damaged_images(seed: str, count: int) -> Iterator[Damaged]:
    """Those made by hand, then seeded ones up to `count`, each from one of `good_images`."""
    yield from (made := _images_by_hand())
    good = good_images()
    others = [data for _, data in good]
    for i in range(count - len(made)):
        rng = random.Random(f"{seed}-{i}")
        ending, data = good[i % len(good)]
        how, data = damage(data, rng, others)
        if data.startswith(b"\x89PNG") and rng.random() < 0.7:  # else nearly every damage to a PNG ends at the sum of its chunk
            how, data = f"{how}, sums corrected", _with_right_sums(data)
        yield Damaged(f"{seed}-{i}", how, f"{i:04d}{ending}", data)


def _chunk(tag: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))


def _with_right_sums(data: bytes) -> bytes:
    """A PNG whose chunks have the checksum of what they hold now, as far as they can be followed."""
    out, at = [data[:8]], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if at + 12 + length > len(data):
            break
        out.append(_chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return b"".join([*out, data[at:]])


def _images_by_hand() -> list[Damaged]:
    """Sizes and texts that would take all memory, and files that claim to be what they are not."""

    def png(width: int, height: int, *extra: bytes) -> bytes:
        header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + _chunk(b"IDAT", zlib.compress(bytes(50))) + _chunk(b"IEND", b"")

    text = _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000)))
    profile = _chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(100_000_000)))
    bmp = bytearray(_encoded(picture(0), "BMP", {}))
    gif = bytearray(_encoded(picture(0).quantize(8), "GIF", {}))
    tif = _encoded(picture(0), "TIFF", {})
    cases = [
        ("empty", "a.png", b""), ("one byte", "a.jpg", b"\xff"), ("a text", "a.jpg", b"<html>not found</html>"), ("a program", "a.png", b"\x7fELF" + bytes(64)),
        ("a program for a printer", "a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(executed) (w) file\n"), ("no memory for it", "a.png", png(2**31 - 1, 2**31 - 1)),
        ("above the limit", "a.png", png(60000, 60000)), ("zero wide", "a.png", png(0, 5)), ("a text of 100 MB", "a.png", png(4, 4, text)), ("a profile of 100 MB", "a.png", png(4, 4, profile)),
        ("wide", "a.bmp", bytes(bmp[:18] + struct.pack("<ii", 2**30, 2**30) + bmp[26:])), ("negative", "a.bmp", bytes(bmp[:18] + struct.pack("<ii", -5, -(2**31)) + bmp[26:])),
        ("wide", "a.gif", bytes(gif[:6] + b"\xff\xff\xff\xff" + gif[10:])), ("wide", "a.ppm", b"P6 99999999 99999999 255\n" + bytes(50)), ("digits", "a.ppm", b"P6 " + b"9" * 5000 + b" 5 255\n"),
        ("no maximum", "a.pgm", b"P5 5 5 0\n" + bytes(25)), ("a directory that holds itself", "a.tif", tif[:4] + struct.pack("<I", 8) + b"\0\0" + struct.pack("<I", 8)),
        ("a hundred frames that grow", "a.gif", bytes(gif[:13]) + b"".join(b"\x21\xf9\4\0\0\0\0\0\x2c" + struct.pack("<HHHHB", i, i, 600 * i, 600 * i, 0) + b"\2\1\0\0" for i in range(100)) + b"\x3b"),
    ]  # fmt: skip
    return [Damaged(f"by hand {i}", how, f"hand{i}{name[1:]}", data) for i, (how, name, data) in enumerate(cases)]


# ── recipes ───────────────────────────────────────────────────────────────────────────────────────────────────

# Values that a key may get, as YAML would be written by hand, by mistake or by malice.
VALUES = (
    "", "~", "yes", "-1", "0", "1e999", "-.inf", ".nan", "0x1F", "0x" + "F" * 5000, "0o" + "7" * 6000, "9" * 400, "9" * 5000, "1e-400", "1_000", "12:30:45", "2026-11-20", "''", '"\\0"', '"\\ud800"', '"a\\nb"', "[]", "{}",
    "[1, [2, [3]]]", "{a: {b: c}}", "!!python/object/apply:os.system ['touch executed']", "!!python/name:os.system", "!!binary aGVsbG8=", "!!binary /w==", "!!set {a, b}", "!!omap [a: 1]",
    "!!timestamp 2026-11-20", "!!int x", "!!float []", "!unknown x", "*nothing", "&a [*a]", "&a {b: *a}", "~nobody-of-that-name/x", "${NOT_SET_ANYWHERE}", "${A:-b}", "/dev/null", "..", "x" * 3000,
    "|\n  text\n  more", "> folded", "? complex", "[", "{", "]", "'", '"', "@x", "`x`", "%x", "- x", ": x", "\x00", "\x07", "\u2028", "\ufeff", "é", "🙂",
)  # fmt: skip
_LETTERS = "abz019 :-#,.[]{}&*!|>'\"%@`\t\n\\$~?=<é\u00a0\x00\x1b"


def damaged_recipes(seed: str, count: int, good: Sequence[str]) -> Iterator[Damaged]:
    """Those made by hand, then seeded ones up to `count`, each from one of the `good` texts."""
    yield from (made := _recipes_by_hand(good[0]))
    for i in range(count - len(made)):
        rng = random.Random(f"{seed}-{i}")
        text = good[i % len(good)]
        if rng.random() < 0.15:
            how, data = damage(text.encode(), rng, [other.encode() for other in good])
        else:
            how, text = _damaged_text(text, rng, good)
            data = text.encode()
        yield Damaged(f"{seed}-{i}", how, f"r{i:04d}.yaml", data)


def _damaged_text(text: str, rng: random.Random, good: Sequence[str]) -> tuple[str, str]:
    done = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        how = rng.choice(
            (
                "value",
                "value",
                "value",
                "key",
                "letter",
                "letter out",
                "letters swapped",
                "line out",
                "line twice",
                "lines swapped",
                "indent",
                "tab",
                "cut",
                "other",
            )
        )
        done.append(how)
        text = _changed(text, how, rng, good) or text
    return " and ".join(done), text


def _changed(text: str, how: str, rng: random.Random, good: Sequence[str]) -> str:
    lines, at = text.split("\n"), rng.randrange(max(len(text), 1))
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    match how:
        case "value":  # of a key in any place, flow mappings included
            starts = [k + 2 for k in range(len(text)) if text.startswith(": ", k)]
            start = rng.choice(starts or [at])
            stop = next((k for k in range(start, len(text)) if text[k] in ",}\n"), len(text))
            return text[:start] + rng.choice(VALUES) + text[stop:]
        case "key":
            return (
                text[:at]
                + rng.choice(
                    (
                        "\nextends: r.yaml\n",
                        "<<: {a: b}, ",
                        "\n<<: *x\n",
                        "\n? [a, b]\n: c\n",
                        "\n---\n",
                        "\n...\n",
                        "%YAML 1.1\n---\n",
                        "1: 2, ",
                        "null: 3\n",
                        "a: &a b\n",
                    )
                )
                + text[at:]
            )
        case "letter":
            return text[:at] + rng.choice(_LETTERS) * rng.choice((1, 1, 3)) + text[at:]
        case "letter out":
            return text[:at] + text[at + rng.choice((1, 1, 5)) :]
        case "letters swapped":
            return text[:at] + text[at : at + 2][::-1] + text[at + 2 :]
        case "line out":
            del lines[i]
        case "line twice":
            lines.insert(j, lines[i])
        case "lines swapped":
            lines[i], lines[j] = lines[j], lines[i]
        case "indent":
            lines[i] = rng.choice(("  ", " ", "")) + lines[i].lstrip() if rng.random() < 0.5 else " " + lines[i]
        case "tab":
            lines[i] = "\t" + lines[i]
        case "cut":
            return text[:at]
        case "other":
            return text[:at] + rng.choice(good)[at:]
    return "\n".join(lines)


def _recipes_by_hand(good: str) -> list[Damaged]:
    """Alias bombs, nesting, encodings, tags that name code, files that extend themselves."""
    letters = "abcdefghij"
    laughs = 'a: &a ["x","x","x","x","x","x","x","x","x","x"]\n' + "".join(f"{n}: &{n} [{','.join([f'*{m}'] * 10)}]\n" for m, n in itertools.pairwise(letters))
    merges = "a: &a {x: 1}\n" + "".join(f"{n}: &{n} {{<<: [{','.join([f'*{m}'] * 10)}]}}\n" for m, n in itertools.pairwise(letters))
    inside = good.replace("options: {", "options: {bomb: *j, ", 1)
    cases = [
        ("laughs", laughs), ("laughs inside", laughs + inside), ("laughs as a source", laughs + good.replace("source: scenes", "source: *j")), ("laughs as a list", laughs.replace("a: &a", "- &a").replace("\n", "\n- ").replace(": &", " &").rstrip("- ")),
        ("laughs as a class list", laughs + good.replace("data: {", "data: {classes: *j, ")), ("merged laughs", merges), ("merged laughs inside", merges + good.replace("options: {", "options: {<<: *j, ", 1)),
        ("holds itself", "a: &a [*a]\n" + good), ("is itself", "&a {task: *a, data: *a, model: *a, train: *a}"), ("options that hold themselves", good.replace("options: {", "options: &o {self: *o, ", 1)),
        *[(f"{n} brackets", "x: " + "[" * n) for n in (100, 1000, 100_000)], ("closed brackets", good + "x: " + "[" * 300 + "]" * 300), ("braces", "{a: " * 5000), ("deep options", good.replace("options: {", "options: {deep: " + "[" * 90 + "]" * 90 + ", ", 1)),
        ("dashes", "- " * 5000), ("indents", "\n".join(" " * i + "a:" for i in range(500))), ("questions", "? " * 2000), ("a long line", "x: " + "y" * 3_000_000), ("many keys", "".join(f"k{i}: {i}\n" for i in range(12_000))),
        ("many lines", "#\n" * 500_000 + good), ("nothing", ""), ("only a mark", "\ufeff"), ("a marked recipe", "\ufeff" + good), ("UTF-16", good.encode("utf-16")), ("Latin", "# caf\xe9\n".encode("latin-1") + good.encode()),
        ("a NUL", good.replace("scenes", "sc\0enes")), ("a NUL in quotes", good.replace("scenes", '"sc\\0enes"')), ("half a character", good.replace("scenes", '"\\ud800"')), ("returns", good.replace("\n", "\r")), ("documents", f"{good}---\n{good}"),
        ("code", "!!python/object/apply:os.system ['touch executed']"), ("code as a value", good.replace("seed", "x") + "seed: !!python/object/new:os.system ['touch executed']\n"), ("a directive", "%YAML 1.1\n---\n" + good), ("a tag", "%TAG ! tag:yaml.org,2002:python/\n---\n" + good),
        ("extends itself", "extends: {name}\n" + good), ("extends nothing", "extends: none.yaml\n"), ("extends a folder", "extends: .\n" + good), ("extends the root", "extends: /\n" + good), ("extends many", "extends: [a.yaml, b.yaml]\n" + good),
        ("extends a NUL", 'extends: "a\\0b"\n' + good), ("extends a long name", "extends: " + "n" * 5000 + "\n" + good), ("extends half a character", 'extends: "\\ud800"\n' + good), ("extends what is merged", "<<: {extends: other.yaml}\n" + good), ("extends a device", "extends: /dev/zero\n" + good),
        ("a variable that is merged", "task: classification\ndata: {source: folder, <<: {train: '${NOT_SET_ANYWHERE}'}}\n"), ("nobody's home", good.replace("train: 50", "train: ~nobody-of-that-name/x").replace("scenes", "folder")), ("a NUL in a path", good.replace("train: 50", 'train: "a\\0b"').replace("scenes", "folder")),
        ("half a character in a path", good.replace("train: 50", 'train: "\\ud800"').replace("scenes", "folder")), ("a number of 5,000 hexadecimal digits", good + f"seed: 0x{'F' * 5000}\n"),
        ("a key twice", good + "task: classification\n"), ("keys that are no words", "? [a]\n: 1\n? {b: c}\n: 2\n1: 2\nnull: 3\n"), ("a date", good + "seed: 2026-11-20\n"), ("bytes", good.replace("options: {", "options: {b: !!binary /w==, ", 1)), ("a set", good.replace("options: {", "options: {s: !!set {a, b}, ", 1)),
        ("a number of 5,000 digits", good + f"seed: {'9' * 5000}\n"), ("a number of 400 digits", good + f"seed: {'9' * 400}\n"), ("a number that no float holds", good.replace("lr: 1e-3", "lr: " + "9" * 400)),
    ]  # fmt: skip
    names = [f"hand{i:02d}.yaml" for i in range(len(cases))]
    texts = [
        data if isinstance(data, bytes) else data.replace("{name}", name).encode("utf-8", "surrogatepass") for name, (_, data) in zip(names, cases, strict=True)
    ]
    return [Damaged(f"by hand {i}", how, name, data) for i, ((how, _), name, data) in enumerate(zip(cases, names, texts, strict=True))]


# ── JSON ──────────────────────────────────────────────────────────────────────────────────────────────────────

_JSON_VALUES = (None, True, -1, 0, 10**18, 10**400, 0.5, -1e308, 1e999, "", "x", "\x00", "../../x", "\ud800", [], [None], [[0]], {}, {"a": 1})


def damaged_json(text: str, rng: random.Random) -> tuple[str, str]:
    """(what was done, the text): one to three values of another kind, keys left out, renamed or added, items left out or repeated."""
    root, done = json.loads(text), []
    for _ in range(rng.choice((1, 1, 2, 3))):
        holders = [root, *_holders(root)]
        holder = rng.choice([h for h in holders if h] or [root])
        how = rng.choice(("value", "value", "value", "out", "renamed", "twice"))
        key: Any = rng.choice(list(holder)) if isinstance(holder, dict) and holder else rng.randrange(len(holder)) if holder else None
        if key is None:
            continue
        done.append(f"{key} {how}")
        if how == "value":
            holder[key] = rng.choice(_JSON_VALUES)
        elif how == "out":
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(key, holder[rng.randrange(len(holder))])
        else:
            holder[f"{key}x"] = holder.pop(key) if how == "renamed" else holder[key]
    return " and ".join(done), json.dumps(root)


def _holders(value: Any) -> Iterator[Any]:
    """Every list and mapping inside a value."""
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(inner, (dict, list)):
            yield inner
            yield from _holders(inner)
