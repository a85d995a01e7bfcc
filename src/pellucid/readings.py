"""What the plain files of a run say, as arrays: curves of metrics.jsonl, confusion and calibration of predictions. NumPy only.

Report, comparison and figures all read these, so that a curve or a count is the same wherever it is shown.
A number that is 0/0 (the precision of a class never predicted, the recall of a class without samples) is NaN, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.run import Measurement

MAX_POINTS = 1000  # of a curve: more than a screen has pixels to show
NUM_BINS = 15  # of the reliability diagram, as in the measured calibration error

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
