"""Images a second that one core makes ready for training: Pellucid beside torchvision's reference pipeline and timm's.

The job: a JPEG of 500x375 pixels and about 65 kB becomes one 224x224 image of a normalised float32 batch of 32, by a random resized
crop, a horizontal flip, colour jitter and normalisation, with the strengths of `CROP` and `JITTER` everywhere. One thread, no
workers, one core. The images are drawn: noise whose amplitude falls with frequency as in photographs (Field 1987), in JPEGs whose
quality is chosen for their size, because the time of a decoder follows the bytes.

Torchvision's pipeline is that of its classification references (Pillow's decoder, transforms v2, `default_collate`) with the colour
jitter added, on Pillow images and on tensors; timm's is `create_transform`. Pellucid stands there cold (decoded each time), warm (out
of a store that was made before) and with the host's part alone, where a device augments: uint8 images packed for one copy. Its store
keeps whole images in the table's first rows, so that the crop is taken from the same pixels as the others'; `stored at 256` is what
recipes do, the short side resized once before.

Before anything is timed the work is compared: our crop, flip, jitter and normalisation are repeated by torchvision's functions with
the parameters that we drew, and the bench stops if they differ by more than rounding. Rounds are interleaved, medians reported; the clock
is the processor time of the process, system calls and page faults included, and the files are in the page cache.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import timm
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.utils.data import default_collate
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as oracle

from pellucid.data.augment import Augment
from pellucid.data.dataset import Split
from pellucid.data.images import decode, resize
from pellucid.data.loader import Reader, ordered_windows
from pellucid.data.store import Pixels, Resizing, Store, Stream, open_pixels
from pellucid.recipe import AugmentSection

WIDTH, HEIGHT, BYTES = 500, 375, 65_000
SIZE, BATCH = 224, 32
CROP, RATIO, JITTER = (0.08, 1.0), (3 / 4, 4 / 3), (0.4, 0.4, 0.4, 0.1)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GOALS = {"cold": 1.5, "warm": 3.0, "host": 20.0}

# ── the drawn photographs ─────────────────────────────────────────────────────────────────────────────────────


def drawn_photograph(seed: int) -> Image.Image:
    """(375, 500) RGB noise with amplitude 1 / frequency, channels that mostly agree, and a different contrast for each seed."""
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH))
    frequency[0, 0] = np.inf
    phases = np.exp(2j * np.pi * random.random((3, *frequency.shape)))
    luma, *chroma = np.fft.irfft2(phases / frequency, s=(HEIGHT, WIDTH))
    contrast = random.uniform(35, 60)
    planes = [luma / luma.std() + 0.35 * (c / c.std()) for c in (chroma[0], -chroma[1], chroma[1] - chroma[0])]
    return Image.fromarray(np.stack([127 + contrast * plane for plane in planes], axis=-1).clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, wanted: int) -> bytes:
    """The image as a JPEG of the largest quality that stays within `wanted` bytes."""
    low, high, best = 1, 100, b""
    while low <= high:
        quality, buffer = (low + high) // 2, io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= wanted:
            low, best = quality + 1, buffer.getvalue()
        else:
            high = quality - 1
    return best


def drawn_files(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{i:04d}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_bytes(jpeg(drawn_photograph(i), BYTES))
    return paths


# ── the pipelines: each gives batches of 32 for ever ──────────────────────────────────────────────────────────

Batches = Iterator[Any]


def with_pillow(path: Path) -> Image.Image:
    with path.open("rb") as file:
        return Image.open(file).convert("RGB")


def collated(load: Callable[[Path], Any], transform: Callable[[Any], Any], paths: Sequence[Path]) -> Batches:
    """What a DataLoader without workers does: one sample after the other, then default_collate."""
    while True:
        for start in range(0, len(paths) - BATCH + 1, BATCH):
            yield default_collate([transform(load(path)) for path in paths[start : start + BATCH]])


def reference(*, backend: str) -> Callable[[Any], Any]:
    """torchvision's classification training transform with colour jitter, as its references order it for the backend."""
    steps: list[Any] = [v2.PILToTensor()] if backend == "tensor" else []
    steps += [v2.RandomResizedCrop(SIZE, scale=CROP, ratio=RATIO, antialias=True), v2.RandomHorizontalFlip(0.5), v2.ColorJitter(*JITTER)]
    steps += [v2.PILToTensor()] if backend == "pil" else []
    return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD), v2.ToPureTensor()])


