"""Peak memory of training and of `pellucid data check` as the number of images grows: what is kept of each image, and nothing else, may grow.

Every line is a process of its own. Training is one whole epoch of a model so small that the epoch stays short (a ViT of one block on
32 x 32 pixels, batches of 256, 60 images in val), with the report and without the figures for paper, which would hide in 60 MB of their own
what is to be seen. It reads drawn scenes or a folder of files, streamed (data.store.limit_gb: 0) and from the store, which the line of that
name builds first. `pellucid data check` runs twice on a cache of its own: the first time every file is decoded, the second time only read
and hashed. The last check is the worst case, a finding about every single file (PNG images that are named .jpg).

The files are drawn: 120 different scenes as PNG and as JPEG, each file with its number in a text chunk or comment, so that all contents
differ. Smaller sets are made of hard links to the files of the largest.

What is measured of a process, from outside:
  peak        ru_maxrss, all of its pages that were in memory at once, as the kernel kept count
  anonymous   the largest RssAnon of /proc/<pid>/status, looked at every 10 ms: memory that is the process's own. The rest of the peak is
              files that are mapped: libraries, and pages of a store, which cost nothing that the kernel could not take back at any time
  growth      of both, in kB per 1,000 images more than in the smallest set, which is bytes per image. The allocator and the threads move
              the peak of one and the same command by several MB, so that growth between small sets is mostly noise
"""

from __future__ import annotations

import argparse
import os
import platform
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

from PIL import Image

from pellucid.data import scenes

SIZES, QUICK_SIZES = (1_000, 10_000, 100_000), (1_000, 4_000, 16_000)
SIDE, BATCH, VAL = 32, 256, 60
PERIOD = 0.01  # seconds between looks at a process

RECIPE = """\
task: classification
data: {{source: {source}, train: {train}, val: {val}, image_size: {side}, workers: 1, store: {{limit_gb: {limit}}}}}
model: {{name: timm/test_vit, options: {{patch_size: 16, embed_dim: 16, num_heads: 1, depth: 1}}}}
train:
  batch_size: {batch}
  threads: 1
  phases: [{{epochs: 1, optimizer: {{name: adamw, lr: 1.0e-3}}}}]
"""


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────


def encoded(index: int, kind: str) -> bytes:
    buffer = BytesIO()
    Image.fromarray(scenes.draw(index, split="train", image_size=(SIDE, SIDE)).image).save(buffer, kind)
    return buffer.getvalue()


def numbered(content: bytes, number: int) -> bytes:
    """The same picture in other bytes: a number behind the header of a PNG or JPEG file."""
    text = f"number\0{number}".encode()
    if content.startswith(b"\x89PNG"):
        behind_header = 8 + 25  # signature and IHDR
        chunk = struct.pack(">I", len(text)) + b"tEXt" + text + struct.pack(">I", zlib.crc32(b"tEXt" + text))
        return content[:behind_header] + chunk + content[behind_header:]
    return content[:2] + b"\xff\xfe" + struct.pack(">H", len(text) + 2) + text + content[2:]


def write_files(folder: Path, sizes: Sequence[int]) -> None:
    """Class folders `<n>/train` of each size, `val` beside them, and `misnamed/train`, the largest set as PNG files called .jpg."""
    drawn = {kind: [encoded(i, kind) for i in range(120)] for kind in ("PNG", "JPEG")}
    largest = max(sizes)
    for split, count in ((f"{largest}/train", largest), ("val", VAL), ("misnamed/train", largest)):
        for name in scenes.SHAPES:
            (folder / split / name).mkdir(parents=True)
        for i in range(count):
            kind, ending = ("PNG", "png") if i % 2 else ("JPEG", "jpg")
            if split.startswith("misnamed"):
                kind, ending = "PNG", "jpg"
            # Numbers do not repeat across splits: no leak is to be found.
            content = numbered(drawn[kind][i % 120], i if split != "val" else -1 - i)
            (folder / split / scenes.SHAPES[i % len(scenes.SHAPES)] / f"{i:06d}.{ending}").write_bytes(content)
    for size in sorted(set(sizes) - {largest}):
        for name in scenes.SHAPES:
            (folder / str(size) / "train" / name).mkdir(parents=True)
        for i in range(size):
            path = Path(scenes.SHAPES[i % len(scenes.SHAPES)]) / f"{i:06d}.{'png' if i % 2 else 'jpg'}"
            (folder / str(size) / "train" / path).hardlink_to(folder / str(largest) / "train" / path)


# ── processes ─────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Usage:
    """What a process took. Memory in bytes, seconds of wall clock; progress: lines on stderr that say how far it is."""

    peak: int
    anonymous: int
    seconds: float
    progress: int


TRAIN = ("-c", "import sys; from pellucid.train import train; train(sys.argv[1], out=sys.argv[2], figures=False)")
CHECK = ("-m", "pellucid", "data", "check")


