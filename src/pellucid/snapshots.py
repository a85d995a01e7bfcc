"""What training keeps for looking inside its model: penultimate features of a fixed probe set at chosen epochs, and the pictures to look at.

A snapshot is taken by the module whose numbers are reported (the moving average where there is one), in evaluation mode, on the probe: the same
images of one split at every epoch. Nothing of it reaches training: weights, running statistics, gradients and random numbers are those of a run
without it. Like an evaluation it depends on nothing but the weights and the size of the batches, so that a resumed run writes the same file again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from pellucid.atlas import most_tiles, write_atlas
from pellucid.data.augment import evaluate_view
from pellucid.data.dataset import Dataset
from pellucid.data.images import centre, decode, resize, view_mask
from pellucid.data.inspection import listed
from pellucid.data.loader import Reader, Window, ordered_windows, pack_images
from pellucid.data.masks import class_masks, mask_beside, masks_of, without_target
from pellucid.errors import DataError, DivergedError, OutOfMemoryError, RunError, UsageError
from pellucid.files import bytes_hash
from pellucid.inside.features import penultimate
from pellucid.memory import no_room
from pellucid.recipe import DataSection, Recipe
from pellucid.run import PROBE_SIDE, Probe
from pellucid.runtime import out_of_memory
from pellucid.schema import InsideSection

if TYPE_CHECKING:
    from pellucid.prepare import Training

Maps = Callable[[nn.Module], dict[str, np.ndarray]]
MAX_HALF = float(np.finfo(np.float16).max)  # 65,504


@dataclass(frozen=True)
class Looked:
    """n pictures whose maps are drawn: those of inside.images, then the samples of the split. Of segmentation a label is the class whose map is drawn.

    names: paths as the recipe has them, and names of the split. sizes: (height, width) of each. labels: (n,) int64 class index, -1 where nobody
    knows it; a photograph with the content of an image of the data has its label, and its mask where it is of inside.split. rows: (n,) int64 of the
    split, -1 for inside.images. places: (n,) int64 of the split, of a photograph the row with its content, -1 where there is none. views: (n, H, W, 3) uint8
    RGB, what the model sees before normalisation. masks: (H, W) uint8 of the same view, 1 target, 0 not, 255 neither; None where an image has none.
    """

    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    labels: np.ndarray
    rows: np.ndarray
    places: np.ndarray
    views: np.ndarray
    masks: tuple[np.ndarray | None, ...]

    def __len__(self) -> int:
        return len(self.names)


# ── what is looked at ─────────────────────────────────────────────────────────────────────────────────────────


def evenly(labels: np.ndarray, count: int) -> np.ndarray:
    """Rows of at most `count` images, ascending int64: each class has its share, and within a class they lie evenly apart.

    Evenly over the rows alone would not do: drawn scenes hold each class once in six, and every sixth row is one class.
    """
    n = len(labels)
    order = np.argsort(labels, kind="stable")
    count = min(count, n)
    return np.sort(order[(2 * np.arange(count, dtype=np.int64) + 1) * n // (2 * max(count, 1))])


def in_turn(labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The same rows, the classes in turn: the first few of them are of as many classes as there are."""
    seen: dict[int, int] = {}
    turns = []
    for row in rows.tolist():
        label = int(labels[row])
        turns.append((seen.get(label, 0), label, row))
        seen[label] = seen.get(label, 0) + 1
    return np.array([row for _, _, row in sorted(turns)], np.int64)


def probe_of(inside: InsideSection, dataset: Dataset) -> Probe:
    """The images of the split whose features are kept; UsageError where the data has no such split."""
    if inside.split not in dataset.splits:
        raise UsageError(f"inside.split is {inside.split}, and the data has {', '.join(dataset.splits)}. Name one of them.")
    labels = dataset.splits[inside.split].labels
    rows = evenly(labels, inside.features)
    return Probe(inside.split, rows, labels[rows])