def timm_transform(*, use_prefetcher: bool) -> Callable[[Any], Any]:
    """timm's training transform; with its prefetcher it ends in uint8 and the device normalises."""
    same: dict[str, Any] = {"scale": CROP, "ratio": RATIO, "hflip": 0.5, "color_jitter": JITTER, "interpolation": "bilinear", "mean": MEAN, "std": STD}
    return create_transform(SIZE, is_training=True, use_prefetcher=use_prefetcher, **same)


def section(*, jitter: bool) -> AugmentSection:
    return AugmentSection(random_resized_crop=list(CROP), crop_ratio=list(RATIO), horizontal_flip=0.5, color_jitter=list(JITTER) if jitter else None)


def augmentation(*, jitter: bool = True) -> Augment:
    return Augment.from_section(section(jitter=jitter), size=(SIZE, SIZE), mean=MEAN, std=STD, seed=1, interpolation="bilinear")


def split_of(paths: Sequence[Path]) -> Split:
    names = [path.name for path in paths]
    hashes = [f"{i:032x}" for i in range(len(paths))]
    return Split("train", names, np.zeros(len(paths), np.int64), hashes, lambda i: decode(paths[i].read_bytes(), names[i]))


def resizing(short_side: int) -> Resizing:
    return Resizing((SIZE, SIZE), "crop", short_side, "bilinear")


def pellucids(pixels: Pixels, augment: Augment | None) -> Batches:
    """Batches as the training loop gets them, without reading ahead; without `augment` the packed uint8 images alone."""
    windows, epoch = ordered_windows(len(pixels), BATCH)[: len(pixels) // BATCH], 0
    with Reader(pixels, workers=0) as reader:
        while True:
            for window in windows:
                (pack,) = reader.packs(window, BATCH)
                yield pack.images.flat if augment is None else augment(pack.images, samples=pack.draws, epoch=epoch)
            epoch += 1


@dataclass(frozen=True)
class Row:
    """One line of the table; `goal` names the ratio to the reference that it must reach."""

    name: str
    batches: Batches
    goal: str | None = None


def rows(paths: Sequence[Path], folder: Path) -> list[Row]:
    """All pipelines, the reference first."""
    split = split_of(paths)

    def store(short_side: int) -> Pixels:
        pixels = open_pixels(split, resizing(short_side), limit_bytes=1e12, directory=str(folder / "store"), workers=1)
        if not isinstance(pixels, Store):
            raise SystemExit(f"the bench needs room for a store: {pixels.note}")
        return pixels

    whole, small = store(HEIGHT), store(256)
    augment = augmentation()
    return [
        Row("torchvision reference (Pillow images)", collated(with_pillow, reference(backend="pil"), paths)),
        Row("torchvision reference (tensors)", collated(with_pillow, reference(backend="tensor"), paths)),
        Row("torchvision decode_jpeg + v2 tensors", collated(with_torchvision, reference(backend="decoded"), paths)),
        Row("timm create_transform", collated(with_pillow, timm_transform(use_prefetcher=False), paths)),
        Row("timm create_transform, uint8 for its prefetcher", collated(with_pillow, timm_transform(use_prefetcher=True), paths)),
        Row("Pellucid cold", pellucids(Stream(split, resizing(HEIGHT), None), augment), "cold"),
        Row("Pellucid warm", pellucids(whole, augment), "warm"),
        Row("Pellucid, host's part alone", pellucids(whole, None), "host"),
        Row("Pellucid cold, stored at 256", pellucids(Stream(split, resizing(256), None), augment)),
        Row("Pellucid warm, stored at 256", pellucids(small, augment)),
        Row("Pellucid, host's part alone, stored at 256", pellucids(small, None)),
        Row("torchvision reference without jitter", collated(with_pillow, without_jitter(), paths)),
        Row("Pellucid cold without jitter", pellucids(Stream(split, resizing(HEIGHT), None), augmentation(jitter=False))),
        Row("Pellucid warm without jitter", pellucids(whole, augmentation(jitter=False))),
        Row("Pillow decoding alone", (np.asarray(with_pillow(path)) for _ in iter(int, 1) for path in paths)),
    ]


def with_torchvision(path: Path) -> Tensor:
    return decode_jpeg(read_file(os.fspath(path)), mode=ImageReadMode.RGB)


def without_jitter() -> Callable[[Any], Any]:
    crop = v2.RandomResizedCrop(SIZE, scale=CROP, ratio=RATIO, antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip(0.5), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD), v2.ToPureTensor()])