def measured(arguments: Sequence[str], cache: Path) -> Usage:
    """Run Python with these arguments and the caches in `cache`; stops the bench when it fails."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "OMP_WAIT_POLICY": "passive"}
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as told:
        child = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=told, env=environment)
        anonymous = 0
        while not (ended := os.wait4(child.pid, os.WNOHANG))[0]:
            anonymous = max(anonymous, resident(child.pid, "RssAnon"))
            time.sleep(PERIOD)
        _, status, usage = ended
        seconds = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)  # it was waited for here
        told.seek(0)
        lines = told.read().splitlines()
    if child.returncode != 0:
        raise SystemExit(f"python {' '.join(arguments)} ended with {child.returncode}:\n" + "\n".join(lines[-20:]))
    return Usage(usage.ru_maxrss * 1024, anonymous, seconds, sum("/" in line and "checking" in line for line in lines))


def resident(pid: int, what: str) -> int:
    """A line of /proc/<pid>/status in bytes; 0 for a process that has just ended."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) * 1024
    return 0


# ── what is run ───────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Line:
    what: str
    images: int
    usage: Usage


def recipe_file(folder: Path, source: str, images: int, *, limit_gb: float, train: str = "") -> Path:
    paths = {"scenes": (str(images), str(VAL)), "folder": (train or str(folder / "files" / str(images) / "train"), str(folder / "files" / "val"))}
    file = folder / "recipe.yaml"
    file.write_text(RECIPE.format(source=source, train=paths[source][0], val=paths[source][1], side=SIDE, batch=BATCH, limit=limit_gb))
    return file


def trainings(folder: Path, sizes: Sequence[int]) -> Iterator[Line]:
    for source in ("scenes", "folder"):
        for size in sizes if source == "scenes" else (sizes[0], sizes[-1]):
            for what, limit in (("streamed", 0), ("building the store", 4), ("from the store", 4)):
                recipe = recipe_file(folder, source, size, limit_gb=limit)
                with tempfile.TemporaryDirectory(dir=folder) as run:
                    usage = measured([*TRAIN, str(recipe), f"{run}/run"], folder / "cache")
                yield Line(f"train, {source}, {what}", size, usage)


def checks(folder: Path, sizes: Sequence[int]) -> Iterator[Line]:
    for size in sizes:
        yield from _checked(folder, "check", size, recipe_file(folder, "folder", size, limit_gb=0))
    misnamed = str(folder / "files" / "misnamed" / "train")
    yield from _checked(folder, "check, all misnamed", max(sizes), recipe_file(folder, "folder", max(sizes), limit_gb=0, train=misnamed))


def _checked(folder: Path, what: str, size: int, recipe: Path) -> Iterator[Line]:
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        for time_of in ("first", "second"):
            yield Line(f"{what}, {time_of} time", size, measured([*CHECK, str(recipe)], Path(cache)))


# ── what is printed ───────────────────────────────────────────────────────────────────────────────────────────


def table(lines: Sequence[Line]) -> str:
    rows = [
        "| what | images | peak, MB | anonymous, MB | growth of peak, kB per 1,000 images | growth of anonymous | seconds | lines of progress |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    smallest: dict[str, Line] = {}
    for line in sorted(lines, key=lambda line: line.what):  # stable: sizes stay in order
        first, usage = smallest.setdefault(line.what, line), line.usage
        more = line.images - first.images
        growths = [f"{(now - then) / more:,.0f}" if more else "" for now, then in ((usage.peak, first.usage.peak), (usage.anonymous, first.usage.anonymous))]
        progress = str(usage.progress) if line.what.startswith("check") else ""
        cells = [line.what, f"{line.images:,}", f"{usage.peak / 1e6:,.0f}", f"{usage.anonymous / 1e6:,.0f}", *growths, f"{usage.seconds:.1f}", progress]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def machine() -> str:
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "pillow"))
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores; Linux {platform.release()}, Python {platform.python_version()}, {versions}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"sets of {', '.join(f'{n:,}' for n in QUICK_SIZES)} images")
    parser.add_argument("--only", choices=("train", "check"), help="one half of it")
    arguments = parser.parse_args()
    sizes = QUICK_SIZES if arguments.quick else SIZES
    lines: list[Line] = []
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="pellucid-memory-") as name:
        folder = Path(name)
        write_files(folder / "files", sizes)
        print(f"files written in {time.perf_counter() - began:.0f} s", file=sys.stderr)
        for jobs in (trainings, checks):
            if arguments.only and not jobs.__name__.startswith(arguments.only):
                continue
            for line in jobs(folder, sizes):
                print(f"{line.what}, {line.images:,}: {line.usage}", file=sys.stderr)
                lines.append(line)
    print(f"{machine()}\n\n{table(lines)}\n\n{time.perf_counter() - began:.0f} s in all, each line measured once")


if __name__ == "__main__":
    main()
