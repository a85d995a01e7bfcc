"""What the plain files of a run say, as arrays: curves of metrics.jsonl, confusion and calibration of predictions, neighbours of features. Needs no torch.

Report, comparison and figures all read these, so that a curve or a count is the same wherever it is shown.
A number that is 0/0 (the precision of a class never predicted, the recall of a class without samples) is NaN, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pellucid.errors import UsageError
from pellucid.representation import COLLAPSED_SPREAD, least_rank, unit_rows
from pellucid.run import Measurement

MAX_POINTS = 1000  # of a curve: more than a screen has pixels to show
NUM_BINS = 15  # of the reliability diagram, as in the measured calibration error
LOSSES = {  # of a pre-training: what an image adds to it, and its unit
    "byol": ("loss (2 - 2 cos, both ways)", "distance"),
    "simclr": ("loss (nats)", "nats"),
    "simsiam": ("loss (-cos, mean of both ways)", "negative cosine"),
}
BASELINES = {"untrained": "same backbone untrained", "pixels": "raw pixels"}  # of the accuracies of features: name of the measurement -> in words
NEIGHBOURS, NEIGHBOURED = 5, 6  # the nearest images that are shown of an image, and of how many images
_BLOCK = 1 << 22  # cosines at once: 32 MiB
_DECIMALS = 12  # of a cosine: copies of an image are equally near, wherever they stand in a matrix product

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy in bins of equal width over [0, 1]; means of an empty bin are NaN.

    `error` is the expected calibration error: the bins' |accuracy - confidence|, weighted by their samples (Guo et al. 2017, eq. 3).
    """

    edges: list[float]
    counts: list[int]
    confidences: list[float]
    accuracies: list[float]
    error: Measurement


@dataclass(frozen=True)
class Curve:
    """One line of a chart. `style` counts through colours and dash patterns.

    Points whose y is None, NaN or infinite are gaps.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    style: int = 0

    @property
    def pieces(self) -> list[list[tuple[float, float]]]:
        """The (x, y) points between gaps."""
        found: list[list[tuple[float, float]]] = [[]]
        for x, y in zip(self.x, self.y, strict=True):
            if y is not None and math.isfinite(y):
                found[-1].append((x, y))
            elif found[-1]:
                found.append([])
        return [piece for piece in found if piece]

    @property
    def points(self) -> list[tuple[float, float]]:
        return [point for piece in self.pieces for point in piece]


def curve(lines: Iterable[Mapping[str, Any]], *, kind: str, value: str, against: str, name: str, style: int = 0) -> Curve:
    """The values of one kind of line; empty where there are none. Every k-th point of a curve longer than MAX_POINTS, and its last."""
    points = [(line[against], line.get(value)) for line in lines if line.get("kind") == kind]
    if len(points) > MAX_POINTS:
        every = -(-len(points) // MAX_POINTS)
        points = [*points[:-1:every], points[-1]]
    return Curve(name, [x for x, _ in points], [y for _, y in points], style)


def by_epoch(lines: Sequence[Mapping[str, Any]], value: str) -> list[Curve]:
    """`loss` or `accuracy` of train and val, those that have a point."""
    curves = [curve(lines, kind=kind, value=value, against="epoch", name=kind, style=i) for i, kind in enumerate(("train", "val"))]
    return [c for c in curves if c.points]


def learning_rate(lines: Sequence[Mapping[str, Any]], *, name: str = "learning rate", style: int = 0) -> Curve:
    """The rate by step; from the epochs' own lines where no finer ones were kept."""
    fine = curve(lines, kind="lr", value="lr", against="step", name=name, style=style)
    return fine if fine.points else curve(lines, kind="train", value="lr", against="step", name=name, style=style)