# ── is it the same work? ──────────────────────────────────────────────────────────────────────────────────────


def largest_difference(paths: Sequence[Path], batches: Batches) -> float:
    """The largest difference, in levels of 1/255, between a batch of ours and torchvision's functions under the parameters we drew."""
    ours = next(batches)
    augment = augmentation()
    plan = augment.plan([(HEIGHT, WIDTH)] * BATCH, np.arange(BATCH), 0)
    assert plan.jitter is not None
    assert plan.horizontal_flip is not None
    worst = 0.0
    for i in range(BATCH):
        top, left, height, width = plan.boxes[i].tolist()
        image = oracle.resized_crop(oracle.pil_to_tensor(with_pillow(paths[i])), top, left, height, width, [SIZE, SIZE], antialias=True)
        image = oracle.horizontal_flip(image) if plan.horizontal_flip[i] else image
        image = oracle.to_dtype(image, torch.float32, scale=True)
        changes = [oracle.adjust_brightness, oracle.adjust_contrast, oracle.adjust_saturation, oracle.adjust_hue]
        for kind in plan.jitter.order[i]:
            image = changes[kind](image, float(plan.jitter.factors[i, kind]))
        difference = (ours[i] - oracle.normalize(image, list(MEAN), list(STD))).abs() * torch.tensor(STD).view(3, 1, 1) * 255
        worst = max(worst, float(difference.max()))
    return worst


def same_strengths(plan_of: Augment, draws: int = 4000) -> list[str]:
    """A line for each drawn parameter: its 5 % and 95 % quantiles by torchvision and by us."""
    torch.manual_seed(0)
    image = torch.zeros(3, HEIGHT, WIDTH)
    crop, jitter = v2.RandomResizedCrop(SIZE, scale=CROP, ratio=RATIO), v2.ColorJitter(*JITTER)
    boxes, colours = [crop.make_params([image]) for _ in range(draws)], [jitter.make_params([image]) for _ in range(draws)]
    plan = plan_of.plan([(HEIGHT, WIDTH)] * draws, np.arange(draws), 0)
    assert plan.jitter is not None
    pairs: dict[str, tuple[Any, NDArray[Any]]] = {
        "crop area": ([b["height"] * b["width"] for b in boxes], plan.boxes[:, 2] * plan.boxes[:, 3]),
        "crop width / height": ([b["width"] / b["height"] for b in boxes], plan.boxes[:, 3] / plan.boxes[:, 2]),
    }
    for kind, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        pairs[name] = ([c[f"{name}_factor"] for c in colours], plan.jitter.factors[:, kind])
    return [f"| {name} | {_quantiles(theirs)} | {_quantiles(ours)} |" for name, (theirs, ours) in pairs.items()]


