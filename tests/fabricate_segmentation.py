"""Small complete run folders of a segmentation of drawn scenes, without a training and without torch: masks that come closer to the truth over epochs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pellucid import overlap, recipe
from pellucid.data import scenes
from pellucid.mask_findings import EpochNumbers, MaskedPicture, MaskFindings, hardest_rows, reduced_mask
from pellucid.palettes import IGNORED, MaskFormat, coloured
from pellucid.predictions import CONFIDENCE_BINS, MaskPredictions
from pellucid.run import DONE, DataRecord, Measurement, Run, RunRecord, SplitRecord

CLASSES = ("background", *scenes.SHAPES)
EPOCHS = (1, 3, 6)
NOISE = {0: 0.95, 1: 0.6, 3: 0.25, 6: 0.06}  # share of blocks that are taken for another class, after an epoch
RECIPE = """
task: segmentation
data: {source: scenes, train: 60, val: 40, image_size: 64}
model: {name: pellucid/fcn32s}
train: {batch_size: 16, phases: [{epochs: 6, optimizer: {name: adamw, lr: 1.0e-3}}]}
"""


def scene(i: int, size: tuple[int, int], *, split: str = "val") -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(image (h, w, 3), mask (h, w)) of a drawn scene; its lowest rows are ignored."""
    drawn = scenes.draw(i, split=split, image_size=size)
    mask = drawn.mask.copy()
    mask[-max(1, size[0] // 16) :] = IGNORED
    return drawn.image, mask


def predicted(mask: NDArray[np.uint8], noise: float, seed: int, classes: int = len(CLASSES)) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """(mask, confidence in [0, 1]) of a model that takes this share of 8 x 8 blocks for another class, and is less sure there."""
    random = np.random.default_rng([seed, 3])
    blocks = tuple(-(-side // 8) for side in mask.shape)
    wrong = np.kron(random.random(blocks) < noise, np.ones((8, 8), bool))[: mask.shape[0], : mask.shape[1]]
    other = np.kron(random.integers(0, classes, blocks), np.ones((8, 8), np.int64))[: mask.shape[0], : mask.shape[1]]
    found = np.where(wrong, other, np.where(mask == IGNORED, 0, mask)).astype(np.uint8)
    sure = np.where(wrong, 0.45, 0.93) + 0.05 * np.sin(np.arange(mask.size).reshape(mask.shape) / 97)
    return found, sure


def mask_format(ignored: bool = True) -> MaskFormat:
    """Index images with a colour for each class."""
    palette = [value for i in range(len(CLASSES)) for value in ((37 * i + 20) % 256, (91 * i + 60) % 256, (151 * i + 40) % 256)]
    return MaskFormat("P", list(range(len(CLASSES))), [255] if ignored else [], None, palette)


def score(truths: Sequence[NDArray[np.uint8]], masks: Sequence[NDArray[np.uint8]], sure: Sequence[NDArray[np.float64]], files: list[str]) -> MaskPredictions:
    """The predictions as training saves them."""
    confusion, boundary, calibration = [], [], np.zeros((len(truths), CONFIDENCE_BINS, 3))
    for i, (truth, mask, confidence) in enumerate(zip(truths, masks, sure, strict=True)):
        confusion.append(overlap.pixel_confusion(truth, mask, len(CLASSES)))
        boundary.append(overlap.boundary_counts(truth, mask, len(CLASSES), 1.0))
        valid = truth != IGNORED
        bins = np.ceil(confidence[valid] * CONFIDENCE_BINS).astype(int) - 1
        for k, values in enumerate((np.ones(bins.size), confidence[valid], (truth == mask)[valid])):
            calibration[i, :, k] = np.bincount(bins, weights=values, minlength=CONFIDENCE_BINS)
    loss = np.array([-np.log(np.clip(c[t != IGNORED], 0.01, 1)).sum() for c, t in zip(sure, truths, strict=True)])
    png = tuple(mask_format().write(mask) for mask in masks)
    return MaskPredictions(files, np.stack(confusion), loss, np.stack(boundary), calibration, np.zeros((len(truths), 16), np.uint8), png)


def make_segmentation(
    path: Path, *, n: int = 8, size: tuple[int, int] = (64, 64), noise: float = 0.06, status: str = DONE, overrides: Sequence[str] = (), thumbnails: int = 16
) -> Run:
    """A run folder with n predicted masks of val; it has no masks over epochs (`keep_masks`)."""
    source = path.parent / f".{path.name}.yaml"
    source.write_text(RECIPE)
    made = recipe.load(source, list(overrides))
    source.unlink()
    record = RunRecord("0.1.0", status, "segmentation", ["pellucid", "train", "recipes/scenes.yaml"], "2026-11-20T10:00:00+00:00")
    run = Run.create(path, record=record, recipe=made, recipe_text=RECIPE)
    for epoch in range(1, 7):
        line = {"epoch": epoch, "step": 4 * epoch, "loss": float(np.exp(-epoch / 3)), "accuracy": 1 - 0.5 * float(np.exp(-epoch / 3))}
        run.append_metrics([{"kind": "train", **line, "lr": 1e-3}, {"kind": "val", **line, "miou": 1 - 0.8 * float(np.exp(-epoch / 4))}])
    record.epoch, record.step, record.total_steps, record.seconds = 6, 24, 24, 95.0
    if status == DONE:
        _finish(run, record, n, size, noise, thumbnails)
    run.write_record(record)
    return run


def _finish(run: Run, record: RunRecord, n: int, size: tuple[int, int], noise: float, thumbnails: int) -> None:
    drawn = [scene(i, size) for i in range(n)]
    files, truths = [f"scenes-val-{i:06d}.png" for i in range(n)], [mask for _, mask in drawn]
    found = [predicted(mask, noise * (0.5 + i / n), i) for i, mask in enumerate(truths)]
    predictions = score(truths, [mask for mask, _ in found], [sure for _, sure in found], files)
    pixels = predictions.confusion.sum(axis=(0, 2)).tolist()
    counts = np.bincount(np.arange(n) % len(CLASSES), minlength=len(CLASSES)).tolist()
    splits = {
        "train": SplitRecord("train", 3 * n, "ab" * 16, [3 * c for c in counts], [3 * p for p in pixels]),
        "val": SplitRecord("val", n, "cd" * 16, counts, pixels),
    }
    rows = [(file, 0, "ef" * 16) for file in files]
    run.write_data(DataRecord("scenes", list(CLASSES), splits, [], [], [0.5] * 3, [0.25] * 3, "model", mask_format()), {"val": rows})
    run.write_environment({"device": "cpu", "libraries": {"torch": "2.15.0"}})
    run.write_mask_predictions("val", predictions, list(CLASSES), mask_format())
    scoring = run.recipe.scoring
    assert scoring is not None
    record.measurements = overlap.measure_masks(predictions, classes=CLASSES, scoring=scoring, split="val", seed=1, note="")
    folder = run.thumbnails / "val"
    folder.mkdir(parents=True)
    for i in hardest_rows(predictions, thumbnails).tolist():
        PIL.Image.fromarray(drawn[i][0]).save(folder / f"{i:06d}.webp")
        for name, mask in (("truth", truths[i]), ("predicted", found[i][0])):
            PIL.Image.fromarray(coloured(mask, mask_format().colours)).quantize(256).save(folder / f"{i:06d}-{name}.png")


def keep_masks(
    folder: Path, *, num: int = 3, size: tuple[int, int] = (64, 96), epochs: Sequence[int] = EPOCHS, unmasked: Sequence[int] = (), noise: float | None = None
) -> MaskFindings:
    """Write masks.json, masks.npz and the pictures of `num` scenes into a folder; `unmasked` are photographs without a mask. noise: one for all epochs."""
    findings = MaskFindings("0.1.0", list(CLASSES), mask_format(), list(epochs), "last epoch")
    arrays: dict[str, NDArray[np.uint8]] = {}
    photos = []
    for i in range(num):
        image, truth = scene(i, size)
        found = [predicted(truth, NOISE[epoch] if noise is None else noise, 10 * i + epoch) for epoch in epochs]
        if i not in unmasked:
            arrays[f"truth/{i}"] = reduced_mask(truth)
        arrays[f"predicted/{i}"] = np.stack([reduced_mask(mask) for mask, _ in found])
        arrays[f"confidence/{i}"] = np.stack([np.rint(255 * reduced_mask(sure)).astype(np.uint8) for _, sure in found])
        numbers = [EpochNumbers(epoch, None, None) if i in unmasked else _numbers(epoch, truth, mask) for epoch, (mask, _) in zip(epochs, found, strict=True)]
        kinds, counts = np.unique(truth[truth != IGNORED], return_counts=True)
        classes = [] if i in unmasked else [int(kinds[k]) for k in np.argsort(-counts, kind="stable")]
        findings.pictures.append(MaskedPicture(f"scenes-val-{i:06d}.png", size, classes, numbers))
        photos.append(image)
    findings.save(folder, arrays, photos)
    return findings


def _numbers(epoch: int, truth: NDArray[np.uint8], mask: NDArray[np.uint8]) -> EpochNumbers:
    own = overlap.overlaps(overlap.pixel_confusion(truth, mask, len(CLASSES)), overlap.Convention("standard"))
    accuracy, miou = (
        Measurement(name, value, "fraction", "val", 1, 1, "of the picture") for name, value in (("pixel_accuracy", own.pixel_accuracy), ("miou", own.miou))
    )
    return EpochNumbers(epoch, accuracy, miou)