def confusion_counts(labels: Counts, predicted: Counts, num_classes: int) -> Counts:
    """(C, C) int64: row = label, column = prediction."""
    return np.bincount(labels * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_scores(confusion: Counts) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(precision, recall, F1) of each class, (C,) float64 in [0, 1], NaN where the definition is 0/0."""
    right = np.diagonal(confusion).astype(np.float64)
    of_label, of_prediction = confusion.sum(axis=1), confusion.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return right / of_prediction, right / of_label, 2 * right / (of_label + of_prediction)


def most_confused(confusion: Counts, most: int) -> list[tuple[int, int, int]]:
    """(label, prediction, count) of the largest counts off the diagonal, largest first; equal counts in class order."""
    mistaken = confusion.copy()
    np.fill_diagonal(mistaken, 0)
    order = np.argsort(-mistaken, axis=None, kind="stable")[:most]
    found = [(*divmod(int(flat), len(confusion)), int(mistaken.flat[flat])) for flat in order]
    return [(i, j, count) for i, j, count in found if count]


def calibrate(confidence: NDArray[np.float64], right: NDArray[np.bool_], *, split: str, seed: int) -> Calibration:
    """Bins [low, high) of the confidences, the last one closed."""
    edges = np.linspace(0.0, 1.0, NUM_BINS + 1)
    places = np.minimum(np.searchsorted(edges, confidence, side="right") - 1, NUM_BINS - 1)
    counts = np.bincount(places, minlength=NUM_BINS)
    with np.errstate(invalid="ignore"):
        confidences = np.bincount(places, weights=confidence, minlength=NUM_BINS) / counts
        accuracies = np.bincount(places, weights=right, minlength=NUM_BINS) / counts
    error = float(np.nansum(np.abs(accuracies - confidences) * counts) / len(confidence))
    how = f"expected calibration error of the top class, {NUM_BINS} bins of equal width, from the saved predictions"
    measured = Measurement("calibration_error", error, "fraction", split, len(confidence), seed, how)
    return Calibration(edges.tolist(), counts.tolist(), confidences.tolist(), accuracies.tolist(), measured)


# ── pre-training ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Chart:
    """Curves that belong into one picture. name: of a file; note: how to read it; unit: of y.

    levels: horizontal lines that the curves are seen against. shown: (low, high) of y that the picture shows at least. collapsed: y at and below which
    projections count as collapsed.
    """

    name: str
    title: str
    curves: list[Curve]
    y_label: str
    unit: str
    note: str
    levels: list[Curve]
    shown: tuple[float, float] | None = None
    collapsed: float | None = None


def pretraining_charts(lines: Sequence[Mapping[str, Any]], measurements: Mapping[str, Measurement], *, method: str, num_classes: int) -> list[Chart]:
    """What the epochs of a pre-training say, one chart a question; those without a point are left out.

    measurements: those of the run by `split/name`. method: its name in the recipe.
    """

    def read(kind: str, value: str, name: str, style: int = 0) -> list[Curve]:
        return [curve(lines, kind=kind, value=value, against="epoch", name=name, style=style)]

    epochs = [int(line["epoch"]) for line in lines if line.get("kind") in ("train", "val", "watch")]
    span = (min(epochs), max(epochs)) if epochs else (0, 0)
    seen = next((line for line in lines if line.get("kind") == "watch"), None)
    floor = least_rank(seen) if seen is not None else None
    ranked = f", of {seen['num_dims']:,}. Shaded: collapse, below {floor:.1f}." if seen is not None else "."
    accuracies = {words: measurements.get(f"val/knn_accuracy[{name}]") for name, words in BASELINES.items()}
    levels = [Curve(words, span, (m.value, m.value), i) for i, (words, m) in enumerate(accuracies.items(), 1) if m is not None]
    levels.append(Curve("chance", span, (1 / max(1, num_classes),) * 2, 3))
    y_label, unit = LOSSES[method]
    charts = [
        Chart(
            "loss", "Training loss", read("train", "loss", "train"), y_label, unit,
            "How well two views of an image find each other; not what the features are worth.", [],
        ),
        Chart(
            "knn_accuracy", "k-NN accuracy on val", read("val", "knn_accuracy", "features of the backbone"), "k-NN accuracy", "fraction",
            "What the features are worth, after each evaluation; epoch 0 is before the first step.", levels,
        ),
        Chart(
            "spread", "Spread of the projections", read("watch", "spread", "spread"), "spread", "fraction",
            f"1 where the images lie evenly over the sphere, 0 where all are one. Shaded: collapse, below {COLLAPSED_SPREAD:g}.",
            [], (0.0, 1.0), COLLAPSED_SPREAD,
        ),
        Chart(
            "rank", "Effective rank of the projections", read("watch", "rank", "rank"), "dimensions", "dimensions",
            f"How many directions carry weight{ranked}", [], (0.0, 1.0), floor,
        ),
        Chart(
            "alignment", "Alignment", read("val", "alignment", "alignment"), "mean squared distance", "distance",
            "How far two views of an image lie apart, 0 to 4: lower is closer, and 0 is also what a collapse gives.", [],
        ),
        Chart(
            "uniformity", "Uniformity", read("val", "uniformity", "uniformity"), "log mean potential (nats)", "nats",
            "How evenly the images fill the sphere, at most 0: lower is more even.", [],
        ),
    ]  # fmt: skip
    return [chart for chart in charts if any(c.points for c in chart.curves)]


def neighboured_rows(labels: Counts, most: int = NEIGHBOURED) -> Counts:
    """At most `most` rows, ascending int64, each class with its share: the images whose neighbours are shown, chosen before any result is known."""
    n, count = len(labels), min(most, len(labels))
    order = np.argsort(labels, kind="stable")
    return np.sort(order[(2 * np.arange(count, dtype=np.int64) + 1) * n // (2 * max(count, 1))])


def nearest(features: NDArray[Any], bank: NDArray[Any], most: int = NEIGHBOURS) -> tuple[Counts, NDArray[np.float64]]:
    """(n, k) places in the bank (m, D) of the k = min(most, m) images most similar to each of `features` (n, D), the most similar first, and their cosines.

    Of equally similar ones the lower place counts, as in the k-NN accuracy.
    """
    others, k = unit_rows(bank), min(most, len(bank))
    places, cosines = np.empty((len(features), k), np.int64), np.empty((len(features), k))
    for start in range(0, len(features), max(1, _BLOCK // max(1, len(bank)))):
        block = slice(start, start + max(1, _BLOCK // max(1, len(bank))))
        found = np.round(unit_rows(features[block]) @ others.T, _DECIMALS)  # (b, m)
        places[block] = np.argsort(-found, axis=1, kind="stable")[:, :k]
        cosines[block] = np.take_along_axis(found, places[block], 1)
    return places, cosines


# ── points on a plane ────────────────────────────────────────────────────────────────────────────────────────────


NAMED = 20  # classes with a colour and a marker of their own; the others are grey
Limits = tuple[tuple[float, float], tuple[float, float]]  # (low, high) of x and of y


def checked_projection(
    coordinates: ArrayLike, labels: ArrayLike, classes: Sequence[str], panels: Sequence[object]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Coordinates (E, p, 2) float64 and labels (p,) int64 that fit each other and the panels; UsageError otherwise."""
    points, of = np.asarray(coordinates, dtype=np.float64), np.asarray(labels)
    if points.ndim != 3 or points.shape[2] != 2 or len(points) != len(panels) or not points.size:
        raise UsageError(f"expected coordinates of shape (epochs, points, 2) for {len(panels)} panels, got {points.shape}")
    if of.shape != points.shape[1:2] or of.dtype.kind not in "iu" or of.min() < 0 or of.max() >= len(classes):
        raise UsageError(f"expected {points.shape[1]} labels from 0 to {len(classes) - 1}, got {of.dtype} {of.shape}")
    if not np.isfinite(points).all():
        raise UsageError("expected finite coordinates, got NaN or infinity")
    return points, of.astype(np.int64)


def common_limits(points: NDArray[np.float64]) -> Limits:
    """One range of x and of y for all epochs of (E, p, 2), with a margin of 4 % on each side."""
    low, high = points.min(axis=(0, 1)), points.max(axis=(0, 1))
    margin = np.maximum(0.04 * (high - low), 1e-6 * np.maximum(np.abs(high), 1.0))
    (left, below), (right, above) = (low - margin).tolist(), (high + margin).tolist()
    return (left, right), (below, above)


def named_classes(labels: NDArray[np.int64], num_classes: int) -> list[int]:
    """The classes with a style of their own, in class order: of more than NAMED those with the most points, the first of equals."""
    counts = np.bincount(labels, minlength=num_classes)
    most = np.argsort(-counts, kind="stable")[:NAMED]
    return sorted(int(i) for i in most if counts[i])
