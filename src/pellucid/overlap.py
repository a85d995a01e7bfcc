"""How well predicted masks lie over true ones: IoU from one confusion matrix over a set, boundary F-score, calibration. NumPy only.

    IoU of class c     TP / (TP + FP + FN), pixels of the whole set (Everingham et al. 2010, "The PASCAL Visual Object Classes challenge")
    mIoU               mean over the classes that count; one that is in neither masks nor predictions has none (0/0) and is left out
    boundary F         per image and class the harmonic mean of boundary precision and recall (Csurka et al. 2013, "What is a good evaluation measure
                       for semantic segmentation?")

Never a mean over batches or images of IoUs: that is another number. A class that is in no mask but predicted has an IoU of 0, which counts. Which classes
count, and what a prediction on an ignored pixel does, is a `Convention`: published scripts differ. A number that is 0/0 is NaN, never 0 or 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import DataError, UsageError, did_you_mean
from pellucid.intervals import LEVEL, Interval, bootstrap
from pellucid.palettes import IGNORED
from pellucid.predictions import MaskPredictions
from pellucid.run import Measurement
from pellucid.schema import ScoringSection

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
NOWHERE, FALSE_POSITIVE = "ignored", "false_positive"  # what a prediction on an ignored pixel is
LISTED = 20  # classes that a sentence names


# ── conventions ───────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Convention:
    """Which classes count and what ignored pixels do.

    excluded: classes left out of means over classes, though their pixels count as errors of others. void_classes: classes whose pixels in the masks are as
    ignored, and that are left out. void: "ignored", what is predicted on ignored pixels counts nowhere; "false_positive", as false positive of its class.
    """

    name: str
    excluded: tuple[int, ...] = ()
    void_classes: tuple[int, ...] = ()
    void: str = NOWHERE

    def counted(self, num_classes: int) -> NDArray[np.bool_]:
        """(C,) bool: the classes of means over classes."""
        counted = np.ones(num_classes, bool)
        counted[[*self.excluded, *self.void_classes]] = False
        return counted


@dataclass(frozen=True)
class Preset:
    """A convention in names of classes, whatever their case. Those of `excluded` must be there, those of `void_classes` may."""

    excluded: tuple[str, ...] = ()
    void_classes: tuple[str, ...] = ()
    void: str = NOWHERE


PRESETS = {
    "standard": Preset(),
    "foreground": Preset(excluded=("background",)),
    "deepglobe": Preset(void_classes=("unknown",)),
    "course_script": Preset(void_classes=("unknown",), void=FALSE_POSITIVE),
}


def convention(scoring: ScoringSection, classes: Sequence[str]) -> Convention:
    """The convention of a recipe for these classes: its preset, with what `excluded` and `void` say instead.

    UsageError for a class that is not there, or when no class is left.
    """
    preset, folded = PRESETS[scoring.convention], [name.casefold() for name in classes]
    if scoring.excluded is None:
        asked, names, known = f"scoring.convention {scoring.convention}", preset.excluded, folded
        remedy = " Set scoring.convention: standard, or name in scoring.excluded what is left out."
    else:
        asked, names, known, remedy = "scoring.excluded", tuple(scoring.excluded), list(classes), ""
    if missing := [name for name in names if name not in known]:
        raise UsageError(f"{asked}: there is no class {missing[0]!r}; classes are {_listed(classes)}.{did_you_mean(missing[0], classes)}{remedy}")
    excluded = {known.index(name) for name in names}
    void_classes = [folded.index(name) for name in preset.void_classes if name in folded]
    found = Convention(scoring.convention, tuple(sorted(excluded)), tuple(void_classes), scoring.void or preset.void)
    if not found.counted(len(classes)).any():
        raise UsageError(f"scoring: all {len(classes)} classes are left out of the mean; leave at least one in")
    return found


def described(convention: Convention, classes: Sequence[str]) -> str:
    """The convention as a sentence for readers."""
    parts = []
    if convention.excluded:
        parts.append(f"{_listed([classes[c] for c in convention.excluded])} left out of the mean, though its pixels count as errors of others")
    if convention.void_classes:
        parts.append(f"pixels of {_listed([classes[c] for c in convention.void_classes])} as ignored")
    counts = "counts nowhere" if convention.void == NOWHERE else "is a false positive of its class"
    return f"convention {convention.name}: {'; '.join([*parts, f'what is predicted on ignored pixels {counts}'])}"


# ── overlap ───────────────────────────────────────────────────────────────────────────────────────────────────


def pixel_confusion(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> Counts:
    """(C + 1, C) int64 pixels of masks (H, W) uint8; row: class of the label, the last row ignored pixels; column: predicted class.

    A pixel that is ignored in both is in no cell. DataError for masks of two sizes, for a prediction that names no class on a pixel whose class is known,
    and for classes that are not there.
    """
    if labels.shape != predicted.shape:
        raise DataError(f"expected a prediction of the mask's size {_size(labels)} (height x width), got {_size(predicted)}")
    known, blank = labels != IGNORED, predicted == IGNORED
    if undecided := int((blank & known).sum()):
        raise DataError(f"expected a class at each pixel of a prediction, {undecided:,} of {predicted.size:,} are marked as ignored")
    highest = max(int(labels.max(initial=0, where=known)), int(predicted.max(initial=0, where=~blank)))
    if highest >= num_classes:
        raise DataError(f"expected classes 0 to {num_classes - 1}, got {highest}")
    row, column = np.where(known, labels, num_classes).astype(np.intp)[~blank], predicted[~blank]  # of type intp, as bincount takes it
    cells = np.bincount(row * num_classes + column, minlength=(num_classes + 1) * num_classes)
    return cells.reshape(num_classes + 1, num_classes)


@dataclass(frozen=True)
class Overlaps:
    """What one confusion matrix says. All numbers are fractions in [0, 1], NaN where they are 0/0.

    iou: (C,) float64, NaN for a class that does not count or is absent. miou: mean of the others. pixel_accuracy: right among all valid pixels, those of
    excluded classes too. class_accuracy: mean recall of the counted classes with labelled pixels. frequency_weighted_iou: IoUs of the counted classes,
    weighted by their labelled pixels (Long et al. 2015, section 5). absent: classes that would count but are in neither masks nor predictions.
    """

    iou: Floats
    miou: float
    pixel_accuracy: float
    class_accuracy: float
    frequency_weighted_iou: float
    absent: tuple[int, ...]
    num_counted: int


def overlaps(confusion: Counts, convention: Convention) -> Overlaps:
    """The numbers of ONE confusion matrix (C + 1, C) over a whole set."""
    terms = _terms(confusion, convention).astype(np.float64)
    counted = convention.counted(confusion.shape[-1])
    iou = _iou(terms, counted)
    absent = counted & np.isnan(iou)
    numbers = {name: float(values) for name, values in _means(terms, counted).items()}
    return Overlaps(iou, **numbers, absent=tuple(np.flatnonzero(absent).tolist()), num_counted=int((counted & ~absent).sum()))


def _terms(confusion: Counts, convention: Convention) -> Counts:
    """(..., 3, C): pixels of each class that are right, labelled and predicted, as the convention counts them. Their sums are those of the summed matrix."""
    valid = confusion[..., :-1, :].copy()
    valid[..., list(convention.void_classes), :] = 0
    labelled, right = valid.sum(axis=-1), np.diagonal(valid, axis1=-2, axis2=-1)
    predicted = (valid if convention.void == NOWHERE else confusion).sum(axis=-2)
    return np.stack([right, labelled, predicted], axis=-2)


def _iou(terms: Floats, counted: NDArray[np.bool_]) -> Floats:
    """(..., C) IoU, NaN for classes that do not count or are 0/0."""
    right, labelled, predicted = np.moveaxis(terms, -2, 0)
    return np.where(counted, _ratio(right, labelled + predicted - right), np.nan)


def _means(terms: Floats, counted: NDArray[np.bool_]) -> dict[str, Floats]:
    """{name: (...)} of the means over classes and pixels of terms (..., 3, C)."""
    right, labelled, _ = np.moveaxis(terms, -2, 0)
    iou, weight = _iou(terms, counted), np.where(counted, labelled, 0.0)
    return {
        "miou": _mean(iou),
        "pixel_accuracy": _ratio(right.sum(axis=-1), labelled.sum(axis=-1)),
        "class_accuracy": _mean(np.where(counted, _ratio(right, labelled), np.nan)),
        "frequency_weighted_iou": _ratio(np.where(weight > 0, weight * iou, 0.0).sum(axis=-1), weight.sum(axis=-1)),
    }


# ── boundaries ────────────────────────────────────────────────────────────────────────────────────────────────


def boundary_tolerance(fraction: float, height: int, width: int) -> float:
    """Pixels within which two boundaries agree: the fraction of the diagonal, not rounded, at least 1 pixel so that small masks have a tolerance at all."""
    return max(1.0, fraction * math.hypot(height, width))


def boundary_map(mask: np.ndarray) -> np.ndarray:
    """(H, W) uint8: the class where a pixel of `mask` is a boundary pixel of its class, else IGNORED.

    A boundary pixel has one of its four neighbours in another class. Ignored pixels are no boundary and make none, nor does the edge of the image.
    """
    differs = np.zeros(mask.shape, bool)
    for axis in (0, 1):
        first, second = [np.s_[:-1], np.s_[1:]] if axis == 0 else [np.s_[:, :-1], np.s_[:, 1:]]
        other = (mask[first] != mask[second]) & (mask[first] != IGNORED) & (mask[second] != IGNORED)
        differs[first] |= other
        differs[second] |= other
    return np.where(differs, mask, IGNORED).astype(np.uint8)


def boundary_counts(labels: np.ndarray, predicted: np.ndarray, num_classes: int, tolerance: float) -> Counts:
    """(C, 4) int64 of masks (H, W) uint8: boundary pixels predicted, those of them within `tolerance` pixels (Euclidean, <=) of a boundary pixel of the
    label's same class, boundary pixels of the label, those of them as near to the predicted.

    What is predicted on ignored pixels is ignored first: it is no boundary there and makes none beside it.
    """
    of_label, of_prediction = boundary_map(labels), boundary_map(np.where(labels == IGNORED, IGNORED, predicted).astype(np.uint8))
    found = []
    for own, other in ((of_prediction, of_label), (of_label, of_prediction)):
        rows, columns = np.nonzero(own != IGNORED)
        classes = own[rows, columns]
        near = _near(rows, columns, classes, other, tolerance)
        found += [np.bincount(classes, minlength=num_classes), np.bincount(classes[near], minlength=num_classes)]
    return np.stack(found, axis=1)


def _near(rows: np.ndarray, columns: np.ndarray, classes: np.ndarray, other: np.ndarray, tolerance: float) -> NDArray[np.bool_]:
    """(K,) bool: whether the boundary map `other` has the class of each of K pixels within the tolerance.

    By sorted positions: the pixels of a class in a row of `other` are a run of ascending numbers, so that "is one in columns x - w to x + w" is one search.
    Its time grows with boundary pixels and tolerance, not with area times classes as distance transforms do.
    """
    height, width = other.shape
    squared = math.floor(tolerance * tolerance)  # squared distances of pixels are whole
    reach = math.isqrt(squared)
    stride = width + 2 * reach + 1  # no search runs into the next row
    at_rows, at_columns = np.nonzero(other != IGNORED)
    places = np.sort((other[at_rows, at_columns].astype(np.int64) * (height + 2 * reach) + at_rows + reach) * stride + at_columns + reach)
    near = np.zeros(len(rows), bool)
    if not len(places):
        return near
    own = (classes.astype(np.int64) * (height + 2 * reach) + rows + reach) * stride + columns + reach
    for down in sorted(range(-reach, reach + 1), key=abs):
        left = np.flatnonzero(~near)
        half = math.isqrt(squared - down * down)
        low = own[left] + down * stride - half
        found = np.searchsorted(places, low)
        near[left] = places[np.minimum(found, len(places) - 1)] - low <= 2 * half
        near[left[found == len(places)]] = False
    return near


def boundary_scores(boundary: Counts) -> Floats:
    """(C,) float64 boundary F-score of each class from counts (n, C, 4): the mean of its F over the images in which masks or predictions have a boundary
    of it, NaN where there is none (Csurka et al. 2013)."""
    return _mean(_boundary_f(boundary), axis=0)


def _boundary_f(boundary: Counts) -> Floats:
    """(n, C) F of each image and class, NaN where the class has no boundary in either mask."""
    predicted, near_label, labelled, near_prediction = np.moveaxis(boundary.astype(np.float64), -1, 0)
    precision, recall = _ratio(near_label, predicted, 0.0), _ratio(near_prediction, labelled, 0.0)  # one of them 0/0: found nothing
    return np.where(predicted + labelled > 0, _ratio(2 * precision * recall, precision + recall, 0.0), np.nan)


def calibration_error(calibration: np.ndarray) -> float:
    """Expected calibration error of the predicted class over pixels, from bins (n, bins, 3) of pixels, sum of confidence and pixels right: the bins'
    |accuracy - confidence|, weighted by their pixels (Guo et al. 2017, eq. 3). NaN without pixels."""
    pixels, confidence, right = calibration.sum(axis=0).T
    return float(_ratio(np.abs(right - confidence).sum(), pixels.sum()))


# ── measurements ──────────────────────────────────────────────────────────────────────────────────────────────


def measure_masks(
    predictions: MaskPredictions, *, classes: Sequence[str], scoring: ScoringSection, split: str, seed: int, note: str, how: str = ""
) -> list[Measurement]:
    """All reported numbers of a split, mIoU first. A number that is 0/0 is left out: there is nothing to report.

    note: whose predictions they are. how: how these came to be, as in tiles of which size; both stand behind how each number was computed.

    Intervals are percentiles over resamples of images, the same ones for every number; a resample without a class is left out of the interval of its IoU.
    """
    rule, n = convention(scoring, classes), len(predictions.files)
    if not n:
        return []
    total = predictions.confusion.sum(axis=0)
    whole = overlaps(total, rule)
    values = {name: getattr(whole, name) for name in ("miou", "pixel_accuracy", "class_accuracy", "frequency_weighted_iou")}
    values["boundary_f"] = float(_mean(np.where(rule.counted(len(classes)), boundary_scores(predictions.boundary), np.nan)))
    pixels = int(total[:-1].sum())
    alone = {"loss": float(predictions.loss.sum() / pixels), "calibration_error": calibration_error(predictions.calibration)} if pixels else {}
    per_class = {f"iou[{name}]": float(iou) for name, iou in zip(classes, whole.iou, strict=True)}
    hows, resamples, interval_how = _hows(total, whole, rule, scoring, classes, n), *_resampled(predictions, rule, classes)
    found = []
    for name, value in (values | alone | per_class).items():
        if math.isnan(value) and name != "loss":  # a loss that is NaN is no 0/0
            continue
        interval = _interval(resamples[name], interval_how) if name in resamples else None
        said = "; ".join(part for part in (hows[name], note, how) if part)
        unit = "nats" if name == "loss" else "fraction"
        found.append(Measurement(name, value, unit, split, n, seed, said, interval.pair if interval else None, interval.how if interval else ""))
    return found


def _resampled(predictions: MaskPredictions, rule: Convention, classes: Sequence[str]) -> tuple[dict[str, Floats], str]:
    """{name: (draws,)} of every number with an interval over bootstrap resamples of images, and what they are.

    Each number is a function of sums over images, so a resample costs one product (n) @ (n, 5 C): 0.1 s for 250 images and 11 classes.
    """
    n, C = len(predictions.files), len(classes)
    counted, f = rule.counted(C), _boundary_f(predictions.boundary)
    terms = _terms(predictions.confusion, rule).reshape(n, 3 * C)
    table = np.concatenate([terms, np.nan_to_num(f), ~np.isnan(f)], axis=1).astype(np.float64)
    sums: list[Floats] = []

    def keep(rows: Counts) -> float:
        sums.append(np.bincount(rows, minlength=n).astype(np.float64) @ table)
        return 0.0

    how = bootstrap(keep, n, of="images").how  # its draws, for all numbers at once
    drawn = np.stack(sums)
    summed, f_sum, f_images = drawn[:, : 3 * C].reshape(-1, 3, C), drawn[:, 3 * C : 4 * C], drawn[:, 4 * C :]
    found = _means(summed, counted) | {"boundary_f": _mean(np.where(counted, _ratio(f_sum, f_images), np.nan))}
    return found | {f"iou[{name}]": iou for name, iou in zip(classes, _iou(summed, counted).T, strict=True)}, how


def _interval(values: Floats, how: str) -> Interval:
    """The percentile interval of a number's values over resamples; those that are 0/0 are left out, as `intervals.bootstrap` does, which `how` says."""
    there = values[~np.isnan(values)]
    low, high = np.quantile(there, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    used = f"({len(there):,} of {len(values):,} resamples" if len(there) < len(values) else f"({len(values):,} resamples"
    return Interval(float(low), float(high), how.replace(f"({len(values):,} resamples", used))


def _hows(total: Counts, whole: Overlaps, rule: Convention, scoring: ScoringSection, classes: Sequence[str], n: int) -> dict[str, str]:
    """{name: how it was computed} of each number."""
    valid = total[:-1].sum()
    said = described(rule, classes)
    source = f"one confusion matrix over {n:,} images and {valid:,} pixels ({total[-1].sum():,} ignored), scored at each mask's own size"
    left = [f"left out, absent from labels and predictions: {_listed([classes[c] for c in whole.absent])}"] if whole.absent else []
    labelled = _terms(total, rule)[1]
    only_predicted = [classes[c] for c in np.flatnonzero(~np.isnan(whole.iou) & (labelled == 0)).tolist()]
    zero = [f"in no mask but predicted, which is an IoU of 0 and counts: {_listed(only_predicted)}"] if only_predicted else []
    over = f"mean over {whole.num_counted} classes"
    fraction = f"{scoring.boundary_tolerance:g} of the mask's diagonal, at least 1 pixel"
    return {
        "miou": "; ".join([f"{over} of TP / (TP + FP + FN) from {source}", said, *left, *zero]),
        "pixel_accuracy": f"share of {valid - total[list(rule.void_classes)].sum():,} valid pixels of all classes whose prediction is right; {said}",
        "class_accuracy": f"mean over counted classes with labelled pixels of the share of their pixels that were found, from {source}; {said}",
        "frequency_weighted_iou": "; ".join([f"IoU of the counted classes weighted by their labelled pixels, from {source}", said, *left]),
        "boundary_f": f"boundaries within {fraction}: F-score, mean over images with a boundary of the class, then over classes (Csurka et al. 2013); {said}",
        "loss": f"mean cross-entropy over {valid:,} valid pixels, without class weights or smoothing, at each mask's own size",
        "calibration_error": f"expected calibration error of the predicted class over {valid:,} valid pixels, equal bins (Guo et al. 2017)",
        **{f"iou[{name}]": f"TP / (TP + FP + FN) of the class from {source}; {said}" for name in classes},
        **{f"iou[{name}]": f"0, as the class is in no mask but predicted, from {source}; {said}" for name in only_predicted},
    }


def _ratio(above: np.ndarray | float, below: np.ndarray | float, empty: float = math.nan) -> Floats:
    """above / below, `empty` where below is 0."""
    below = np.asarray(below, np.float64)
    return np.where(below > 0, np.asarray(above, np.float64) / np.where(below > 0, below, 1.0), empty)


def _mean(values: Floats, axis: int = -1) -> Floats:
    """Mean along an axis of what is not NaN; NaN where nothing is."""
    there = ~np.isnan(values)
    return _ratio(np.where(there, values, 0.0).sum(axis=axis), there.sum(axis=axis))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def _size(mask: np.ndarray) -> str:
    return "x".join(map(str, mask.shape))