def looked_at(recipe: Recipe, dataset: Dataset) -> Looked | None:
    """The pictures whose maps are drawn, read now; None for a recipe without `inside`.

    DataError names photographs that are not there or cannot be read, and masks that are missing or do not fit.
    """
    inside, d = recipe.inside, recipe.data
    if inside is None:
        return None
    probe_of(inside, dataset)
    split = dataset.splits[inside.split]
    photographs = _photographs(inside)
    known = _known(photographs, inside.split, dataset)
    own = [known[name][1] if name in known and known[name][0] == inside.split else None for name in photographs]
    # A picture counts once, whether it was drawn or asked for.
    rows = [int(row) for row in in_turn(split.labels, evenly(split.labels, inside.samples)) if int(row) not in own]
    pictures = [*(decode(data, name) for name, data in photographs.items()), *(split.open(row) for row in rows)]
    masked = [*own, *rows]
    labels = [dataset.splits[known[name][0]].labels[known[name][1]] if name in known else -1 for name in photographs]
    labels += split.labels[rows].tolist()
    if split.masks is not None:
        full, labels = class_masks(inside, dataset.classes, split.masks, masked)
    else:
        mask_of = masks_of(inside, d, split, sorted({row for row in masked if row is not None}))
        full = [mask_of(row) if mask_of is not None and row is not None else None for row in masked]
        for i, name in enumerate(photographs):
            if full[i] is None:
                full[i] = mask_beside(inside, name, (pictures[i].height, pictures[i].width))
        if fault := without_target([mask for mask in full if mask is not None], inside):
            raise DataError(fault)
    views = [centre(resize(picture, d.size, d.fit, d.resize_size, d.interpolation), d.size) for picture in pictures]
    return Looked(
        (*photographs, *(split.names[row] for row in rows)),
        tuple((picture.height, picture.width) for picture in pictures),
        np.array(labels, np.int64),
        np.array([-1] * len(photographs) + rows, np.int64),
        np.array([-1 if row is None else row for row in masked], np.int64),
        np.stack(views) if views else np.empty((0, *d.size, 3), np.uint8),
        tuple(None if mask is None else view_mask(mask, d.size, d.fit, d.resize_size) for mask in full),
    )


def _photographs(inside: InsideSection) -> dict[str, bytes]:
    """{path as the recipe has it: content} of inside.images."""
    missing = [name for name in inside.images if not Path(name).is_file()]
    if missing:
        raise DataError(f"inside.images: {len(missing)} of {len(inside.images)} files are not there:{listed(missing)}\nCorrect the paths.")
    try:
        return {name: Path(name).read_bytes() for name in inside.images}
    except OSError as error:
        raise DataError(f"inside.images: {error.filename} cannot be read: {error.strerror or error}") from None


def _known(photographs: dict[str, bytes], first: str, dataset: Dataset) -> dict[str, tuple[str, int]]:
    """{photograph: (split, row)} of those whose content is that of an image of the data, looked for in the split `first` before the others."""
    names = {bytes_hash(data): name for name, data in photographs.items()}
    found: dict[str, tuple[str, int]] = {}
    for split in (first, *(name for name in dataset.splits if name != first)) if names else ():
        for row, content in enumerate(dataset.splits[split].hashes):
            if content in names:
                found.setdefault(names[content], (split, row))
    return found


def photographs(t: Training) -> list[np.ndarray]:
    """(h, w, 3) uint8 of each picture that a run looks at, in its own resolution."""
    assert t.looked is not None
    assert t.recipe.inside is not None
    split = t.dataset.splits[t.recipe.inside.split]
    return [
        np.asarray(decode(Path(name).read_bytes(), name) if row < 0 else split.open(int(row))) for name, row in zip(t.looked.names, t.looked.rows, strict=True)
    ]


