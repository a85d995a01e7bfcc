"""Verification of a segmentation run: its masks and numbers, recomputed twice by paths that training did not take.

1. *From the stored masks*: each predicted PNG and its true mask are counted again by scikit-learn, boundaries by distance transforms on the dilated rest of
   the classes; both equal what the run holds, pixel by pixel. Numbers are scikit-learn's over those counts, to 1e-6; intervals from the definitions.
2. *From checkpoint and data*: images are decoded anew, normalised by torchvision's own transforms, brought to the mask's size by torch's own interpolation;
   the numbers agree within the tolerance, and the logits of an image are the same bits when their BLAKE2b-128 is that of the run.

Shared with training, with oracles in the tests: decoding, resizing and masks of files, the convention of a recipe, tiles of large images.
The loss and the calibration error are not in the masks: from the first path they are only those of the stored sums. Never imports the training loop.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import scipy.ndimage
import sklearn.metrics
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from pellucid.data.dataset import Dataset, Split
from pellucid.data.images import resize
from pellucid.data.loader import ordered_windows
from pellucid.errors import DataError, PellucidError, RunError
from pellucid.intervals import bootstrap
from pellucid.models.tiles import tiled
from pellucid.overlap import Convention, convention
from pellucid.palettes import IGNORED, MaskFormat
from pellucid.predictions import CONFIDENCE_BINS, MaskPredictions
from pellucid.recipe import DataSection, Recipe
from pellucid.run import DataRecord, Measurement, Run, RunRecord, rounded
from pellucid.runtime import Runtime
from pellucid.schema import ScoringSection
from pellucid.verify_numbers import EXACT, Line, number_lines

Progress = Callable[[str, int, int], None]
Forward = Callable[[Tensor], Tensor]

LISTED = 5  # files that a line names
ROWS = 256  # of logits at the mask's size that are float64 at a time
STORED, ANEW = "from the stored masks", "from checkpoint and data"


@dataclass(frozen=True)
class Recount:
    """What was counted again over the n images of a split, in the forms of run.MaskPredictions; loss: summed over the split."""

    confusion: np.ndarray
    boundary: np.ndarray
    loss: float
    calibration: np.ndarray


@dataclass(frozen=True)
class Opened:
    """A run of segmentation with its files, each read once."""

    run: Run
    recipe: Recipe
    data: DataRecord
    record: RunRecord

    @classmethod
    def of(cls, run: Run) -> Opened:
        return cls(run, run.recipe, run.data, run.record)

    @property
    def scoring(self) -> ScoringSection:
        assert self.recipe.scoring is not None, "a segmentation always says how it is scored"
        return self.recipe.scoring

    @property
    def rule(self) -> Convention:
        return convention(self.scoring, self.data.classes)

    @property
    def mask_format(self) -> MaskFormat:
        if self.data.mask_format is None:
            raise RunError(f"{self.run.path}: data.json does not say how masks are written; the file was changed")
        return self.data.mask_format

    def measurements(self, split: str) -> list[Measurement]:
        return [m for m in self.record.measurements if m.split == split]

    def predicted(self, split: str, file: str) -> np.ndarray:
        """(H, W) uint8 of the predicted mask of an image. DataError where there is none, or none of the format."""
        name = self.mask_format.file_of(file)
        path = self.run.masks_folder(split) / name
        if not path.is_file():
            raise DataError(f"{name} is missing")
        return self.mask_format.read(path.read_bytes(), name)


# ── from the stored masks ─────────────────────────────────────────────────────────────────────────────────────


def stored_mask_checks(run: Run, dataset: Dataset, progress: Progress | None) -> list[Line]:
    """The lines about masks, counts, numbers and intervals of every split that is evaluated, against the masks of `dataset`."""
    opened = Opened.of(run)
    lines: list[Line] = []
    for name in (split for split in opened.data.splits if split != "train"):
        try:
            predictions = run.mask_predictions(name)
        except RunError as error:
            lines.append((f"predictions {name}", False, f"MISMATCH {error}"))
            continue
        lines += _stored(opened, name, predictions, dataset.splits.get(name), progress)
    return lines


def _stored(opened: Opened, name: str, predictions: MaskPredictions, split: Split | None, progress: Progress | None) -> list[Line]:
    lines = [_row_line(opened, name, predictions)]
    if not lines[0][1]:
        return lines
    if split is None or split.masks is None or list(split.names) != predictions.files:
        return [*lines, (f"masks {name}", False, f"MISMATCH {name} masks: the true masks are not those of the run, so nothing can be counted again")]
    found, faults = _recounted(opened, name, split, progress)
    if found is None:
        return [*lines, _listed_line(f"masks {name}", faults, "")]
    files = [opened.mask_format.file_of(file) for file in predictions.files]
    for what, stored, recounted in (("confusion", predictions.confusion, found.confusion), ("boundary", predictions.boundary, found.boundary)):
        wrong = [f"{files[i]}: {difference(stored[i], recounted[i])}" for i in range(len(files)) if not np.array_equal(stored[i], recounted[i])]
        lines.append(_listed_line(f"{what} {name}", wrong, f"{name} {what}: counted again from {len(files):,} masks, equal"))
    lines.append(_listed_line(f"calibration {name}", _sums_that_differ(predictions, files), f"{name} calibration: its pixels are those of the confusion"))
    again = Recount(found.confusion, found.boundary, float(predictions.loss.sum()), predictions.calibration)
    wanted, rule, classes = opened.measurements(name), opened.rule, opened.data.classes
    lines += number_lines(recompute_masks(again, rule, classes), wanted, name, STORED, EXACT)
    return [*lines, _interval_line(again, rule, classes, wanted, name, opened.recipe.seed)]


def _row_line(opened: Opened, name: str, predictions: MaskPredictions) -> Line:
    """Each sample of the split has exactly one row, with a column for each class."""
    recorded, counted, C = [file for file, _, _ in opened.run.samples(name)], predictions.confusion.shape[-1], len(opened.data.classes)
    if counted != C:
        return f"rows {name}", False, f"MISMATCH {name} predictions: {counted} classes are counted, the data has {C}"
    if recorded == predictions.files:
        return f"rows {name}", True, f"ok {name} predictions: one row for each of {len(recorded):,} samples"
    wrong = [new for old, new in zip(recorded, predictions.files, strict=False) if old != new]
    detail = f"first difference at {wrong[0]}" if wrong else f"{len(predictions.files)} rows for {len(recorded)} samples"
    return f"rows {name}", False, f"MISMATCH {name} predictions: rows are not those of samples/{name}.csv ({detail})"


def _recounted(opened: Opened, name: str, split: Split, progress: Progress | None) -> tuple[Recount | None, list[str]]:
    """The counts of the predicted masks as they lie in the run, one at a time; None and what is wrong where one cannot be counted."""
    C, faults = len(opened.data.classes), []
    assert split.masks is not None
    confusion, boundary = np.zeros((len(split), C + 1, C), np.int64), np.zeros((len(split), C, 4), np.int64)
    for i, file in enumerate(split.names):
        try:
            truth, predicted = split.masks.open(i), opened.predicted(name, file)
            confusion[i] = pixel_counts(truth, predicted, C, opened.mask_format.file_of(file))
            boundary[i] = _boundary(truth, predicted, C, opened.scoring.boundary_tolerance)
        except PellucidError as error:
            faults.append(str(error))
        if progress is not None:
            progress(f"verifying masks of {name}", i + 1, len(split))
    return (None if faults else Recount(confusion, boundary, 0.0, np.zeros((0, CONFIDENCE_BINS, 3)))), faults


def pixel_counts(truth: np.ndarray, predicted: np.ndarray, num_classes: int, name: str) -> np.ndarray:
    """(C + 1, C) int64 by scikit-learn. DataError for another size, or where a predicted pixel is ignored and the true one is not."""
    if truth.shape != predicted.shape:
        raise DataError(f"{name}: expected the true mask's {_size(truth)} pixels (height x width), got {_size(predicted)}")
    labels, answers = (np.where(mask == IGNORED, num_classes, mask).ravel() for mask in (truth, predicted))
    both = sklearn.metrics.confusion_matrix(labels, answers, labels=np.arange(num_classes + 1))
    if blank := int(both[:-1, -1].sum()):
        raise DataError(f"{name}: {blank:,} pixels are predicted as ignored where the class is known")
    return np.asarray(both[:, :-1], np.int64)


def _boundary(truth: np.ndarray, predicted: np.ndarray, num_classes: int, fraction: float) -> np.ndarray:
    """(C, 4) int64 boundary counts by dilation and Euclidean distance transforms, each in the rectangle around the boundaries of a class."""
    tolerance = max(1.0, fraction * math.hypot(*truth.shape))
    known = truth != IGNORED
    counts = np.zeros((num_classes, 4), np.int64)
    for c in np.union1d(truth[known], predicted[known]).tolist():
        ours, theirs = (_edge(mask == c, known & (mask != c)) & known for mask in (predicted, truth))
        rows, columns = np.nonzero(ours | theirs)
        if not len(rows):
            continue
        box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        ours, theirs = ours[box], theirs[box]
        counts[c] = [ours.sum(), _near(ours, theirs, tolerance), theirs.sum(), _near(theirs, ours, tolerance)]
    return counts


def _edge(region: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels of a region beside the rest, up, down, left or right."""
    return np.asarray(region & scipy.ndimage.binary_dilation(rest))  # by default a cross