def _quantiles(values: Any) -> str:
    low, high = np.quantile(np.asarray(values, float), [0.05, 0.95])
    return f"{low:.4g} to {high:.4g}"


# ── the clock ─────────────────────────────────────────────────────────────────────────────────────────────────


def timed(batches: Batches, seconds: float) -> float:
    """Images a second of the core's own time (user and system), over at least `seconds`: what else runs there is not counted."""
    images, began = 0, time.process_time()
    while (passed := time.process_time() - began) < seconds or not images:
        batch = next(batches)
        images += 1 if isinstance(batch, np.ndarray) else BATCH
    return images / passed


def measured(found: Sequence[Row], rounds: int, seconds: float) -> dict[str, list[float]]:
    """{row: images a second of each round}; the rows take turns, and one turn of each is not counted."""
    speeds: dict[str, list[float]] = {row.name: [] for row in found}
    for round_index in range(-1, rounds):
        for row in found:
            speed = timed(row.batches, seconds)
            if round_index >= 0:
                speeds[row.name].append(speed)
        print(f"round {round_index + 1} of {rounds}", file=sys.stderr, flush=True)
    return speeds


def table(found: Sequence[Row], speeds: dict[str, list[float]]) -> str:
    """Markdown: medians, the smallest and largest round, and the median of the rounds' ratios to the reference."""
    lines = [
        "| pipeline | images/s, median | smallest to largest round | times torchvision's reference (smallest to largest) | goal | rounds |",
        "|---|---|---|---|---|---|",
    ]
    base = speeds[found[0].name]
    for row in found:
        mine = speeds[row.name]
        ratios = [a / b for a, b in zip(mine, base, strict=True)]
        ratio = statistics.median(ratios)
        goal = "" if row.goal is None else f"{GOALS[row.goal]:g}: {'reached' if ratio >= GOALS[row.goal] else 'missed'}"
        spread = f"{min(mine):,.0f} to {max(mine):,.0f}"
        times = f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append(f"| {row.name} | {statistics.median(mine):,.0f} | {spread} | {times} | {goal} | {len(mine)} |")
    return "\n".join(lines)


def machine() -> str:
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    model = next((line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")), platform.processor() or "unknown CPU")
    libraries = f"torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}, Pillow {PIL.__version__}"
    return f"one core of {model}, {torch.get_num_threads()} thread; {libraries}, python {platform.python_version()}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Images a second that one core makes ready for training.")
    parser.add_argument("--images", type=int, default=256, help="JPEGs that are drawn (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each pipeline (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.6, help="length of a turn (default: %(default)s)")
    given = parser.parse_args()
    if given.images < BATCH:
        parser.error(f"--images: expected at least {BATCH}, got {given.images}")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = drawn_files(folder, given.images)
        size = statistics.fmean(path.stat().st_size for path in paths)
        split, augment = split_of(paths), augmentation()
        worst = largest_difference(paths, pellucids(Stream(split, resizing(HEIGHT), None), augment))
        if worst > 0.1:
            raise SystemExit(f"not the same work: a pixel differs from torchvision's functions by {worst:.3f} levels of 255")
        whole = resize(split.open(0), (SIZE, SIZE), "crop", HEIGHT, "bilinear").shape
        found = rows(paths, folder)
        speeds = measured(found, given.rounds, given.seconds)
    print(f"{machine()}\n{len(paths)} drawn JPEGs of {whole[1]}x{whole[0]}, {size / 1000:.1f} kB on average\n")
    print(f"{table(found, speeds)}\n")
    print(f"Same parameters, torchvision's functions: largest difference {worst:.4f} levels of 255 over {BATCH} images.\n")
    print("| parameter, 5 % to 95 % of draws | torchvision | Pellucid |\n|---|---|---|")
    print("\n".join(same_strengths(augment)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