def normalized(looked: Looked, data: DataSection, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(n, 3, H, W) float32 on the CPU: the views as the model gets them."""
    return evaluate_view(pack_images(list(looked.views)), size=data.size, mean=mean, std=std)


# ── during training ───────────────────────────────────────────────────────────────────────────────────────────


def begin(t: Training, epoch: int) -> None:
    """Make the folder ready for a run that has finished `epoch` epochs, -1 before training.

    The probe is written with its pictures; snapshots of later epochs, which the run takes again, are removed. One of an epoch that is over and is not
    whole any more is set aside and told: the weights that it was made with are gone.
    """
    inside = t.recipe.inside
    if inside is None or not t.first:
        return
    for later in [number for number in t.run.snapshot_epochs if number > epoch]:
        t.run.snapshot_file(later).unlink()
    probe = probe_of(inside, t.dataset)
    t.run.write_probe(probe)
    if 0 < len(probe.rows) <= most_tiles(PROBE_SIDE):
        write_atlas(t.run.probe_atlas, (viewed(t, probe.split, row) for row in probe.rows.tolist()), PROBE_SIDE)
    for number in [number for number in inside.chosen_epochs(t.recipe.epochs) if number <= epoch]:
        try:
            t.run.snapshot(number)
        except RunError as error:
            file = t.run.snapshot_file(number)
            if file.exists():
                file.rename(file.with_name(f"{file.name}.damaged"))
            t.record.note(f"the snapshot of epoch {number} is lost and cannot be taken again, the run is past it: {error}")


def viewed(t: Training, split: str, row: int) -> np.ndarray:
    """(H, W, 3) uint8 of an image of a split: what the model sees of it in an evaluation."""
    return centre(t.pixels[split].image(row), t.recipe.data.size)


def take(t: Training, epoch: int, more: Maps | None = None) -> None:
    """Keep a snapshot after `epoch` epochs where the recipe asks for it; a run that stops early has its last epoch here.

    more: gives further arrays of the module, under names such as `maps/<method>`. The first process works, the others wait. DivergedError when a
    feature is NaN or infinite.
    """
    inside, processes = t.recipe.inside, t.runtime.processes
    if inside is None:
        return
    chosen = inside.chosen_epochs(t.recipe.epochs)
    if epoch not in chosen and not (t.at.stopped and t.recipe.epochs in chosen):
        return
    problem = _take(t, epoch, more) if t.first else None
    t.record.evaluation_batch_size = -int(processes.largest(-t.record.evaluation_batch_size)[0])
    problem = processes.told(problem)
    if problem:
        raise DivergedError(problem)


def _take(t: Training, epoch: int, more: Maps | None) -> str | None:
    """Write a snapshot; a line where the weights have diverged."""
    probe, arrays = t.run.probe(), {}
    module = t.evaluated.eval()
    with _undisturbed(t):
        if len(probe.rows):
            features = features_of(t, module, probe.split, probe.rows)
            bad = ~np.isfinite(features).all(axis=1)
            if bad.any():
                return (
                    f"after step {t.at.step:,} the features of {int(bad.sum())} of {len(bad)} {probe.split} images are NaN or infinite: the weights have "
                    "diverged. Remedies: a lower train.phases.*.optimizer.lr, a schedule with warmup_steps, train.clip_grad_norm: 1.0."
                )
            arrays["features"] = halved(t, features, f"snapshot of epoch {epoch}")
        if more is not None:
            arrays |= more(module)
    t.run.write_snapshot(epoch, t.at.step, arrays)
    return None


def halved(t: Training, features: np.ndarray, what: str) -> np.ndarray:
    """float16, or as they are where half precision cannot hold them; the run says so."""
    largest = float(np.abs(features).max(initial=0.0))
    if largest <= MAX_HALF:
        return features.astype(np.float16)
    t.record.note(f"{what}: features reach {largest:.3g}, half precision ends at {MAX_HALF:,.0f}: kept as float32, twice the size")
    return features


@contextlib.contextmanager
def _undisturbed(t: Training) -> Iterator[None]:
    """Random numbers and gradients are after the block what they were before it."""
    parameters = [*t.module.parameters(), *(t.average.parameters() if t.average is not None else ())]
    gradients = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    try:
        with torch.random.fork_rng(devices=[t.runtime.device] if t.runtime.device.type == "cuda" else []):
            yield
    finally:
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient


def features_of(t: Training, module: nn.Module, split: str, rows: np.ndarray) -> np.ndarray:
    """(p, D) float32 features of rows of a split, in batches that shrink when memory runs out."""
    while True:
        size = t.record.evaluation_batch_size
        windows = [replace(window, rows=rows[window.rows], draws=rows[window.rows]) for window in ordered_windows(len(rows), size)]
        try:
            return _pass(t, module, split, windows)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        if size == 1:
            raise OutOfMemoryError(no_room(t.recipe, t.runtime, t.rebuild))
        t.record.evaluation_batch_size = size // 2
        t.runtime.free_cached()
        t.record.note(f"memory ran out in the evaluation: it takes {size // 2} images at once since step {t.at.step}")


@torch.inference_mode()
def _pass(t: Training, module: nn.Module, split: str, windows: list[Window]) -> np.ndarray:
    """(p, D) float32: one forward pass over the windows, as an evaluation makes it."""
    found = []
    with Reader(t.pixels[split], workers=t.recipe.data.workers) as reader:
        reader.plan(windows, max(map(len, windows)))
        for number, window in enumerate(windows, 1):
            for pack in reader.packs(window, len(window)):
                images = evaluate_view(pack.images.to(t.runtime.device), size=t.recipe.data.size, mean=t.mean, std=t.std)
                with t.runtime.autocast():
                    images = images.to(memory_format=t.runtime.memory_format)
                    # Without a classifier a model's output are its features.
                    features = penultimate(module, images, t.built.classifier) if t.built.classifier else module(images).float()
                found.append(features.cpu())
            t.progress(f"features of {split}", number, len(windows))
    return torch.cat(found).numpy()


def end(t: Training) -> list[Path]:
    """Say which chosen epochs a run has no snapshot of and whether the last one is of the reported weights; the files that were kept."""
    inside = t.recipe.inside
    if inside is None or not t.first:
        return []
    beyond = [number for number in inside.chosen_epochs(t.recipe.epochs) if number > t.at.epoch]
    if beyond:
        kept = f"; that of the last, {t.at.epoch}, was kept" if t.at.epoch in t.run.snapshot_epochs else ""
        t.record.note(f"the run stopped before epoch {', '.join(map(str, beyond))}: no snapshot of {'it' if len(beyond) == 1 else 'them'}{kept}")
    if t.recipe.train.keep == "best" and t.at.best_epoch != t.at.epoch:
        t.record.note(
            f"snapshots hold the weights of their own epochs; the reported ones, and maps made after training, are of epoch {t.at.best_epoch}, the best"
        )
    return t.run.inside_files