def _near(points: np.ndarray, others: np.ndarray, tolerance: float) -> int:
    return int((scipy.ndimage.distance_transform_edt(~others)[points] <= tolerance).sum()) if others.any() else 0


def difference(stored: np.ndarray, again: np.ndarray) -> str:
    """What of two tables of counts differs, in words."""
    cells = np.argwhere(stored != again)
    place = ", ".join(map(str, cells[0].tolist()))
    return f"{len(cells)} counts differ, first at ({place}): {stored[tuple(cells[0])]:,} stored, {again[tuple(cells[0])]:,} counted"


def _sums_that_differ(predictions: MaskPredictions, files: Sequence[str]) -> list[str]:
    """Images whose calibration bins hold other pixels, or other right ones, than their confusion."""
    valid, right = predictions.confusion[:, :-1].sum(axis=(1, 2)), np.trace(predictions.confusion[:, :-1], axis1=1, axis2=2)
    stored = predictions.calibration.sum(axis=1)  # n, 3
    return [
        f"{files[i]}: {stored[i, 0]:,.0f} pixels, {stored[i, 2]:,.0f} of them right, in the bins; {valid[i]:,} and {right[i]:,} in the confusion"
        for i in np.flatnonzero((stored[:, 0] != valid) | (stored[:, 2] != right)).tolist()
    ]


# ── numbers ───────────────────────────────────────────────────────────────────────────────────────────────────


def recompute_masks(found: Recount, rule: Convention, classes: Sequence[str]) -> dict[str, float]:
    """{name: value} of every number that these counts have, by scikit-learn, whose samples are the cells of the confusion with their pixels as weights."""
    total, C = found.confusion.sum(axis=0), len(classes)
    truth, answer, pixels = cells_of(total, rule)
    seen = set(truth.tolist()) | set(answer.tolist())
    counted = [c for c in range(C) if c not in (*rule.excluded, *rule.void_classes)]
    present, labelled = [c for c in counted if c in seen], [c for c in counted if c in truth]
    numbers: dict[str, float] = {}
    if present:
        each = sklearn.metrics.jaccard_score(truth, answer, labels=present, average=None, sample_weight=pixels, zero_division=0.0)
        numbers["miou"] = float(sklearn.metrics.jaccard_score(truth, answer, labels=present, average="macro", sample_weight=pixels, zero_division=0.0))
        numbers |= {f"iou[{classes[c]}]": float(value) for c, value in zip(present, each, strict=True)}
    if labelled:
        numbers["class_accuracy"] = float(sklearn.metrics.recall_score(truth, answer, labels=labelled, average="macro", sample_weight=pixels))
        numbers["frequency_weighted_iou"] = float(sklearn.metrics.jaccard_score(truth, answer, labels=labelled, average="weighted", sample_weight=pixels))
    if (known := truth < C).any():
        numbers["pixel_accuracy"] = float(sklearn.metrics.accuracy_score(truth[known], answer[known], sample_weight=pixels[known]))
    if scores := [score for c in counted if (score := _mean_f(found.boundary[:, c])) is not None]:
        numbers["boundary_f"] = sum(scores) / len(scores)
    if valid := int(total[:-1].sum()):
        numbers["loss"] = found.loss / valid
        numbers["calibration_error"] = sum(abs(right - sure) for _, sure, right in found.calibration.sum(axis=0).tolist()) / valid
    return numbers


def cells_of(total: np.ndarray, rule: Convention) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(class, predicted class, pixels) of the cells of a confusion that count; pixels of no class have class C."""
    C = total.shape[1]
    truth, answer = (index.ravel() for index in np.indices(total.shape))
    truth = np.where(np.isin(truth, rule.void_classes), C, truth)
    counts = (total.ravel() > 0) & ((truth < C) | (rule.void == "false_positive"))
    return truth[counts], answer[counts], total.ravel()[counts]


def _mean_f(boundary: np.ndarray) -> float | None:
    """Boundary F of a class from its counts (n, 4): mean over the images that have a boundary of it; None without."""
    scores = []
    for predicted, hit, labelled, found in boundary.tolist():
        if predicted or labelled:
            precision, recall = hit / max(predicted, 1), found / max(labelled, 1)
            scores.append(2 * precision * recall / (precision + recall) if hit and found else 0.0)
    return sum(scores) / len(scores) if scores else None


def _interval_line(found: Recount, rule: Convention, classes: Sequence[str], measurements: list[Measurement], split: str, seed: int) -> Line:
    """n, seed and intervals of the measurements (bootstrap over images anew); one line that names what differs."""
    n, wrong = len(found.confusion), []
    resampled = _resampled(found, rule, classes) if n else {}
    for m in measurements:
        if m.n != n or m.seed != seed:
            wrong.append(f"{m.key}: n {m.n}, seed {m.seed} reported; n {n}, seed {seed} recomputed")
        belongs = m.name in resampled and not np.isnan(resampled[m.name]).all()  # losses and calibration errors have none
        if belongs != (m.interval is not None):
            wrong.append(f"{m.key}: {'no interval' if belongs else 'an interval where none belongs'}")
        elif m.interval is not None:
            low, high = np.nanquantile(resampled[m.name], [0.025, 0.975]).tolist()
            if max(abs(low - m.interval[0]), abs(high - m.interval[1])) > EXACT:
                reported, again = (f"{rounded(a)} to {rounded(b)}" for a, b in (m.interval, (low, high)))
                wrong.append(f"{m.key}: interval {reported} reported, {again} recomputed")
    return _listed_line(f"intervals {split}", wrong, f"{split} numbers: n, seed and intervals recomputed")


def _resampled(found: Recount, rule: Convention, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """{name: (draws,)} of each number over the resamples of images that `intervals.bootstrap` draws, NaN where one has none: from the definitions."""
    n, C = len(found.confusion), len(classes)
    drawn: list[np.ndarray] = []

    def keep(rows: np.ndarray) -> float:
        drawn.append(np.bincount(rows, minlength=n).astype(np.float64))
        return 0.0

    bootstrap(keep, n)
    weights = np.stack(drawn)  # draws, n
    matrices = (weights @ found.confusion.reshape(n, -1).astype(np.float64)).reshape(-1, C + 1, C)
    ignored = matrices[:, -1] + matrices[:, list(rule.void_classes)].sum(axis=1)  # draws, C: what is predicted there
    matrices[:, list(rule.void_classes)] = 0
    counted = [c for c in range(C) if c not in (*rule.excluded, *rule.void_classes)]
    ious, recalls, sizes = {}, [], []
    with np.errstate(invalid="ignore"):
        for c in counted:
            hits, labelled, predicted = matrices[:, c, c], matrices[:, c].sum(axis=1), matrices[:, :-1, c].sum(axis=1)
            predicted = predicted + ignored[:, c] if rule.void == "false_positive" else predicted
            ious[f"iou[{classes[c]}]"] = hits / (labelled + predicted - hits)
            recalls.append(hits / labelled)
            sizes.append(labelled)
        right, valid = sum(matrices[:, c, c] for c in range(C)), matrices[:, :-1].sum(axis=(1, 2))
        weighted = sum(np.nan_to_num(size * iou) for size, iou in zip(sizes, ious.values(), strict=True)) / sum(sizes)
        means = {"pixel_accuracy": right / valid, "frequency_weighted_iou": weighted}
    means |= {"miou": _mean_there(list(ious.values())), "class_accuracy": _mean_there(recalls)}
    means["boundary_f"] = _mean_there([_resampled_f(found.boundary[:, c], weights) for c in counted])
    return means | ious


def _resampled_f(boundary: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(draws,) of the boundary F of a class, from its counts (n, 4) and how often each image was drawn, (draws, n)."""
    scores = [_mean_f(row[None]) for row in boundary]
    have = [i for i, score in enumerate(scores) if score is not None]
    with np.errstate(invalid="ignore"):
        return np.asarray(weights[:, have] @ np.array([scores[i] for i in have], np.float64) / weights[:, have].sum(axis=1))


def _mean_there(values: Sequence[np.ndarray]) -> np.ndarray:
    """(draws,) means over the rows that are not NaN."""
    rows = np.stack(values)
    there = ~np.isnan(rows)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nansum(rows, axis=0) / there.sum(axis=0))


# ── from checkpoint and data ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Anew:
    """One image through the model once more. truth, mask: (H, W) uint8, its mask and the predicted one."""

    truth: np.ndarray
    mask: np.ndarray
    loss: float
    calibration: np.ndarray
    digest: bytes


def anew_mask_checks(
    run: Run, dataset: Dataset, module: nn.Module, runtime: Runtime, tolerance: float, progress: Progress | None
) -> tuple[list[Line], list[float | None]]:
    """Lines about the numbers of the run's model on images decoded now, and of each split the share of images whose logits have other bits than the run's.

    0.0 is bit-equal; None where the run has nothing to compare with. Splits whose images are not those of the run are left out: the data check names them.
    """
    opened = Opened.of(run)
    lines: list[Line] = []
    shares: list[float | None] = []
    for name in run.prediction_splits:
        split = dataset.splits.get(name)
        if split is None or split.masks is None or list(split.names) != [file for file, _, _ in run.samples(name)]:
            continue
        found, digests, moved = _all_anew(opened, module.eval(), split, runtime, progress)
        numbers = recompute_masks(found, opened.rule, opened.data.classes)
        lines += number_lines(numbers, opened.measurements(name), name, ANEW, tolerance)
        shares.append(_share_of_other_bits(run, name, digests))
        if shares[-1] is not None:
            said = "the same bits" if not shares[-1] else f"other bits for {shares[-1]:.1%} of the images"
            pixels = f"{moved:,} of {found.confusion.sum():,} pixels are predicted otherwise"
            lines.append((f"logits {name}", True, f"ok {name} logits {ANEW}: {said}, {pixels}"))
    return lines, shares


def _all_anew(opened: Opened, module: nn.Module, split: Split, runtime: Runtime, progress: Progress | None) -> tuple[Recount, list[bytes], int]:
    """What the predictions of a split count, the digest of each image's logits, and how many pixels the run's own masks have otherwise."""
    C, n = len(opened.data.classes), len(split)
    confusion, boundary, calibration = np.zeros((n, C + 1, C), np.int64), np.zeros((n, C, 4), np.int64), np.zeros((n, CONFIDENCE_BINS, 3))
    loss, digests, moved = 0.0, [], 0
    for i, one in enumerate(_anew(opened, module, split, runtime, progress)):
        confusion[i] = pixel_counts(one.truth, one.mask, C, split.names[i])
        boundary[i] = _boundary(one.truth, one.mask, C, opened.scoring.boundary_tolerance)
        calibration[i], loss = one.calibration, loss + one.loss
        digests.append(one.digest)
        moved += _moved(opened, split.name, split.names[i], one.mask)
    return Recount(confusion, boundary, loss, calibration), digests, moved


def _moved(opened: Opened, split: str, file: str, mask: np.ndarray) -> int:
    """Pixels of a mask that the run's own has otherwise; all of them where it has none to compare with, which another line says."""
    try:
        stored = opened.predicted(split, file)
    except PellucidError:
        return mask.size
    return int((stored != mask).sum()) if stored.shape == mask.shape else mask.size


def _share_of_other_bits(run: Run, name: str, digests: Sequence[bytes]) -> float | None:
    try:
        stored = run.mask_predictions(name).digests
    except RunError:
        return None
    if len(stored) != len(digests):
        return None
    return float(np.mean([saved.tobytes() != digest for saved, digest in zip(stored, digests, strict=True)])) if digests else 0.0


@torch.inference_mode()
def _anew(opened: Opened, module: nn.Module, split: Split, runtime: Runtime, progress: Progress | None) -> Iterator[_Anew]:
    """The prediction for each image in order: decoded now, in the batches of the run's evaluation, normalised by torchvision."""
    d, forward = opened.recipe.data, forward_of(module, runtime)
    assert split.masks is not None
    for window in ordered_windows(len(split), opened.record.evaluation_batch_size):
        rows = window.rows.tolist()
        images = [stored_form(opened, split.open(i)) for i in rows]
        whole = [k for k, image in enumerate(images) if tuple(image.shape[1:]) == d.size]
        together = dict(zip(whole, forward(torch.stack([images[k] for k in whole])), strict=True)) if whole else {}
        for k, i in enumerate(rows):
            digest = hashlib.blake2b(digest_size=16)

            def seen(logits: Tensor, digest: hashlib.blake2b = digest) -> None:
                digest.update(logits.contiguous().cpu().numpy().tobytes())

            if k in together:
                logits = together[k]
                seen(logits)
            else:
                logits = in_tiles(opened, forward, images[k].to(runtime.device), seen)
            truth = split.masks.open(i)
            yield _read(at_size(logits.cpu(), truth.shape, d), truth, digest.digest())
            if progress is not None:
                progress(f"verifying {split.name}", i + 1, len(split))


def forward_of(module: nn.Module, runtime: Runtime) -> Forward:
    """Normalised images (b, 3, h, w) -> float32 logits (b, C, h, w) on the device."""

    def forward(images: Tensor) -> Tensor:
        with runtime.autocast():
            logits: Tensor = module(images.to(runtime.device).contiguous(memory_format=runtime.memory_format))
        return logits.float()

    return forward


def stored_form(opened: Opened, picture: PIL.Image.Image) -> Tensor:
    """(3, h, w) float32 of a picture in the form of the recipe, normalised by torchvision."""
    d, data = opened.recipe.data, opened.data
    prepare = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(data.mean, data.std)])
    return torch.as_tensor(prepare(torch.from_numpy(np.array(resize(picture, d.size, d.fit, d.resize_size, d.interpolation))).permute(2, 0, 1)))


def in_tiles(opened: Opened, forward: Forward, image: Tensor, seen: Callable[[Tensor], None] | None = None) -> Tensor:
    """(C, h, w) float32 logits of an image (3, h, w) of another size than data.image_size; seen: gets the logits of each tile."""
    strips = tiled(forward, image, tile=opened.recipe.data.size, overlap=opened.scoring.tile_overlap, batch_size=1, seen=seen)
    return torch.cat([strip for _, strip in strips], dim=1)


def at_size(logits: Tensor, size: tuple[int, ...], d: DataSection) -> Tensor:
    """(C, H, W) float32 at the size (H, W) of a mask, by torch's own interpolation, bars of `fit: pad` cut off."""
    if d.fit == "pad":
        # Where the picture lies in its bars is seen on a white one of its size.
        there = np.argwhere(resize(PIL.Image.new("RGB", (size[1], size[0]), "white"), d.size, d.fit, d.resize_size, d.interpolation)[..., 0])
        (top, left), (bottom, right) = there.min(axis=0), there.max(axis=0) + 1
        logits = logits[:, top:bottom, left:right]
    if logits.shape[1:] == size:
        return logits
    return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]


def _read(logits: Tensor, truth: np.ndarray, digest: bytes) -> _Anew:
    """Classes, loss and calibration of logits (C, H, W) against a mask (H, W), in float64 strip by strip."""
    mask, loss, bins = np.empty(truth.shape, np.uint8), 0.0, np.zeros((CONFIDENCE_BINS, 3))
    edges = [k / CONFIDENCE_BINS for k in range(1, CONFIDENCE_BINS)]
    for top in range(0, len(truth), ROWS):
        rows = slice(top, top + ROWS)
        log_p, labels = torch.log_softmax(logits[:, rows].double(), dim=0).numpy(), truth[rows]
        mask[rows] = logits[:, rows].numpy().argmax(axis=0)
        known = labels != IGNORED
        loss -= float(np.take_along_axis(log_p, np.where(known, labels, 0)[None].astype(np.int64), axis=0)[0][known].sum())
        confidence, right = np.round(np.exp(log_p.max(axis=0))[known], 12), (mask[rows] == labels)[known]
        places = np.digitize(confidence, edges, right=True)
        for b in np.unique(places):
            inside = places == b
            bins[b] += [inside.sum(), confidence[inside].sum(), right[inside].sum()]
    return _Anew(truth, mask, loss, bins, digest)


# ── words ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _listed_line(what: str, wrong: Sequence[str], right: str) -> Line:
    more = f"; and {len(wrong) - LISTED} more" if len(wrong) > LISTED else ""
    kind, _, split = what.partition(" ")
    return (what, False, f"MISMATCH {split} {kind}: {'; '.join(wrong[:LISTED])}{more}") if wrong else (what, True, f"ok {right}")


def _size(mask: np.ndarray) -> str:
    return "x".join(map(str, mask.shape))
